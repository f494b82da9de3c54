#pragma once

#include <cstdint>
#include <type_traits>

#include "conv2d.h"
#include "conv2d_element.cuh"
#include "device_limits.h"

// Convolution as a product of pixels by channels, whose left factor is never built: each step gathers one tap
// and some channels of a tile's pixels into shared memory, ahead of the arithmetic.
namespace d2lfast::cuda {

// A transposed convolution of stride s is s convolutions for each axis, one for the positions of each
// remainder (its phase), with the taps that meet the source from there.
struct ImplicitItems {
  int64_t images, pixels, pixel_tiles;  // of a phase; the last positions of some phases lie outside
  int32_t row_phases, column_phases;
  int32_t channel_tiles, channel_steps;
  Divider<int32_t> rows, columns;

  ImplicitItems(const Conv2dImplicitParams& p, int32_t tile_pixels, int32_t tile_channels, int32_t step) {
    row_phases = p.transposed ? p.h.stride : 1;
    column_phases = p.transposed ? p.w.stride : 1;
    rows = Divider<int32_t>((p.h.result - 1) / row_phases + 1);
    columns = Divider<int32_t>((p.w.result - 1) / column_phases + 1);
    images = p.batch;
    pixels = images * rows.divisor * columns.divisor;
    pixel_tiles = (pixels + tile_pixels - 1) / tile_pixels;
    channel_tiles = (p.result_channels + tile_channels - 1) / tile_channels;
    channel_steps = (p.source_channels - 1) / step + 1;
  }
  // A block for each tile, or 0 for too many.
  int64_t blocks() const {
    const int64_t phases = int64_t{row_phases} * column_phases;
    const bool fit = images <= kMaxIndex32 && rows.divisor <= kMaxIndex32 && columns.divisor <= kMaxIndex32 &&
                     phases <= INT32_MAX / channel_tiles &&
                     pixel_tiles <= INT32_MAX / (phases * channel_tiles);
    return fit ? pixel_tiles * channel_tiles * phases : 0;
  }
};

// What a tile's cycles make of the launch: a multiprocessor with k tiles takes k times as long.
inline int64_t computed_cycles(const ImplicitItems& items, int64_t of_tile) {
  const int64_t processors = device_limits().processors;
  return (items.blocks() + processors - 1) / processors * of_tile;
}

// A pixel of a phase: image, and row and column of the phase.
struct Pixel {
  int32_t image, row, column;

  Pixel() = default;
  __device__ Pixel(const ImplicitItems& items, int64_t index) {
    const int64_t line = index / items.columns.divisor;
    column = static_cast<int32_t>(index - line * items.columns.divisor);
    image = static_cast<int32_t>(line / items.rows.divisor);
    row = static_cast<int32_t>(line - int64_t{image} * items.rows.divisor);
  }
  // `distance` pixels, fewer than kMaxBlocks, further on.
  __device__ Pixel(const ImplicitItems& items, const Pixel& from, int32_t distance) {
    int32_t rest = from.column + distance;
    column = take_remainder(rest, items.columns);
    rest += from.row;
    row = take_remainder(rest, items.rows);
    image = from.image + rest;
  }
};

// Of a tile. Channels are the fastest, so that blocks which run together share pixels.
struct ImplicitPlace {
  int32_t channel, row_phase, column_phase, pixels;
  Pixel first;

  __device__ ImplicitPlace(const ImplicitItems& items, int tile_pixels, int tile_channels) {
    const int32_t block = static_cast<int32_t>(blockIdx.x), tile = block / items.channel_tiles;
    channel = (block - tile * items.channel_tiles) * tile_channels;
    const int32_t phase = tile / static_cast<int32_t>(items.pixel_tiles);
    row_phase = phase / items.column_phases;
    column_phase = phase % items.column_phases;
    const int64_t start = (tile - phase * items.pixel_tiles) * tile_pixels, left = items.pixels - start;
    pixels = static_cast<int32_t>(left < tile_pixels ? left : tile_pixels);
    first = Pixel(items, start);
  }
};

// The source position of a tap is that of the result's, in its phase, times `scale` plus this, if it exists.
__device__ inline bool tap_offset(const Conv2dAxis& axis, bool transposed, int32_t phase, int32_t tap,
                                  int32_t& offset) {
  if (!transposed) {
    offset = tap * axis.dilation - axis.pad;
    return true;
  }
  const int32_t reach = phase + axis.pad - tap * axis.dilation;
  offset = reach / axis.stride;
  return offset * axis.stride == reach;
}

__device__ inline int32_t count_taps(const Conv2dAxis& axis, bool transposed, int32_t phase) {
  int32_t count = 0;
  for (int32_t tap = 0, offset; tap < axis.kernel; ++tap) {
    count += tap_offset(axis, transposed, phase, tap, offset);
  }
  return count;
}

// What a thread copies of each step: 16 bytes of every kRowsAtOnce-th pixel and channel of the tile. Offset
// holds distances of a tile's pixels in the source.
template <typename T, int kThreads, int kTilePixels, int kTileChannels, int kStepBytes,
          typename Offset = int64_t>
class ImplicitCopies {
 public:
  static constexpr int kPieces = kStepBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = kThreads / kPieces;

