#include "conv2d_implicit.cuh"

#include <optional>
#include <type_traits>

#include "conv2d_implicit_warpgroup.h"
#include "warpgroup.cuh"

// Each warpgroup has 64 rows of a tile and all of its columns, in steps of 128 bytes along k. Rows are pixels
// and columns 64, 128 or 256 channels, with two warpgroups; or, since columns share what is read of the rows,
// 64 channels are the rows and 256 pixels the columns. Blocks run by twos on a multiprocessor, so that one
// multiplies while the other waits at its barrier; one of 256 channels fills it, and begins a step's products
// before those of the last are done.
namespace d2lfast::cuda {
namespace {

template <int kTilePixels, int kTileChannels, bool kChannelRows>
struct Tile {
  static constexpr int kPixels = kTilePixels, kChannels = kTileChannels;
  static constexpr bool kTransposed = kChannelRows;
  static constexpr int kRows = kTransposed ? kChannels : kPixels;
  static constexpr int kColumns = kTransposed ? kPixels : kChannels;
  static constexpr int kGroups = kRows / 64, kThreads = kGroups * kGroupThreads;
  static constexpr bool kAlone = kChannels == 256;
  static constexpr int kBuffers = kAlone ? 4 : kTransposed ? 2 : 3;  // steps in shared memory
  static constexpr size_t kSharedBytes = size_t{kBuffers} * (kPixels + kChannels) * kFactorLine;
  // For 16 steps of k, of which shared memory gives each warpgroup its factors and takes the next ones, at
  // 128 bytes a cycle.
  static constexpr int kCycles = (kGroups * (64 + kColumns) + kRows + kColumns) * 32 / 128;
};
using Narrow = Tile<128, 64, false>;
using Wide = Tile<128, 128, false>;
using Widest = Tile<128, 256, false>;
using Transposed = Tile<256, 64, true>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
// Sums with a channel's pixels in a thread, in shared memory for threads with a pixel's channels: without
// conflicts of banks, of which a pixel is 4 away from the last, by single channels and by eights.
constexpr int kStagedPixel = 64 + 4;
__device__ __forceinline__ constexpr int staged_channel(int channel) { return channel ^ channel / 32 * 4; }

template <typename T, int V, typename Tile>
__device__ __forceinline__ void store_staged(const Conv2dImplicitParams& p, const ImplicitPlace& place,
                                             const SharedPointer<float> sums,
                                             const SharedPointer<int64_t> starts) {
  constexpr int kPieces = Tile::kChannels / V, kPixelsAtOnce = Tile::kThreads / kPieces, kAtOnce = 4;
  constexpr int kRead = V < 4 ? V : 4;
  const int thread = static_cast<int>(threadIdx.x), channel = thread % kPieces * V;
  if (place.channel + channel >= p.result_channels) return;
  for (int first = thread / kPieces; first < Tile::kPixels; first += kAtOnce * kPixelsAtOnce) {
    int64_t to[kAtOnce];
    float own[kAtOnce][V];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t start = starts[first + i * kPixelsAtOnce];
      to[i] = start < 0 ? -1 : start + place.channel + channel;
      const auto residual = start < 0 ? Vector<T, V>{} : residual_of<V, T>(p.residual, to[i]);
#pragma unroll
      for (int n = 0; n < V; n += kRead) {
        const int at = (first + i * kPixelsAtOnce) * kStagedPixel + staged_channel(channel + n);
        const auto part = load_shared<kRead>(sums + at);
#pragma unroll
        for (int m = 0; m < kRead; ++m) own[i][n + m] = part.lane[m] + to_compute(residual.lane[n + m]);
      }
    }
    activate_in_turns<kAtOnce * V, 4>(&own[0][0], p.activation);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (to[i] >= 0) store_rounded<T, V>(p, to[i], own[i]);
    }
  }
}

template <typename T, typename Tile>
__device__ __forceinline__ void store_transposed(const Conv2dImplicitParams& p, const ImplicitPlace& place,
                                                 const SharedPointer<int64_t> starts,
                                                 const float (&sum)[Tile::kColumns / 2]) {
  static_assert(Tile::kPixels * kStagedPixel * sizeof(float) <= Tile::kSharedBytes);
  const auto sums = sum_memory<T>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = thread / 32 * 16 + lane / 4 + half * 8;
    const int32_t channel = place.channel + row;
    const float bias = channel < p.result_channels ? bias_of<T>(p.bias, channel) : 0;
    const auto to = sums + (lane % 4 * 2 * kStagedPixel + staged_channel(row));
#pragma unroll
    for (int n = 0; n < Tile::kColumns / 4; ++n) {
      to[(n / 2 * 8 + n % 2) * kStagedPixel] = sum[n / 2 * 4 + half * 2 + n % 2] + bias;
    }
  }
  __syncthreads();
  if (p.result_channels % 8 == 0) {
    store_staged<T, 8, Tile>(p, place, sums, starts);
  } else {
    store_staged<T, 1, Tile>(p, place, sums, starts);
  }
}

