#include "conv2d_depthwise.cuh"

#include "conv2d_depthwise.h"

namespace d2lfast::cuda {
namespace {

// Up to 168 registers a thread: the sums, and all loads of a pixel under way.
constexpr int kWeightThreads = 128, kWeightBlocks = 3;
constexpr int kLanes = 8, kRows = kWeightThreads / kLanes, kWarps = kWeightThreads / 32;

struct PixelItems {
  int32_t count;  // output pixels of all images
  Divider<int32_t> columns, rows;
};

// The sums of `kTaps` taps from tap0 on are a block's: the threads of a channel in a warp, then the warps,
// are added in their order.
template <typename A, int kTaps, int V, int kLaneCount>
__device__ __forceinline__ void add_taps(const Conv2dWeightParams& p, A (&sum)[kTaps][V], int32_t tap0,
                                         const SharedPointer<A> parts) {
  constexpr int kSums = kTaps * V;
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % kLaneCount, taps = p.h.kernel * p.w.kernel;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int mask = 16; mask >= kLaneCount; mask /= 2) sum[i][v] += shuffle_xor(sum[i][v], mask);
      if (threadIdx.x % 32 < kLaneCount) parts[(warp * kSums + i * V + v) * kLaneCount + lane] = sum[i][v];
    }
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < kSums * kLaneCount; i += kWeightThreads) {
    const int32_t tap = tap0 + i / kLaneCount / V;
    const int32_t target =
        (static_cast<int32_t>(blockIdx.x) * kLaneCount + i % kLaneCount) * V + i / kLaneCount % V;
    if (tap >= taps || target >= p.groups) continue;
    A all = parts[i];
    for (int w = 1; w < kWarps; ++w) all += parts[w * kSums * kLaneCount + i];
    static_cast<A*>(p.partial)[(static_cast<int64_t>(blockIdx.y) * p.groups + target) * taps + tap] = all;
  }
}

// channels_last. Block (x, s): the taps of kLanes times 16 bytes of channels, over part s of the output
// pixels of all images.
template <typename T, int V>
__global__ void __launch_bounds__(kWeightThreads, kWeightBlocks)
    depthwise_weight(const Conv2dWeightParams p, const PixelItems items) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, parts, kWarps * kTapTile * V * kLanes);
  const int32_t taps = p.h.kernel * p.w.kernel, lane = threadIdx.x % kLanes;
  const int32_t channel = (static_cast<int32_t>(blockIdx.x) * kLanes + lane) * V;
  const bool inside = channel < p.groups;
  const int32_t begin = static_cast<int32_t>(int64_t{items.count} * blockIdx.y / p.splits);
  const int32_t end = static_cast<int32_t>(int64_t{items.count} * (blockIdx.y + 1) / p.splits);
  for (int32_t tap0 = 0; tap0 < taps; tap0 += kTapTile) {
    A sum[kTapTile][V] = {};
    const TapTile tap(p, tap0);
    for (int32_t at = begin + static_cast<int32_t>(threadIdx.x) / kLanes; at < (inside ? end : 0);
         at += kRows) {
      int32_t rest = at;
      const int32_t column = take_remainder(rest, items.columns) * p.w.stride;
      const int32_t row = take_remainder(rest, items.rows) * p.h.stride;
      const auto gradient = Lanes<T, V>::read(static_cast<const T*>(p.gradient) +
                                              static_cast<int64_t>(at) * p.groups + channel);
      const T* source = static_cast<const T*>(p.source) +
                        static_cast<int64_t>(rest) * p.h.source * p.w.source * p.groups + channel;
      Lanes<T, V> value[kTapTile];
#pragma unroll
      for (int i = 0; i < kTapTile; ++i) {
        const int32_t h = row + tap.down[i], w = column + tap.right[i];
        value[i] = Lanes<T, V>::of(T{});
        if (h >= 0 && h < p.h.source && w >= 0 && w < p.w.source) {
          value[i] = Lanes<T, V>::read(source + (h * p.w.source + w) * p.groups);
        }
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A g = to_compute(gradient.lane(v));
#pragma unroll
        for (int i = 0; i < kTapTile; ++i) sum[i][v] = fma(g, to_compute(value[i].lane(v)), sum[i][v]);
      }
    }
    add_taps<A, kTapTile, V, kLanes>(p, sum, tap0, parts);
  }
}

