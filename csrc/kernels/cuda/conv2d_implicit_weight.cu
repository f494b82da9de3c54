#include <algorithm>
#include <cstdint>

#include "conv2d.h"
#include "conv2d_element.cuh"
#include "tile_product.cuh"

// The weight gradient as a product over the output's pixels: taps and channels of the source by channels of
// the gradient. Blocks take a tile of it and a part of the pixels; the parts are added in their order.
namespace d2lfast::cuda {
namespace {

struct ImplicitWeightItems {
  int32_t pixels, row_tiles;
  Divider<int32_t> columns, rows;
};

template <typename T, int kColumns>
constexpr int kSharedElements = kStages * kTileStep<T> * (kStepPitch<kTileRows> + kStepPitch<kColumns>);

template <typename Core, int kColumns>
__global__ void __launch_bounds__(kTileThreads, 2)
    implicit_gemm_weight(const Conv2dImplicitWeightParams p, const ImplicitWeightItems items) {
  using T = typename Core::Element;
  constexpr int kPiece = 16 / sizeof(T), kStep = kTileStep<T>;
  constexpr int kLeft = kStepPitch<kTileRows>, kRight = kStepPitch<kColumns>;
  constexpr int kLeftPieces = kTileRows / kPiece, kRightPieces = kColumns / kPiece;  // of a line
  const auto left = dynamic_shared<T>();
  const auto right = left + kStages * kStep * kLeft;
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t row_tile = static_cast<int32_t>(blockIdx.x % items.row_tiles) * kTileRows;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.x / items.row_tiles) * kColumns;
  const int32_t rows = p.h.kernel * p.w.kernel * p.source_channels;
  const int32_t begin = static_cast<int32_t>(int64_t{items.pixels} * blockIdx.y / p.splits);
  const int32_t end = static_cast<int32_t>(int64_t{items.pixels} * (blockIdx.y + 1) / p.splits);

  // Of every pixel a thread copies the same piece of a tap's channels, and of the gradient's.
  const int32_t row = row_tile + thread % kLeftPieces * kPiece;
  const int32_t tap = row / p.source_channels, c = row - tap * p.source_channels;
  const int32_t kh = tap / p.w.kernel, kw = tap - kh * p.w.kernel;
  const int32_t channel = first_channel + thread % kRightPieces * kPiece;
  const int64_t image_size = int64_t{p.h.source} * p.w.source * p.source_channels;
  const auto copy_step = [&](int32_t from, int stage) {
#pragma unroll
    for (int i = 0; i < kStep * kLeftPieces / kTileThreads; ++i) {
      const int32_t line = thread / kLeftPieces + i * (kTileThreads / kLeftPieces), pixel = from + line;
      bool valid = row < rows && pixel < end;
      int64_t at = 0;
      if (valid) {
        int32_t rest = pixel, h, w;
        const int32_t column = take_remainder(rest, items.columns);
        const int32_t result_row = take_remainder(rest, items.rows);
        valid = source_of<false>(p.h, result_row, kh, h) & source_of<false>(p.w, column, kw, w);
        if (valid)
          at = rest * image_size + (static_cast<int64_t>(h) * p.w.source + w) * p.source_channels + c;
      }
      copy_async_16(left + (stage * kStep + line) * kLeft + thread % kLeftPieces * kPiece,
                    static_cast<const T*>(p.source) + at, valid);
    }
#pragma unroll
    for (int i = 0; i < kStep * kRightPieces / kTileThreads; ++i) {
      const int32_t line = thread / kRightPieces + i * (kTileThreads / kRightPieces), pixel = from + line;
      const bool valid = pixel < end && channel < p.result_channels;
      const int64_t at = valid ? static_cast<int64_t>(pixel) * p.result_channels + channel : 0;
      copy_async_16(right + (stage * kStep + line) * kRight + thread % kRightPieces * kPiece,
                    static_cast<const T*>(p.gradient) + at, valid);
    }
    commit_async();
  };

  const WarpPlace at = warp_place<kColumns>();
  TileSums<kColumns> sum = {};
  for (int stage = 0; stage < kStages - 1; ++stage) copy_step(begin + stage * kStep, stage);
  const int32_t steps = (end - begin + kStep - 1) / kStep;
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    copy_step(begin + (step + kStages - 1) * kStep, (step + kStages - 1) % kStages);
    multiply_along_columns<Core, kColumns>(sum, at, left + step % kStages * kStep * kLeft + at.row,
                                           right + step % kStages * kStep * kRight + at.column);
  }
  wait_async<0>();