  __device__ __forceinline__ ImplicitCopies(const Conv2dImplicitParams& p, const ImplicitItems& items,
                                            const ImplicitPlace& place)
      : p_(p), items_(items), place_(place) {
    const int32_t c = static_cast<int>(threadIdx.x) % kPieces * kPiece;
    const int64_t image = int64_t{p.h.source} * p.w.source * p.source_channels;
    source_ = computed_once(static_cast<const T*>(p.source) + int64_t{place.first.image} * image + c);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int32_t index = row() + i * kRowsAtOnce;
      const bool inside = index < place.pixels;
      const Pixel pixel(items, place.first, inside ? index : 0);
      const int32_t h = pixel.row * (p.transposed ? 1 : p.h.stride);
      start_[i] = pixel.column * (p.transposed ? 1 : p.w.stride);
      top_[i] = inside ? h : -(1 << 30);
      corner_[i] = static_cast<Offset>((pixel.image - place.first.image) * image +
                                       (int64_t{h} * p.w.source + start_[i]) * p.source_channels);
    }
    channel_ = place.channel + row();
    channels_left_ = p.source_channels - c;
    const int64_t filter = int64_t{p.h.kernel} * p.w.kernel * p.source_channels;
    weight_ = computed_once(static_cast<const T*>(p.weight) + c + channel_ * filter);
    next_tap();
  }

  // Of the tile.
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kPieces; }
  __device__ __forceinline__ int32_t steps() const {
    return count_taps(p_.h, p_.transposed, place_.row_phase) *
           count_taps(p_.w, p_.transposed, place_.column_phase) * items_.channel_steps;
  }

  // Begins the copies of the next step, a group of them even if there is none: to this thread's place in the
  // first of the tile's pixels and channels, whose rows are `pitch` elements apart.
  template <typename Pointer>
  __device__ __forceinline__ void begin(Pointer pixels, Pointer channels, int pitch) {
    if (kh_ < p_.h.kernel) {
      // The same for all threads. Of pixels that exist the distance is in range, of others it may wrap.
      using Wrapping = std::make_unsigned_t<Offset>;
      const int32_t c = channel_step_ * kStep;
      const Wrapping line = static_cast<Wrapping>(h_offset_) * static_cast<Wrapping>(p_.w.source);
      const Wrapping shift = (line + static_cast<Wrapping>(w_offset_)) * p_.source_channels + c;
      const int64_t tap = int64_t{kh_ * p_.w.kernel + kw_} * p_.source_channels + c;
      const int64_t filters = int64_t{p_.h.kernel} * p_.w.kernel * p_.source_channels * kRowsAtOnce;
      const bool channel_inside = c < channels_left_;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const bool valid = channel_inside && is_below(top_[i] + h_offset_, p_.h.source) &&
                           is_below(start_[i] + w_offset_, p_.w.source);
        const T* from = source_ + static_cast<Offset>(static_cast<Wrapping>(corner_[i]) + shift);
        copy_async_16(pixels + i * kRowsAtOnce * pitch, from, valid);
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const bool valid = channel_inside && channel_ + i * kRowsAtOnce < p_.result_channels;
        copy_async_16(channels + i * kRowsAtOnce * pitch, weight_ + tap + i * filters, valid);
      }
      if (++channel_step_ == items_.channel_steps) {
        channel_step_ = 0;
        next_tap();
      }
    }
    commit_async();
  }

 private:
  static constexpr int kPiece = 16 / sizeof(T), kStep = kStepBytes / sizeof(T);
  static constexpr int kPixels = kTilePixels / kRowsAtOnce, kChannels = kTileChannels / kRowsAtOnce;

  // Row by row.
  __device__ __forceinline__ void next_tap() {
    while (true) {
      if (++kw_ == p_.w.kernel) {
        kw_ = 0;
        ++kh_;
      }
      if (kh_ == p_.h.kernel) return;
      if (tap_offset(p_.h, p_.transposed, place_.row_phase, kh_, h_offset_) &&
          tap_offset(p_.w, p_.transposed, place_.column_phase, kw_, w_offset_)) {
        return;
      }
    }
  }

  const Conv2dImplicitParams& p_;
  const ImplicitItems& items_;
  const ImplicitPlace& place_;
  const T* source_;  // of the tile's first image
  // Where the source of the tap with no offset is; corners may lie outside.
  Offset corner_[kPixels];
  int32_t top_[kPixels], start_[kPixels];
  const T* weight_;  // of the first channel
  int32_t channel_, channels_left_;
  // The next step.
  int32_t kh_ = 0, kw_ = -1, h_offset_ = 0, w_offset_ = 0, channel_step_ = 0;
};

