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
    c_ = row - tap * p.source_channels;
    kh_ = tap / p.w.kernel;  // none of a row outside
    kw_ = tap - kh_ * p.w.kernel;
    channel_ = place.channel + thread % kRightPieces * kPiece;
  }

  // Begins the copies of a step's pixels, to this thread's places in its first lines of `pitch` elements.
  template <typename Pointer>
  __device__ __forceinline__ void begin(int32_t from, Pointer left, int left_pitch, Pointer right,
                                        int right_pitch) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t image_size = int64_t{p_.h.source} * p_.w.source * p_.source_channels;
#pragma unroll
    for (int i = 0; i < kStep / kLeftLines; ++i) {
      const int32_t pixel = from + thread / kLeftPieces + i * kLeftLines;
      bool valid = kh_ < p_.h.kernel && pixel < place_.end;
      int64_t at = 0;
      if (valid) {
        int32_t rest = pixel, h, w;
        const int32_t column = take_remainder(rest, items_.columns);
        const int32_t result_row = take_remainder(rest, items_.rows);
        valid = source_of<false>(p_.h, result_row, kh_, h) & source_of<false>(p_.w, column, kw_, w);
        if (valid) {
          at = rest * image_size + (static_cast<int64_t>(h) * p_.w.source + w) * p_.source_channels + c_;
        }
      }
      copy_async_16(left + i * kLeftLines * left_pitch, static_cast<const T*>(p_.source) + at, valid);
    }
#pragma unroll
    for (int i = 0; i < kStep / kRightLines; ++i) {
      const int32_t pixel = from + thread / kRightPieces + i * kRightLines;
      const bool valid = pixel < place_.end && channel_ < p_.result_channels;
      const int64_t at = valid ? static_cast<int64_t>(pixel) * p_.result_channels + channel_ : 0;
      copy_async_16(right + i * kRightLines * right_pitch, static_cast<const T*>(p_.gradient) + at, valid);
    }
    commit_async();
  }

 private:
  const Conv2dImplicitWeightParams& p_;
  const ImplicitWeightItems& items_;
  const ImplicitWeightPlace& place_;
  int32_t c_, kh_, kw_, channel_;
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
