#pragma once

#include <cstdint>

#include "conv2d.h"
#include "conv2d_element.cuh"

// The weight gradient as a product over the output's pixels: taps and channels of the source by channels of
// the gradient. Blocks take a tile of it and a part of the pixels; the parts are added in their order.
namespace d2lfast::cuda {

struct ImplicitWeightItems {
  int32_t pixels, row_tiles;
  Divider<int32_t> columns, rows;

  ImplicitWeightItems(const Conv2dImplicitWeightParams& p, int32_t tile_rows)
      : pixels(static_cast<int32_t>(p.batch * p.h.result * p.w.result)),
        row_tiles((p.h.kernel * p.w.kernel * p.source_channels - 1) / tile_rows + 1),
        columns(p.w.result),
        rows(p.h.result) {}
};

// Of a block.
struct ImplicitWeightPlace {
  int32_t row, channel, begin, end;  // the tile's first row and channel; pixels

  __device__ ImplicitWeightPlace(const Conv2dImplicitWeightParams& p, const ImplicitWeightItems& items,
                                 int tile_rows, int tile_channels) {
    row = static_cast<int32_t>(blockIdx.x % items.row_tiles) * tile_rows;
    channel = static_cast<int32_t>(blockIdx.x / items.row_tiles) * tile_channels;
    begin = static_cast<int32_t>(int64_t{items.pixels} * blockIdx.y / p.splits);
    end = static_cast<int32_t>(int64_t{items.pixels} * (blockIdx.y + 1) / p.splits);
  }
};

// Of every pixel a thread copies the same piece of a tap's channels, and of the gradient's.
template <typename T, int kThreadCount, int kTileRows, int kTileChannels, int kStep>
class ImplicitWeightCopies {
 public:
  static constexpr int kPiece = 16 / sizeof(T);
  static constexpr int kLeftPieces = kTileRows / kPiece, kRightPieces = kTileChannels / kPiece;  // of a line
  static constexpr int kLeftLines = kThreadCount / kLeftPieces, kRightLines = kThreadCount / kRightPieces;

  __device__ __forceinline__ ImplicitWeightCopies(const Conv2dImplicitWeightParams& p,
                                                  const ImplicitWeightItems& items,
                                                  const ImplicitWeightPlace& place)
      : p_(p), items_(items), place_(place) {
    const int thread = static_cast<int>(threadIdx.x);
    const int32_t row = place.row + thread % kLeftPieces * kPiece, tap = row / p.source_channels;
    source_ = computed_once(static_cast<const T*>(p.source) + (row - tap * p.source_channels));
    const int32_t kh = tap / p.w.kernel, kw = tap - kh * p.w.kernel;
    // Outside of every image: a row past the last tap's.
    top_ = kh < p.h.kernel ? kh * p.h.dilation - p.h.pad : -(1 << 30);
    start_ = kw * p.w.dilation - p.w.pad;
    const int32_t channel = place.channel + thread % kRightPieces * kPiece;
    gradient_ = computed_once(static_cast<const T*>(p.gradient) + channel);
    channel_inside_ = channel < p.result_channels;
  }

  // Begins the copies of a step's pixels, to this thread's places in its first lines of `pitch` elements.
  template <typename Pointer>
  __device__ __forceinline__ void begin(int32_t from, Pointer left, int left_pitch, Pointer right,
                                        int right_pitch) {
    const int thread = static_cast<int>(threadIdx.x);
    // Products of 32 bits with a result of 64.
    const int32_t image_size = p_.h.source * p_.w.source * p_.source_channels;
#pragma unroll
    for (int i = 0; i < kStep / kLeftLines; ++i) {
      const int32_t pixel = from + thread / kLeftPieces + i * kLeftLines;
      int32_t image = pixel;
      const int32_t w = take_remainder(image, items_.columns) * p_.w.stride + start_;
      const int32_t h = take_remainder(image, items_.rows) * p_.h.stride + top_;
      const bool valid = pixel < place_.end && is_below(h, p_.h.source) && is_below(w, p_.w.source);
      const uint32_t place = (static_cast<uint32_t>(h) * p_.w.source + w) * p_.source_channels;
      const T* at = source_ + (int64_t{image} * image_size + static_cast<int32_t>(place));
      copy_async_16(left + i * kLeftLines * left_pitch, at, valid);
    }
#pragma unroll
    for (int i = 0; i < kStep / kRightLines; ++i) {
      const int32_t pixel = from + thread / kRightPieces + i * kRightLines;
      copy_async_16(right + i * kRightLines * right_pitch, gradient_ + int64_t{pixel} * p_.result_channels,
                    channel_inside_ && pixel < place_.end);
    }
    commit_async();
  }

 private:
  const Conv2dImplicitWeightParams& p_;
  const ImplicitWeightItems& items_;
  const ImplicitWeightPlace& place_;
  const T *source_, *gradient_;
  int32_t top_, start_;
  bool channel_inside_;
};

// Columns channel + 8j + 2t and the next of a row of the part; there are even numbers of channels.
template <int kBlocks>
__device__ __forceinline__ void store_part(const Conv2dImplicitWeightParams& p, int32_t row, int32_t channel,
                                           int t, const float (&sum)[kBlocks][2]) {
  const int64_t rows = int64_t{p.h.kernel} * p.w.kernel * p.source_channels;
  if (row >= rows) return;
  float* partial = p.partial + (blockIdx.y * rows + row) * p.result_channels;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    const int32_t first = channel + 8 * j + 2 * t;
    if (first < p.result_channels) store(partial + first, Vector<float, 2>{sum[j][0], sum[j][1]});
  }
}

}  // namespace d2lfast::cuda
