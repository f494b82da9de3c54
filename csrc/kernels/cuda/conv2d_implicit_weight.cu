#include "conv2d_implicit_weight.cuh"

#include <algorithm>

#include "conv2d_implicit_warpgroup.h"
#include "tile_product.cuh"

namespace d2lfast::cuda {
namespace {

template <typename T, int kColumns>
constexpr int kSharedElements = kStages * kTileStep<T> * (kStepPitch<kTileRows> + kStepPitch<kColumns>);

template <typename Core, int kColumns>
__global__ void __launch_bounds__(kTileThreads, 2)
    implicit_gemm_weight(const Conv2dImplicitWeightParams p, const ImplicitWeightItems items) {
  using T = typename Core::Element;
  constexpr int kStep = kTileStep<T>, kLeft = kStepPitch<kTileRows>, kRight = kStepPitch<kColumns>;
  using Copies = ImplicitWeightCopies<T, kTileThreads, kTileRows, kColumns, kStep>;
  const auto left = dynamic_shared<T>();
  const auto right = left + kStages * kStep * kLeft;
  const ImplicitWeightPlace place(p, items, kTileRows, kColumns);
  Copies copies(p, items, place);
  const int thread = static_cast<int>(threadIdx.x);
  const auto own_left =
      left + thread / Copies::kLeftPieces * kLeft + thread % Copies::kLeftPieces * Copies::kPiece;
  const auto own_right =
      right + thread / Copies::kRightPieces * kRight + thread % Copies::kRightPieces * Copies::kPiece;
  const auto begin_copies = [&](int32_t step) {
    const int stage = step % kStages;
    copies.begin(place.begin + step * kStep, own_left + stage * kStep * kLeft, kLeft,
                 own_right + stage * kStep * kRight, kRight);
  };

  const WarpPlace at = warp_place<kColumns>();
  TileSums<kColumns> sum = {};
  for (int32_t step = 0; step < kStages - 1; ++step) begin_copies(step);
  const int32_t steps = (place.end - place.begin + kStep - 1) / kStep;
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    begin_copies(step + kStages - 1);
    multiply_along_columns<Core, kColumns>(sum, at, left + step % kStages * kStep * kLeft + at.row,
                                           right + step % kStages * kStep * kRight + at.column);
  }
  wait_async<0>();

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float row[kColumns / 16][2];
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) row[n / 2][n % 2] = sum[i / 2][n / 2][i % 2 * 2 + n % 2];
    store_part(p, place.row + at.row + i * 8 + at.g, place.channel + at.column, at.t, row);
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

// Of few elements, whose parts' addition would wait for memory part by part: 32 threads each add every 32nd,
// and then what they have.
constexpr int kAddedElements = 8, kAdders = kThreads / kAddedElements;

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    add_many_parts(const Compute<T>* partial, T* result, int32_t splits, int64_t count) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, sums, kThreads / 32 * kAddedElements);
  const int32_t thread = threadIdx.x, element = thread % kAddedElements;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAddedElements + element;
  A sum = 0;
  if (at < count) {
#pragma unroll 4
    for (int32_t s = thread / kAddedElements; s < splits; s += kAdders) sum += partial[s * count + at];
  }
  for (int mask = 16; mask >= kAddedElements; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread % 32 < kAddedElements) sums[thread / 32 * kAddedElements + element] = sum;
  __syncthreads();
  if (thread >= kAddedElements || at >= count) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += sums[warp * kAddedElements + element];
  result[at] = from_compute<T>(sum);
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
  if (conv2d_implicit_takes_warpgroups(dtype)) {
    return launch_conv2d_implicit_weight_warpgroup(p, dtype, stream);
  }
  const ImplicitWeightItems items(p, kTileRows);
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
    if (splits >= 16 && count <= kMaxBlocks * kAddedElements) {
      const auto blocks = static_cast<unsigned>((count + kAddedElements - 1) / kAddedElements);
      return launch(add_many_parts<T>, {blocks, kThreads}, stream, static_cast<const Compute<T>*>(partial),
                    static_cast<T*>(result), splits, count);
    }
    return launch(add_parts<T>, {blocks_for(count), kThreads}, stream,
                  static_cast<const Compute<T>*>(partial), static_cast<T*>(result), splits, count);
  });
}

}  // namespace d2lfast::cuda