template <int S>
constexpr int kGradientRows = S == 1 ? 2 : 1;

template <bool kInside, typename T, int S, int kRows>
__device__ __forceinline__ void correlate_pixels(const Conv2dWeightParams& p, const T* source,
                                                 const T* gradient, int32_t row, int32_t column,
                                                 Compute<T> (&sum)[9][kLaneChannels<T>]) {
  constexpr int K = 3, V = kLaneChannels<T>, C = kColumns<T>, kReach = PixelRows<T, K, S>::kReach;
  gradient = computed_once(gradient);
  PixelRows<T, K, S> rows(source, p.groups, p.h, p.w, row, column);
  Lanes<T, V> grad[kRows][C];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      grad[r][c] = Lanes<T, V>::of(T{});
      if (kInside || (row + r < p.h.result && column + c < p.w.result)) {
        grad[r][c] = Lanes<T, V>::read(gradient + c * p.groups);
      }
    }
    gradient = computed_once(gradient + p.w.result * p.groups);
  }
#pragma unroll
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    Lanes<T, V> value[kReach];
    rows.template next<kInside>(value);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Compute<T> x[kReach];
#pragma unroll
      for (int j = 0; j < kReach; ++j) x[j] = number(value[j], v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int k = i - r * S;
        if (k < 0 || k >= K) continue;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const Compute<T> g = number(grad[r][c], v);
#pragma unroll
          for (int j = 0; j < K; ++j) sum[k * K + j][v] = fma(g, x[c * S + j], sum[k * K + j][v]);
        }
      }
    }
  }
}

// channels_last, 3x3. Block (x, s): kTileLanes times 8 or 16 bytes of channels, over part s of the tiles of
// all images.
constexpr int kTileLanes = 16;

template <typename T, int S>
__global__ void __launch_bounds__(kWeightThreads, S == 1 ? kWeightBlocks : 2)
    depthwise_weight_pixels(const Conv2dWeightParams p, const DepthwiseTiles tiles) {
  using A = Compute<T>;
  constexpr int K = 3, V = kLaneChannels<T>, kRows = kGradientRows<S>;
  D2LFAST_SHARED(A, parts, kWarps * K * K * V * kTileLanes);
  const int32_t lane = threadIdx.x % kTileLanes;
  const int32_t channel = (static_cast<int32_t>(blockIdx.x) * kTileLanes + lane) * V;
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * tiles.part;
  const int32_t end = least(begin + tiles.part, tiles.count);
  A sum[K * K][V] = {};
  for (int32_t item = begin + static_cast<int32_t>(threadIdx.x) / kTileLanes;
       item < (channel < p.groups ? end : 0); item += kWeightThreads / kTileLanes) {
    int32_t image = item;
    const int32_t column = take_remainder(image, tiles.across) * kColumns<T>;
    const int32_t row = take_remainder(image, tiles.down) * kRows;
    const T* source = static_cast<const T*>(p.source) +
                      static_cast<int64_t>(image) * p.h.source * p.w.source * p.groups + channel;
    const T* gradient = static_cast<const T*>(p.gradient) +
                        ((static_cast<int64_t>(image) * p.h.result + row) * p.w.result + column) * p.groups +
                        channel;
    const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
    const bool inside = row + kRows <= p.h.result && column + kColumns<T> <= p.w.result && top >= 0 &&
                        top + (kRows - 1) * S + K <= p.h.source && left >= 0 &&
                        left + (kColumns<T> - 1) * S + K <= p.w.source;
    if (inside) {
      correlate_pixels<true, T, S, kRows>(p, source, gradient, row, column, sum);
    } else {
      correlate_pixels<false, T, S, kRows>(p, source, gradient, row, column, sum);
    }
  }
  add_taps<A, K * K, V, kTileLanes>(p, sum, 0, parts);
}

