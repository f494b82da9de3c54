#include "conv2d_implicit.cuh"

#include "conv2d_implicit_warpgroup.h"
#include "tile_product.cuh"

namespace d2lfast::cuda {
namespace {

template <typename T, int kColumns>
constexpr int kSharedElements = kStages * (kTileRows + kColumns) * kRowPitch<T>;

template <typename Core, int kColumns>
__global__ void __launch_bounds__(kTileThreads, 2)
    implicit_gemm(const Conv2dImplicitParams p, const ImplicitItems items) {
  using T = typename Core::Element;
  using Copies = ImplicitCopies<T, kTileThreads, kTileRows, kColumns, kTileStep<T> * sizeof(T)>;
  constexpr int kPitch = kRowPitch<T>;
  const auto left = dynamic_shared<T>();
  const auto right = left + kStages * kTileRows * kPitch;
  const ImplicitPlace place(items, kTileRows, kColumns);
  Copies copies(p, items, place);
  const int own =
      Copies::row() * kPitch + static_cast<int>(threadIdx.x) % Copies::kPieces * (16 / int{sizeof(T)});
  const auto begin_copies = [&](int stage) {
    copies.begin(left + stage * kTileRows * kPitch + own, right + stage * kColumns * kPitch + own, kPitch);
  };

  const WarpPlace at = warp_place<kColumns>();
  TileSums<kColumns> sum = {};
  const int32_t steps = copies.steps();
  for (int stage = 0; stage < kStages - 1; ++stage) begin_copies(stage);
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    begin_copies((step + kStages - 1) % kStages);
    multiply_along_rows<Core, kColumns>(sum, at, left + (step % kStages * kTileRows + at.row) * kPitch,
                                        right + (step % kStages * kColumns + at.column) * kPitch);
  }
  wait_async<0>();

  PixelSums<8, kColumns / 16> pixel;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) pixel[i][n / 2][n % 2] = sum[i / 2][n / 2][i % 2 * 2 + n % 2];
  }
  store_sums<T>(p, items, place, at.row, place.channel + at.column, pixel);
}

template <typename Core, int kColumns>
cudaError_t launch_tiles(const Conv2dImplicitParams& p, const ImplicitItems& items, cudaStream_t stream) {
  using T = typename Core::Element;
  const LaunchShape shape{static_cast<unsigned>(items.blocks()), kTileThreads,
                          kSharedElements<T, kColumns> * sizeof(T)};
  return launch(implicit_gemm<Core, kColumns>, shape, stream, p, items);
}

template <typename Core>
cudaError_t launch_narrow_or_wide(const Conv2dImplicitParams& p, cudaStream_t stream) {
  constexpr int32_t kStep = kTileStep<typename Core::Element>;
  const ImplicitItems narrow(p, kTileRows, 64, kStep), wide(p, kTileRows, 128, kStep);
  if (narrow.blocks() == 0) return cudaErrorInvalidValue;
  return computed_cycles(wide, kTileCycles<128>) < computed_cycles(narrow, kTileCycles<64>)
             ? launch_tiles<Core, 128>(p, wide, stream)
             : launch_tiles<Core, 64>(p, narrow, stream);
}

}  // namespace

cudaError_t launch_conv2d_implicit(const Conv2dImplicitParams& p, DType dtype, cudaStream_t stream) {
  const int32_t size = dtype == DType::kFloat32 ? 4 : 2;
  if (dtype == DType::kFloat64 || p.source_channels % (16 / size) != 0 || !aligned(p.source, 16) ||
      !aligned(p.weight, 16) || !aligned(p.result, 16) || !aligned(p.residual, 16)) {
    return cudaErrorInvalidValue;
  }
  cudaError_t error = cudaSuccess;
  if (launch_conv2d_implicit_warpgroup(p, dtype, stream, error)) return error;
  switch (dtype) {
    case DType::kBFloat16:
      return launch_narrow_or_wide<TensorCore<BFloat16>>(p, stream);
    case DType::kFloat16:
      return launch_narrow_or_wide<TensorCore<Float16>>(p, stream);
    default:
      return p.tf32 ? launch_narrow_or_wide<TensorCore<float>>(p, stream)
                    : launch_narrow_or_wide<Exact32>(p, stream);
  }
}

}  // namespace d2lfast::cuda
