#include <cstdint>

#include "conv2d.h"
#include "conv2d_element.cuh"
#include "tile_product.cuh"

// Convolution as a product of pixels by channels, whose left factor is never built: each step gathers one tap
// and 64 bytes of channels of 128 pixels into shared memory, three steps ahead of the arithmetic.
namespace d2lfast::cuda {
namespace {

// A transposed convolution of stride s is s convolutions for each axis, one for the positions of each
// remainder (its phase), with the taps that meet the source from there.
struct ImplicitItems {
  int64_t pixels, pixel_tiles;  // of a phase; the last positions of some phases lie outside
  int32_t rows, columns, row_phases, column_phases;
  int32_t channel_tiles, channel_steps;
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

// A pixel of a phase: image, and row and column of the phase.
struct Pixel {
  int64_t image;
  int32_t row, column;

  __device__ Pixel(const ImplicitItems& items, int64_t index) {
    const int64_t line = index / items.columns;
    column = static_cast<int32_t>(index - line * items.columns);
    image = line / items.rows;
    row = static_cast<int32_t>(line - image * items.rows);
  }
};

template <typename Core>
__global__ void __launch_bounds__(kTileThreads, 2)
    implicit_gemm(const Conv2dImplicitParams p, const ImplicitItems items) {
  using T = typename Core::Element;
  constexpr int kPiece = 16 / sizeof(T), kPitch = kRowPitch<T>;
  constexpr int kRowsAtOnce = kTileThreads / 4;  // four pieces of 16 bytes are a row
  D2LFAST_SHARED(T, left, kStages * kTileRows * kPitch);
  D2LFAST_SHARED(T, right, kStages * kTileColumns * kPitch);
  const int thread = static_cast<int>(threadIdx.x), piece = thread % 4 * kPiece;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.x % items.channel_tiles) * kTileColumns;
  int64_t rest = blockIdx.x / items.channel_tiles;
  const int64_t first_pixel = rest % items.pixel_tiles * kTileRows;
  const int32_t phase = static_cast<int32_t>(rest / items.pixel_tiles);
  const int32_t row_phase = phase / items.column_phases, column_phase = phase % items.column_phases;
  const T* weight = static_cast<const T*>(p.weight);
  const int32_t taps = p.h.kernel * p.w.kernel;

  // The pixels whose pieces this thread copies.
  constexpr int kPixels = kTileRows / kRowsAtOnce, kChannels = kTileColumns / kRowsAtOnce;
  const T* image[kPixels];
  int32_t top[kPixels], start[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int64_t index = first_pixel + thread / 4 + i * kRowsAtOnce;
    const bool inside = index < items.pixels;
    const Pixel pixel(items, inside ? index : 0);
    top[i] = inside ? pixel.row * (p.transposed ? 1 : p.h.stride) : -(1 << 30);
    start[i] = pixel.column * (p.transposed ? 1 : p.w.stride);
    image[i] = static_cast<const T*>(p.source) + pixel.image * p.h.source * p.w.source * p.source_channels;
  }

  // The next step to copy: a tap, row by row, and its channels.
  int32_t kh = 0, kw = -1, h_offset = 0, w_offset = 0, channel_step = 0;
  const auto next_tap = [&] {
    while (true) {
      if (++kw == p.w.kernel) {
        kw = 0;
        ++kh;
      }
      if (kh == p.h.kernel) return;
      if (tap_offset(p.h, p.transposed, row_phase, kh, h_offset) &&
          tap_offset(p.w, p.transposed, column_phase, kw, w_offset)) {
        return;
      }
    }
  };
  next_tap();
  const auto copy_step = [&](int stage) {
    if (kh < p.h.kernel) {
      const int32_t c = channel_step * kTileStep<T> + piece, tap = kh * p.w.kernel + kw;
      const bool channel_inside = c < p.source_channels;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const int32_t h = top[i] + h_offset, w = start[i] + w_offset;
        const bool valid = channel_inside && h >= 0 && h < p.h.source && w >= 0 && w < p.w.source;
        const int64_t at = valid ? (static_cast<int64_t>(h) * p.w.source + w) * p.source_channels + c : 0;
        copy_async_16(left + (stage * kTileRows + thread / 4 + i * kRowsAtOnce) * kPitch + piece,
                      image[i] + at, valid);
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const int32_t row = thread / 4 + i * kRowsAtOnce, channel = first_channel + row;
        const bool valid = channel_inside && channel < p.result_channels;
        const int64_t at = valid ? (static_cast<int64_t>(channel) * taps + tap) * p.source_channels + c : 0;
        copy_async_16(right + (stage * kTileColumns + row) * kPitch + piece, weight + at, valid);
      }
      if (++channel_step == items.channel_steps) {
        channel_step = 0;
        next_tap();
      }
    }
    commit_async();
  };
  int32_t steps = 0;
  for (int32_t axis_tap = 0, offset; axis_tap < p.h.kernel; ++axis_tap) {
    steps += tap_offset(p.h, p.transposed, row_phase, axis_tap, offset);
  }
  int32_t steps_w = 0;
  for (int32_t axis_tap = 0, offset; axis_tap < p.w.kernel; ++axis_tap) {
    steps_w += tap_offset(p.w, p.transposed, column_phase, axis_tap, offset);
  }
  steps *= steps_w * items.channel_steps;

