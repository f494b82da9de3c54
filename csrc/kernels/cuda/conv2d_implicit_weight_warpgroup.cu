#include "conv2d_implicit_warpgroup.h"
#include "conv2d_implicit_weight.cuh"
#include "warpgroup.cuh"

// Tiles of 128 rows by 64 or 128 channels: two warpgroups with 64 rows each, steps of 64 pixels in three
// buffers, two blocks a multiprocessor. A pixel is a line of each factor.
namespace d2lfast::cuda {
namespace {

constexpr int kTileRows = 128, kBlockThreads = 2 * kGroupThreads;
constexpr int kStepPixels = 64, kBuffers = 3;

template <typename T, int kChannels>
__global__ void __launch_bounds__(kBlockThreads, 2)
    implicit_gemm_weight_warpgroup(const Conv2dImplicitWeightParams p, const ImplicitWeightItems items) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  using Copies = ImplicitWeightCopies<T, kBlockThreads, kTileRows, kChannels, kStepPixels>;
  constexpr int kBlockRows = 64, kBlock = kStepPixels * kBlockRows;  // elements
  const auto left = factor_memory<T>();
  const auto right = left + kBuffers * kStepPixels * kTileRows;
  const ImplicitWeightPlace place(p, items, kTileRows, kChannels);
  Copies copies(p, items, place);
  const int thread = static_cast<int>(threadIdx.x);
  // All lines of a thread have the same remainder by 8.
  const auto own_place = [](int line, int piece) {
    return piece / 8 * kBlock + line * kBlockRows + swizzled_piece(line, piece % 8) * Copies::kPiece;
  };
  const auto own_left = left + own_place(thread / Copies::kLeftPieces, thread % Copies::kLeftPieces);
  const auto own_right = right + own_place(thread / Copies::kRightPieces, thread % Copies::kRightPieces);
  const auto begin_copies = [&](int32_t step) {
    const int buffer = step % kBuffers;
    copies.begin(place.begin + step * kStepPixels, own_left + buffer * kStepPixels * kTileRows, kBlockRows,
                 own_right + buffer * kStepPixels * kChannels, kBlockRows);
  };

  const int group = thread / kGroupThreads;
  float sum[kChannels / 2] = {};
  for (int32_t step = 0; step < kBuffers - 1; ++step) begin_copies(step);
  pin_sums(sum);
  const int32_t steps = (place.end - place.begin + kStepPixels - 1) / kStepPixels;
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kBuffers - 2>();
    fence_factors();
    wait_products<0>();  // of the buffer that is filled next
    __syncthreads();
    const int buffer = step % kBuffers;
    const uint64_t a = factor(left + buffer * kStepPixels * kTileRows + group * kBlock, kBlock * sizeof(T));
    const uint64_t b = factor(right + buffer * kStepPixels * kChannels, kBlock * sizeof(T));
    fence_sums();
#pragma unroll
    for (int k = 0; k < kStepPixels / 16; ++k) {
      begin_product<T, kChannels, true>(sum, a + k * kNextProduct<true>, b + k * kNextProduct<true>);
    }
    commit_products();
    begin_copies(step + kBuffers - 1);
  }
  wait_async<0>();
  wait_products<0>();
  pin_sums(sum);

  const int lane = thread % 32, row = place.row + thread / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float own[kChannels / 8][2];
#pragma unroll
    for (int n = 0; n < kChannels / 4; ++n) own[n / 2][n % 2] = sum[n / 2 * 4 + half * 2 + n % 2];
    store_part(p, row + half * 8, place.channel, lane % 4, own);
  }
#else
  __trap();
#endif
}

template <typename T, int kChannels>
cudaError_t launch_tiles(const Conv2dImplicitWeightParams& p, cudaStream_t stream) {
  const ImplicitWeightItems items(p, kTileRows);
  const int64_t tiles = int64_t{items.row_tiles} * ((p.result_channels - 1) / kChannels + 1);
  if (tiles > INT32_MAX) return cudaErrorInvalidValue;
  const LaunchShape shape{{static_cast<unsigned>(tiles), static_cast<unsigned>(p.splits)},
                          kBlockThreads,
                          kBuffers * kStepPixels * (kTileRows + kChannels) * sizeof(T)};
  return launch(implicit_gemm_weight_warpgroup<T, kChannels>, shape, stream, p, items);
}

template <typename T>
cudaError_t launch_narrow_or_wide(const Conv2dImplicitWeightParams& p, cudaStream_t stream) {
  return p.result_channels > 64 ? launch_tiles<T, 128>(p, stream) : launch_tiles<T, 64>(p, stream);
}

}  // namespace

cudaError_t launch_conv2d_implicit_weight_warpgroup(const Conv2dImplicitWeightParams& p, DType dtype,
                                                    cudaStream_t stream) {
  return dtype == DType::kBFloat16 ? launch_narrow_or_wide<BFloat16>(p, stream)
                                   : launch_narrow_or_wide<Float16>(p, stream);
}

}  // namespace d2lfast::cuda