constexpr int kPlaneThreads = 64, kPlaneBlocks = 8;
// Rows of a tile, beside the sums of the taps.
template <typename T, int K, int S>
constexpr int kWeightRows = K == 7   ? 1
                            : K == 5 ? kPlaneRows<T, K, S> / 2
                                     : kPlaneRows<T, K, S>;

template <bool kWide, typename T, int K, int S, int kRows>
__device__ __forceinline__ void correlate_plane(const Conv2dWeightParams& p, int64_t plane, int32_t row,
                                                int32_t column, Compute<T> (&sum)[K][K]) {
  PlaneRows<T, K, S> source(p.source, plane, p.h, p.w, row, column);
  const T* gradient = static_cast<const T*>(p.gradient) + (plane * p.h.result + row) * p.w.result + column;
  const int32_t rows = p.h.result - row, columns = least(p.w.result - column, kColumns<T>);
  Lanes<T, kColumns<T>> grad[kRows];
#pragma unroll
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    Compute<T> x[PlaneRow<T, K, S>::kReach];
    source.template next<kWide>(x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = i - r * S;
      if (k < 0 || k >= K) continue;
      if (k == 0)
        grad[r] = read_columns<T>(gradient + int64_t{r} * p.w.result, kWide, r < rows ? columns : 0);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) {
        const Compute<T> g = number(grad[r], c);
#pragma unroll
        for (int j = 0; j < K; ++j) sum[k][j] = fma(x[c * S + j], g, sum[k][j]);
      }
    }
  }
}

// NCHW. Block (c, s): the taps of channel c, over part s of the tiles of all images.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kPlaneThreads, K == 7 ? 4 : kPlaneBlocks)
    depthwise_weight_planes(const Conv2dWeightParams p, const DepthwiseTiles tiles) {
  using A = Compute<T>;
  constexpr int kRows = kWeightRows<T, K, S>, kBlockWarps = kPlaneThreads / 32;
  D2LFAST_SHARED(A, parts, kBlockWarps * K * K);
  const int32_t channel = blockIdx.x;
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * tiles.part;
  const int32_t end = least(begin + tiles.part, tiles.count);
  A sum[K][K] = {};
  for (int32_t item = begin + static_cast<int32_t>(threadIdx.x); item < end; item += kPlaneThreads) {
    int32_t image = item;
    const int32_t column = take_remainder(image, tiles.across) * kColumns<T>;
    const int32_t row = take_remainder(image, tiles.down) * kRows;
    const int64_t plane = static_cast<int64_t>(image) * p.groups + channel;
    if (tiles.wide_source) {
      correlate_plane<kVectors<T>, T, K, S, kRows>(p, plane, row, column, sum);
    } else {
      correlate_plane<false, T, K, S, kRows>(p, plane, row, column, sum);
    }
  }
  // The lanes of a warp, then the warps, are added in their order.
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) sum[k][j] += shuffle_xor(sum[k][j], mask);
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32 * (K * K) + k * K + j] = sum[k][j];
    }
  }
  __syncthreads();
  if (threadIdx.x >= K * K) return;
  A all = parts[threadIdx.x];
  for (int w = 1; w < kBlockWarps; ++w) all += parts[w * (K * K) + static_cast<int>(threadIdx.x)];
  static_cast<A*>(
      p.partial)[(static_cast<int64_t>(blockIdx.y) * p.groups + channel) * (K * K) + threadIdx.x] = all;
}