  const WarpPlace at = warp_place();
  TileSums sum = {};
  for (int stage = 0; stage < kStages - 1; ++stage) copy_step(stage);
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    copy_step((step + kStages - 1) % kStages);
    multiply_along_rows<Core>(sum, at, left + (step % kStages * kTileRows + at.row) * kPitch,
                              right + (step % kStages * kTileColumns + at.column) * kPitch);
  }
  wait_async<0>();

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t index = first_pixel + at.row + i * 8 + at.g;
    if (index >= items.pixels) continue;
    const Pixel pixel(items, index);
    const int32_t h = pixel.row * items.row_phases + row_phase;
    const int32_t w = pixel.column * items.column_phases + column_phase;
    if (h >= p.h.result || w >= p.w.result) continue;
    const int64_t first =
        ((pixel.image * p.h.result + h) * p.w.result + w) * static_cast<int64_t>(p.result_channels);
    T* result = static_cast<T*>(p.result) + first;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int32_t channel = first_channel + at.column + j * 8 + 2 * at.t;
      const bool pairs = channel + 1 < p.result_channels && p.result_channels % 2 == 0;
      Vector<T, 2> both{};
      if (pairs) both = residual_of<2, T>(p.residual, first + channel);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (channel + half >= p.result_channels) continue;
        if (!pairs) both.lane[half] = residual_of<1, T>(p.residual, first + channel + half).lane[0];
        const float value = sum[i / 2][j][i % 2 * 2 + half] + bias_of<T>(p.bias, channel + half) +
                            to_compute(both.lane[half]);
        both.lane[half] = from_compute<T>(activate(value, p.activation));
      }
      if (pairs) {
        store(result + channel, both);
        continue;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (channel + half < p.result_channels) result[channel + half] = both.lane[half];
      }
    }
  }
}

}  // namespace

cudaError_t launch_conv2d_implicit(const Conv2dImplicitParams& p, DType dtype, cudaStream_t stream) {
  const int32_t size = dtype == DType::kFloat32 ? 4 : 2;
  if (dtype == DType::kFloat64 || p.source_channels % (16 / size) != 0 || !aligned(p.source, 16) ||
      !aligned(p.weight, 16) || !aligned(p.result, 2 * size) || !aligned(p.residual, 2 * size)) {
    return cudaErrorInvalidValue;
  }
  ImplicitItems items;
  items.row_phases = p.transposed ? p.h.stride : 1;
  items.column_phases = p.transposed ? p.w.stride : 1;
  items.rows = (p.h.result - 1) / items.row_phases + 1;
  items.columns = (p.w.result - 1) / items.column_phases + 1;
  items.pixels = p.batch * items.rows * items.columns;
  items.pixel_tiles = (items.pixels + kTileRows - 1) / kTileRows;
  items.channel_tiles = (p.result_channels + kTileColumns - 1) / kTileColumns;
  items.channel_steps = (p.source_channels * size + 63) / 64;
  const int64_t phases = int64_t{items.row_phases} * items.column_phases;
  if (phases > INT32_MAX / items.channel_tiles ||
      items.pixel_tiles > INT32_MAX / (phases * items.channel_tiles)) {
    return cudaErrorInvalidValue;
  }
  const int64_t blocks = items.pixel_tiles * items.channel_tiles * phases;
  const LaunchShape shape{static_cast<unsigned>(blocks), kTileThreads};
  switch (dtype) {
    case DType::kBFloat16:
      return launch(implicit_gemm<TensorCore<BFloat16>>, shape, stream, p, items);
    case DType::kFloat16:
      return launch(implicit_gemm<TensorCore<Float16>>, shape, stream, p, items);
    default:
      return launch(p.tf32 ? implicit_gemm<TensorCore<float>> : implicit_gemm<Exact32>, shape, stream, p,
                    items);
  }
}

}  // namespace d2lfast::cuda