// Where the channels of a tile's pixel begin in the result, -1 outside.
__device__ __forceinline__ int64_t result_start(const Conv2dImplicitParams& p, const ImplicitItems& items,
                                                const ImplicitPlace& place, int row) {
  if (row >= place.pixels) return -1;
  const Pixel pixel(items, place.first, row);
  const int32_t h = pixel.row * items.row_phases + place.row_phase;
  const int32_t w = pixel.column * items.column_phases + place.column_phase;
  if (h >= p.h.result || w >= p.w.result) return -1;
  return ((int64_t{pixel.image} * p.h.result + h) * p.w.result + w) * static_cast<int64_t>(p.result_channels);
}

// Lane t of four has element j of lane j's in the place of lane t's element j.
template <int kCount>
__device__ __forceinline__ void transpose_quad(float (*element)[kCount], int t) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (t & bit) != 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((j & bit) != 0) continue;
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const float other = shuffle_xor(upper ? element[j][n] : element[j | bit][n], bit);
        (upper ? element[j][n] : element[j | bit][n]) = other;
      }
    }
  }
}

// The bias of a pixel's V channels, then the residual, from `at` on in the result.
template <typename T, int V>
__device__ __forceinline__ void add_residual(const Conv2dImplicitParams& p, int64_t at,
                                             const float (&bias)[V], float* sum) {
  const auto residual = residual_of<V, T>(p.residual, at);
#pragma unroll
  for (int n = 0; n < V; ++n) sum[n] += bias[n] + to_compute(residual.lane[n]);
}

template <typename T, int V>
__device__ __forceinline__ void store_rounded(const Conv2dImplicitParams& p, int64_t at, const float* sum) {
  Vector<T, V> rounded;
#pragma unroll
  for (int n = 0; n < V; ++n) rounded.lane[n] = from_compute<T>(sum[n]);
  store(static_cast<T*>(p.result) + at, rounded);
}

// A thread's sums: element [r][j][n] is pixel `row` + 8 r, channel `channel` + 8 j + 2 t + n.
template <int kRows, int kBlocks>
using PixelSums = float[kRows][kBlocks][2];

// Adds bias and residual, activates and stores. All lanes of a warp call it, with the row of the first of its
// 8 kRows pixels; the sums are used up.
template <typename T, int kRows, int kBlocks>
__device__ __forceinline__ void store_sums(const Conv2dImplicitParams& p, const ImplicitItems& items,
                                           const ImplicitPlace& place, int row, int32_t channel,
                                           PixelSums<kRows, kBlocks>& sum) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
  int64_t start[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r += 4) {
    const int64_t own = result_start(p, items, place, row + 8 * r + lane);
#pragma unroll
    for (int i = r; i < r + 4 && i < kRows; ++i) start[i] = shuffle(own, 8 * (i - r) + lane / 4);
  }
  // In 16 bits lanes swap, so that each has 16 bytes.
  constexpr int kTogether = sizeof(T) == 2 ? 4 : 1, V = 2 * kTogether;
  if (p.result_channels % V == 0) {
    const int32_t first = channel + (kTogether == 4 ? 8 : 2) * t;
#pragma unroll
    for (int j = 0; j < kBlocks; j += kTogether) {
      const bool inside = first + 8 * j < p.result_channels;
      float bias[V] = {};
#pragma unroll
      for (int n = 0; n < V; ++n) {
        if (inside) bias[n] = bias_of<T>(p.bias, first + 8 * j + n);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kTogether == 4) transpose_quad(&sum[r][j], t);
        if (inside && start[r] >= 0) add_residual<T>(p, start[r] + first + 8 * j, bias, sum[r][j]);
      }
    }
    activate_in_turns<kRows * kBlocks * 2, 4>(&sum[0][0][0], p.activation);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kBlocks; j += kTogether) {
        const int32_t at = first + 8 * j;
        if (start[r] >= 0 && at < p.result_channels) store_rounded<T, V>(p, start[r] + at, sum[r][j]);
      }
    }
    return;
  }
  // One by one, in a loop through whose first registers the sums pass.
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
#pragma unroll 1
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int32_t own = channel + 8 * j + 2 * t + n;
        if (start[0] < 0 || own >= p.result_channels) continue;
        const float bias[1] = {bias_of<T>(p.bias, own)};
        add_residual<T>(p, start[0] + own, bias, &sum[0][0][n]);
        const float done = activate(sum[0][0][n], p.activation);
        store_rounded<T, 1>(p, start[0] + own, &done);
      }
      float* values = &sum[0][0][0];
#pragma unroll
      for (int i = 0; i + 2 < kRows * kBlocks * 2; ++i) values[i] = values[i + 2];
    }
#pragma unroll
    for (int i = 0; i + 1 < kRows; ++i) start[i] = start[i + 1];
  }
}

}  // namespace d2lfast::cuda