// Whole rounds of a block's threads, or of a warp.
int32_t part_of(int64_t count, int32_t parts, int32_t round) {
  const int64_t rounds = (count + round - 1) / round;
  return static_cast<int32_t>((rounds + parts - 1) / parts * round);
}

template <typename T, int S>
bool launch_weight_pixels(const Conv2dWeightParams& p, cudaStream_t stream, cudaError_t& error) {
  constexpr int V = kLaneChannels<T>;
  const bool fits = p.h.kernel == 3 && p.w.kernel == 3 && p.h.stride == S && p.w.stride == S &&
                    p.h.dilation == 1 && p.w.dilation == 1 && p.groups % V == 0 &&
                    aligned(p.source, V * sizeof(T)) && aligned(p.gradient, V * sizeof(T));
  DepthwiseTiles tiles;
  if (!fits || !tiles_of<T>(p.batch, 1, p.h, p.w, kGradientRows<S>, tiles)) return false;
  tiles.part = part_of(tiles.count, p.splits, kWeightThreads / kTileLanes);
  const auto lanes = static_cast<unsigned>((p.groups / V - 1) / kTileLanes + 1);
  error = launch(depthwise_weight_pixels<T, S>, {{lanes, static_cast<unsigned>(p.splits)}, kWeightThreads},
                 stream, p, tiles);
  return true;
}

template <typename T, int K, int S>
bool launch_weight_planes(const Conv2dWeightParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || p.h.stride != S) return false;
  DepthwiseTiles tiles;
  if (!tiles_of<T>(p.batch, 1, p.h, p.w, kWeightRows<T, K, S>, tiles)) return false;
  tiles.wide_source = tiles.wide_result = wide_source<T, K>(p.source, p.w) && wide_result<T>(p.gradient, p.w);
  tiles.part = part_of(tiles.count, p.splits, 32);
  const LaunchShape shape{{static_cast<unsigned>(p.groups), static_cast<unsigned>(p.splits)}, kPlaneThreads};
  error = launch(depthwise_weight_planes<T, K, S>, shape, stream, p, tiles);
  return true;
}

}  // namespace

bool launch_conv2d_depthwise_weight(const Conv2dWeightParams& p, DType dtype, cudaStream_t stream,
                                    cudaError_t& error) {
  if (p.source_channels != 1 || p.result_channels != 1) return false;
  bool taken = false;
  const cudaError_t failure = with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kVectorWidth<T>;
    if (!p.channels_last) {
      const bool square = p.h.stride == p.w.stride && p.h.dilation == 1 && p.w.dilation == 1;
      taken = square && (launch_weight_planes<T, 3, 1>(p, stream, error) ||
                         launch_weight_planes<T, 3, 2>(p, stream, error) ||
                         launch_weight_planes<T, 5, 1>(p, stream, error));
      if constexpr (!std::is_same_v<T, double>) {  // which does not fit into the registers
        taken = taken || (square && (launch_weight_planes<T, 5, 2>(p, stream, error) ||
                                     launch_weight_planes<T, 7, 1>(p, stream, error)));
      }
    } else if (launch_weight_pixels<T, 1>(p, stream, error) || launch_weight_pixels<T, 2>(p, stream, error)) {
      taken = true;
    } else if (p.groups % V == 0 && aligned(p.source, 16) && aligned(p.gradient, 16) &&
               p.batch * p.h.result * p.w.result <= kMaxIndex32) {
      const PixelItems items{static_cast<int32_t>(p.batch * p.h.result * p.w.result),
                             Divider<int32_t>(p.w.result), Divider<int32_t>(p.h.result)};
      const int32_t tiles = (p.groups / V + kLanes - 1) / kLanes;
      const LaunchShape shape{{static_cast<unsigned>(tiles), static_cast<unsigned>(p.splits)},
                              kWeightThreads};
      error = launch(depthwise_weight<T, V>, shape, stream, p, items);
      taken = true;
    }
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

}  // namespace d2lfast::cuda