  float* partial = p.partial + static_cast<int64_t>(blockIdx.y) * rows * p.result_channels;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int32_t result_row = row_tile + at.row + i * 8 + at.g;
    if (result_row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      const int32_t result_channel = first_channel + at.column + j * 8 + 2 * at.t;
      if (result_channel >= p.result_channels) continue;  // an even number
      const Vector<float, 2> both{sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]};
      store(partial + static_cast<int64_t>(result_row) * p.result_channels + result_channel, both);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    add_parts(const Compute<T>* partial, T* result, int32_t splits, int64_t count) {
  for (int64_t i = first_item<int64_t>(); i < count; i += grid_width<int64_t>()) {
    Compute<T> sum = partial[i];
    for (int32_t s = 1; s < splits; ++s) sum += partial[s * count + i];
    result[i] = from_compute<T>(sum);
  }
}

int32_t tile_columns(const Conv2dImplicitWeightParams& p) {
  const int64_t wide = (p.result_channels + 127) / 128, narrow = (p.result_channels + 63) / 64;
  return wide * kTileCycles<128> < narrow * kTileCycles<64> ? 128 : 64;
}

int64_t tiles_of(const Conv2dImplicitWeightParams& p) {
  const int64_t rows = int64_t{p.h.kernel} * p.w.kernel * p.source_channels;
  return (rows + kTileRows - 1) / kTileRows * ((p.result_channels - 1) / tile_columns(p) + 1);
}

template <typename Core>
cudaError_t launch_tiles(const Conv2dImplicitWeightParams& p, const ImplicitWeightItems& items,
                         cudaStream_t stream) {
  using T = typename Core::Element;
  const bool wide = tile_columns(p) == 128;
  const LaunchShape shape{{static_cast<unsigned>(tiles_of(p)), static_cast<unsigned>(p.splits)},
                          kTileThreads,
                          (wide ? kSharedElements<T, 128> : kSharedElements<T, 64>)*sizeof(T)};
  return launch(wide ? implicit_gemm_weight<Core, 128> : implicit_gemm_weight<Core, 64>, shape, stream, p,
                items);
}

}  // namespace

int32_t conv2d_implicit_weight_splits(const Conv2dImplicitWeightParams& p) {
  // Four blocks for each of the H200's 132 multiprocessors, of 256 pixels at least.
  const int64_t pixels = p.batch * p.h.result * p.w.result;
  return static_cast<int32_t>(std::clamp<int64_t>(std::min(pixels / 256, 528 / tiles_of(p)), 1, 256));
}

cudaError_t launch_conv2d_implicit_weight(const Conv2dImplicitWeightParams& p, DType dtype,
                                          cudaStream_t stream) {
  const int32_t lanes = dtype == DType::kFloat32 ? 4 : 8;
  const int64_t pixels = p.batch * p.h.result * p.w.result, blocks = tiles_of(p);
  // The steps that are copied ahead begin past the last pixel.
  if (dtype == DType::kFloat64 || p.source_channels % lanes != 0 || p.result_channels % lanes != 0 ||
      !aligned(p.source, 16) || !aligned(p.gradient, 16) || pixels > kMaxIndex32 || blocks > INT32_MAX ||
      int64_t{p.h.kernel} * p.w.kernel * p.source_channels > kMaxIndex32) {
    return cudaErrorInvalidValue;
  }
  const int64_t rows = int64_t{p.h.kernel} * p.w.kernel * p.source_channels;
  const ImplicitWeightItems items{static_cast<int32_t>(pixels),
                                  static_cast<int32_t>((rows + kTileRows - 1) / kTileRows),
                                  Divider<int32_t>(p.w.result), Divider<int32_t>(p.h.result)};
  switch (dtype) {
    case DType::kBFloat16:
      return launch_tiles<TensorCore<BFloat16>>(p, items, stream);
    case DType::kFloat16:
      return launch_tiles<TensorCore<Float16>>(p, items, stream);
    default:
      return p.tf32 ? launch_tiles<TensorCore<float>>(p, items, stream)
                    : launch_tiles<Exact32>(p, items, stream);
  }
}

cudaError_t launch_add_parts(const void* partial, void* result, int32_t splits, int64_t count, DType dtype,
                             cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(add_parts<T>, {blocks_for(count), kThreads}, stream,
                  static_cast<const Compute<T>*>(partial), static_cast<T*>(result), splits, count);
  });
}

}  // namespace d2lfast::cuda
