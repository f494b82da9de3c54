#include "conv2d_implicit.cuh"

#include "conv2d_implicit_warpgroup.h"
#include "warpgroup.cuh"

// Tiles of 128 pixels by 64, 128 or 256 channels: two warpgroups with 64 pixels each, steps of 128 bytes
// along k. Blocks of the first two run by twos on a multiprocessor, so that one multiplies while the other
// waits at its barrier; one of the third fills it, and begins a step's products before those of the last are
// done.
namespace d2lfast::cuda {
namespace {

constexpr int kGroupThreads = 128, kTilePixels = 128, kBlockThreads = 2 * kGroupThreads;
template <int kChannels>
constexpr int kBlocksAtOnce = kChannels == 256 ? 1 : 2;
// Steps whose products may be under way at a barrier, and steps in shared memory.
template <int kChannels>
constexpr int kPending = kChannels == 256 ? 1 : 0;
template <int kChannels>
constexpr int kBuffers = kChannels == 256 ? 4 : 3;

template <typename T, int kChannels>
__global__ void __launch_bounds__(kBlockThreads, kBlocksAtOnce<kChannels>)
    implicit_gemm_warpgroup(const Conv2dImplicitParams p, const ImplicitItems items) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  using Copies = ImplicitCopies<T, kBlockThreads, kTilePixels, kChannels, kFactorLine>;
  constexpr int kPitch = kFactorLine / sizeof(T), kPiece = 16 / sizeof(T);
  constexpr int kSteps = kBuffers<kChannels>, kAhead = kSteps - 1 - kPending<kChannels>;
  const auto left = factor_memory<T>();
  const auto right = left + kSteps * kTilePixels * kPitch;
  const ImplicitPlace place(items, kTilePixels, kChannels);
  Copies copies(p, items, place);
  // All rows of a thread have the same remainder by 8.
  const int thread = static_cast<int>(threadIdx.x);
  const int own = Copies::row() * kPitch + swizzled_piece(Copies::row(), thread % Copies::kPieces) * kPiece;
  const auto begin_copies = [&](int buffer) {
    copies.begin(left + buffer * kTilePixels * kPitch + own, right + buffer * kChannels * kPitch + own,
                 kPitch);
  };

  const int first_row = thread / kGroupThreads * 64;
  float sum[kChannels / 2] = {};
  const int32_t steps = copies.steps();
  for (int buffer = 0; buffer < kAhead; ++buffer) begin_copies(buffer);
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kAhead - 1>();
    fence_factors();
    wait_products<kPending<kChannels>>();  // of the buffer that is filled next
    __syncthreads();
    const int buffer = step % kSteps;
    const uint64_t a = factor(left + (buffer * kTilePixels + first_row) * kPitch);
    const uint64_t b = factor(right + buffer * kChannels * kPitch);
    fence_sums();
#pragma unroll
    for (int k = 0; k < kFactorLine / 32; ++k) {
      begin_product<T, kChannels, false>(sum, a + k * kNextProduct<false>, b + k * kNextProduct<false>);
    }
    commit_products();
    begin_copies((step + kAhead) % kSteps);
  }
  wait_async<0>();
  wait_products<0>();

  const int lane = thread % 32, row = first_row + thread % kGroupThreads / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float pixel[kChannels / 8][2];
#pragma unroll
    for (int n = 0; n < kChannels / 4; ++n) pixel[n / 2][n % 2] = sum[n / 2 * 4 + half * 2 + n % 2];
    store_pixel<T>(p, result_start(p, items, place, row + half * 8), place.channel, lane % 4, pixel);
  }
#else
  __trap();
#endif
}

// For 16 steps of k, from shared memory at 128 bytes a cycle.
template <int kChannels>
constexpr int kCycles = kChannels == 64    ? 112
                        : kChannels == 128 ? 160
                                           : 256;

template <typename T, int kChannels>
cudaError_t launch_tiles(const Conv2dImplicitParams& p, const ImplicitItems& items, cudaStream_t stream) {
  const LaunchShape shape{static_cast<unsigned>(items.blocks()), kBlockThreads,
                          kBuffers<kChannels> * (kTilePixels + kChannels) * kFactorLine};
  return launch(implicit_gemm_warpgroup<T, kChannels>, shape, stream, p, items);
}

template <typename T>
cudaError_t launch_best_tiles(const Conv2dImplicitParams& p, cudaStream_t stream) {
  constexpr int32_t kStep = kFactorLine / sizeof(T);
  const ImplicitItems narrow(p, kTilePixels, 64, kStep), wide(p, kTilePixels, 128, kStep),
      widest(p, kTilePixels, 256, kStep);
  if (narrow.blocks() == 0) return cudaErrorInvalidValue;
  const int64_t cycles = computed_cycles(wide, kCycles<128>);
  // A block alone on its multiprocessor has nothing to do while it begins and stores: of long products a
  // small part.
  const int64_t steps = int64_t{widest.channel_steps} * p.h.kernel * p.w.kernel /
                        (int64_t{widest.row_phases} * widest.column_phases);
  if (steps >= 8 && computed_cycles(widest, kCycles<256>) < cycles) {
    return launch_tiles<T, 256>(p, widest, stream);
  }
  return cycles < computed_cycles(narrow, kCycles<64>) ? launch_tiles<T, 128>(p, wide, stream)
                                                       : launch_tiles<T, 64>(p, narrow, stream);
}

}  // namespace

bool conv2d_implicit_takes_warpgroups(DType dtype) {
  return (dtype == DType::kBFloat16 || dtype == DType::kFloat16) && device_has_products();
}

cudaError_t launch_conv2d_implicit_warpgroup(const Conv2dImplicitParams& p, DType dtype,
                                             cudaStream_t stream) {
  return dtype == DType::kBFloat16 ? launch_best_tiles<BFloat16>(p, stream)
                                   : launch_best_tiles<Float16>(p, stream);
}

}  // namespace d2lfast::cuda