#endif

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kAlone ? 1 : 2)
    implicit_gemm_warpgroup(const Conv2dImplicitParams p, const ImplicitItems items) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
  using Copies = ImplicitCopies<T, Tile::kThreads, Tile::kPixels, Tile::kChannels, kFactorLine, int32_t>;
  constexpr int kPitch = kFactorLine / sizeof(T), kPiece = 16 / sizeof(T);
  constexpr int kPending = Tile::kAlone ? 1 : 0;  // steps whose products may be under way at a barrier
  constexpr int kSteps = Tile::kBuffers, kAhead = kSteps - 1 - kPending;
  constexpr int kPixels = Tile::kPixels * kPitch, kChannels = Tile::kChannels * kPitch;  // elements
  const auto pixels = factor_memory<T>(), channels = pixels + kSteps * kPixels;
  const ImplicitPlace place(items, Tile::kPixels, Tile::kChannels);
  Copies copies(p, items, place);
  // All rows of a thread have the same remainder by 8.
  const int thread = static_cast<int>(threadIdx.x);
  const int own = Copies::row() * kPitch + swizzled_piece(Copies::row(), thread % Copies::kPieces) * kPiece;
  const auto begin_copies = [&](int buffer) {
    copies.begin(pixels + buffer * kPixels + own, channels + buffer * kChannels + own, kPitch);
  };

  const int first_row = thread / kGroupThreads * 64;
  float sum[Tile::kColumns / 2] = {};
  const int32_t steps = copies.steps();
  for (int buffer = 0; buffer < kAhead; ++buffer) begin_copies(buffer);
  pin_sums(sum);
  for (int32_t step = 0; step < steps; ++step) {
    wait_async<kAhead - 1>();
    fence_factors();
    wait_products<kPending>();  // of the buffer that is filled next
    __syncthreads();
    const int buffer = step % kSteps;
    const uint64_t of_pixels =
        factor(pixels + buffer * kPixels + (Tile::kTransposed ? 0 : first_row * kPitch));
    const uint64_t of_channels = factor(channels + buffer * kChannels);
    const uint64_t a = Tile::kTransposed ? of_channels : of_pixels;
    const uint64_t b = Tile::kTransposed ? of_pixels : of_channels;
    fence_sums();
#pragma unroll
    for (int k = 0; k < kFactorLine / 32; ++k) {
      begin_product<T, Tile::kColumns, false>(sum, a + k * kNextProduct<false>, b + k * kNextProduct<false>);
    }
    commit_products();
    begin_copies((step + kAhead) % kSteps);
  }
  wait_async<0>();
  wait_products<0>();
  pin_sums(sum);

  if constexpr (Tile::kTransposed) {
    D2LFAST_SHARED(int64_t, starts, Tile::kPixels);
    for (int pixel = thread; pixel < Tile::kPixels; pixel += Tile::kThreads) {
      starts[pixel] = result_start(p, items, place, pixel);
    }
    __syncthreads();  // all products are done, of which other warps have read the same factors
    store_transposed<T, Tile>(p, place, starts, sum);
  } else {
    PixelSums<2, Tile::kChannels / 8> pixel;
#pragma unroll
    for (int n = 0; n < Tile::kColumns / 2; ++n) pixel[n / 2 % 2][n / 4][n % 2] = sum[n];
    store_sums<T>(p, items, place, first_row + thread % kGroupThreads / 32 * 16, place.channel, pixel);
  }
#else
  __trap();
#endif
}

// Of the tiles that which takes the fewest cycles.
template <typename T>
class BestTiles {
 public:
  explicit BestTiles(const Conv2dImplicitParams& p) : p_(p) {}

  template <typename Tile>
  void consider(int32_t least_steps = 0) {
    const ImplicitItems items(p_, Tile::kPixels, Tile::kChannels, kFactorLine / sizeof(T));
    const int64_t steps = int64_t{items.channel_steps} * p_.h.kernel * p_.w.kernel /
                          (int64_t{items.row_phases} * items.column_phases);
    // The images that a tile may meet, by distances of 32 bits.
    const int64_t image = int64_t{p_.h.source} * p_.w.source * p_.source_channels;
    const int64_t images = Tile::kPixels / (int64_t{items.rows.divisor} * items.columns.divisor) + 2;
    if (images * image > INT32_MAX) return;
    const int64_t cycles = computed_cycles(items, Tile::kCycles);
    if (items.blocks() == 0 || steps < least_steps || (launch_ != nullptr && cycles >= cycles_)) return;
    cycles_ = cycles;
    launch_ = [](const Conv2dImplicitParams& p, const ImplicitItems& items, cudaStream_t stream) {
      const LaunchShape shape{static_cast<unsigned>(items.blocks()), Tile::kThreads, Tile::kSharedBytes};
      return launch(implicit_gemm_warpgroup<T, Tile>, shape, stream, p, items);
    };
    items_ = items;
  }
  bool launch_best(cudaStream_t stream, cudaError_t& error) const {
    if (launch_ == nullptr) return false;
    error = launch_(p_, *items_, stream);
    return true;
  }

 private:
  const Conv2dImplicitParams& p_;
  int64_t cycles_ = 0;
  std::optional<ImplicitItems> items_;
  cudaError_t (*launch_)(const Conv2dImplicitParams&, const ImplicitItems&, cudaStream_t) = nullptr;
};

template <typename T>
bool launch_best_tiles(const Conv2dImplicitParams& p, cudaStream_t stream, cudaError_t& error) {
  BestTiles<T> tiles(p);
  tiles.template consider<Narrow>();
  tiles.template consider<Wide>();
  tiles.template consider<Transposed>();
  // A block alone on its multiprocessor has nothing to do while it begins and stores: of long products a
  // small part.
  tiles.template consider<Widest>(8);
  return tiles.launch_best(stream, error);
}

}  // namespace

bool conv2d_implicit_takes_warpgroups(DType dtype) {
  return (dtype == DType::kBFloat16 || dtype == DType::kFloat16) && device_has_products();
}

bool launch_conv2d_implicit_warpgroup(const Conv2dImplicitParams& p, DType dtype, cudaStream_t stream,
                                      cudaError_t& error) {
  if (!conv2d_implicit_takes_warpgroups(dtype)) return false;
  return dtype == DType::kBFloat16 ? launch_best_tiles<BFloat16>(p, stream, error)
                                   : launch_best_tiles<Float16>(p, stream, error);
}

}  // namespace d2lfast::cuda
