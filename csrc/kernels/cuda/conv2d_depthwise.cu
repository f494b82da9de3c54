#include "conv2d_depthwise.h"

#include <algorithm>
#include <type_traits>

#include "conv2d_element.cuh"
#include "device.cuh"

// One channel a group and as many results. A thread takes a strip of results: down a column in NCHW, where
// neighbouring threads are neighbouring columns, along a row in channels_last, where they are neighbouring
// 16 bytes of channels. Each source element that the strip meets is read and converted once.
namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;  // of a multiprocessor at least: up to 128 registers a thread

template <int V, int K>
constexpr int kStrip = V == 1  ? 8
                       : K < 7 ? 4
                               : 3;  // what 128 registers hold

// Item: in NCHW columns fastest, then strips of rows, then planes; in channels_last groups of channels
// fastest, then strips of columns, rows, images.
struct StripItems {
  int32_t count;
  Divider<int32_t> channels, strips, across;
};

// V == 1: NCHW. A transposed convolution of stride 1 comes with the padding of the equal forward one, and
// takes the taps from the last to the first.
template <typename T, int V, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise(const Conv2dDirectParams p, const StripItems items) {
  using A = Compute<T>;
  constexpr bool kPlanar = V == 1;
  constexpr int kResults = kStrip<V, K>, kReach = (kResults - 1) * S + K;
  const Conv2dAxis& along = kPlanar ? p.h : p.w;
  const Conv2dAxis& across = kPlanar ? p.w : p.h;
  const int32_t pixel = kPlanar ? 1 : p.groups;
  const int32_t along_step = kPlanar ? p.w.source : pixel, across_step = kPlanar ? 1 : p.w.source * pixel;
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    int32_t rest = item, channel, place;
    if constexpr (kPlanar) {
      place = take_remainder(rest, items.across);
    } else {
      channel = take_remainder(rest, items.channels) * V;
    }
    const int32_t strip = take_remainder(rest, items.strips) * kResults;
    if constexpr (kPlanar) {
      int32_t plane = rest;
      channel = take_remainder(plane, items.channels);
    } else {
      place = take_remainder(rest, items.across);
    }
    const int64_t plane = kPlanar ? rest : static_cast<int64_t>(rest) * p.groups;
    const T* source =
        static_cast<const T*>(p.source) + plane * p.h.source * p.w.source + (kPlanar ? 0 : channel);
    const int32_t tap_step = p.transposed ? -pixel : pixel;
    const T* weight = static_cast<const T*>(p.weight) + (kPlanar ? channel * (K * K) : channel) +
                      (p.transposed ? (K * K - 1) * pixel : 0);
    const int32_t start = strip * S - along.pad, before = place * S - across.pad;
    const T* corner =
        source + static_cast<int64_t>(start) * along_step + static_cast<int64_t>(before) * across_step;
    const T* line[kReach];  // NCHW: rows, in which the taps of a column are at constant distances
    bool inside[kReach];
#pragma unroll
    for (int i = 0; i < kReach; ++i) {
      line[i] = corner + static_cast<int64_t>(i) * along_step;
      inside[i] = static_cast<uint32_t>(start + i) < static_cast<uint32_t>(along.source);
    }
    A sum[kResults][V] = {};
#pragma unroll
    for (int j = 0; j < K; ++j) {
      if (static_cast<uint32_t>(before + j) >= static_cast<uint32_t>(across.source)) continue;
      const T* across_line = corner + static_cast<int64_t>(j) * across_step;
      Lanes<T, V> value[kReach];
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        value[i] = Lanes<T, V>::of(T{});
        if (inside[i]) value[i] = Lanes<T, V>::read(kPlanar ? line[i] + j : across_line + i * along_step);
      }
      Lanes<T, V> factor[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        factor[k] = Lanes<T, V>::read(weight + (kPlanar ? k * K + j : j * K + k) * tap_step);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A x[kReach];
#pragma unroll
        for (int i = 0; i < kReach; ++i) x[i] = to_compute(value[i].lane(v));
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const A w = to_compute(factor[k].lane(v));
#pragma unroll
          for (int r = 0; r < kResults; ++r) sum[r][v] = fma(x[r * S + k], w, sum[r][v]);
        }
      }
    }
    A bias[V];
#pragma unroll
    for (int v = 0; v < V; ++v) bias[v] = bias_of<T>(p.bias, channel + v);
    const int32_t step = kPlanar ? p.w.result : pixel;
    int64_t to =
        kPlanar ? (plane * p.h.result + strip) * p.w.result + place
                : ((static_cast<int64_t>(rest) * p.h.result + place) * p.w.result + strip) * pixel + channel;
#pragma unroll
    for (int r = 0; r < kResults; ++r, to += step) {
      if (strip + r >= along.result) break;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[r][v] += bias[v];
      if (p.residual != nullptr) {
        const auto added = Lanes<T, V>::read(static_cast<const T*>(p.residual) + to);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[r][v] += to_compute(added.lane(v));
      }
      activate_all(sum[r], p.activation);
      Vector<T, V> done;
#pragma unroll
      for (int v = 0; v < V; ++v) done.lane[v] = from_compute<T>(sum[r][v]);
      store(static_cast<T*>(p.result) + to, done);
    }
  }
}

// Up to 168 registers a thread: the sums, and all loads of a pixel under way.
constexpr int kWeightThreads = 128, kWeightBlocks = 3;
constexpr int kLanes = 8, kRows = kWeightThreads / kLanes, kWarps = kWeightThreads / 32;

struct PixelItems {
  int32_t count;  // output pixels of all images
  Divider<int32_t> columns, rows;
};

// channels_last. Block (x, s): the taps of kLanes times 16 bytes of channels, over part s of the output
// pixels of all images.
template <typename T, int V>
__global__ void __launch_bounds__(kWeightThreads, kWeightBlocks)
    depthwise_weight(const Conv2dWeightParams p, const PixelItems items) {
  using A = Compute<T>;
  constexpr int kSums = kTapTile * V;
  D2LFAST_SHARED(A, parts, kWarps * kSums * kLanes);
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
    // The rows of a warp, then the warps, are added in their order.
    const int32_t warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTapTile; ++i) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int mask = 16; mask >= kLanes; mask /= 2) sum[i][v] += shuffle_xor(sum[i][v], mask);
        if (threadIdx.x % 32 < kLanes) parts[(warp * kSums + i * V + v) * kLanes + lane] = sum[i][v];
      }
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < kSums * kLanes; i += kWeightThreads) {
      const int32_t tap = tap0 + i / kLanes / V;
      const int32_t target = (static_cast<int32_t>(blockIdx.x) * kLanes + i % kLanes) * V + i / kLanes % V;
      if (tap >= taps || target >= p.groups) continue;
      A all = parts[i];
      for (int w = 1; w < kWarps; ++w) all += parts[w * kSums * kLanes + i];
      static_cast<A*>(p.partial)[(static_cast<int64_t>(blockIdx.y) * p.groups + target) * taps + tap] = all;
    }
  }
}

// NCHW. Block (c, s): the taps of channel c, over part s of the strips of all images.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise_weight_strips(const Conv2dWeightParams p, const StripItems items) {
  using A = Compute<T>;
  constexpr int kResults = kStrip<1, K>, kReach = (kResults - 1) * S + K, kBlockWarps = kThreads / 32;
  D2LFAST_SHARED(A, parts, kBlockWarps * K * K);
  const int32_t channel = blockIdx.x;
  const int32_t begin = static_cast<int32_t>(int64_t{items.count} * blockIdx.y / p.splits);
  const int32_t end = static_cast<int32_t>(int64_t{items.count} * (blockIdx.y + 1) / p.splits);
  A sum[K][K] = {};
  for (int32_t item = begin + static_cast<int32_t>(threadIdx.x); item < end; item += kThreads) {
    int32_t rest = item;
    const int32_t column = take_remainder(rest, items.across);
    const int32_t strip = take_remainder(rest, items.strips) * kResults;
    const int64_t plane = static_cast<int64_t>(rest) * p.groups + channel;
    const int32_t start = strip * S - p.h.pad, before = column * S - p.w.pad;
    const T* gradient =
        static_cast<const T*>(p.gradient) + (plane * p.h.result + strip) * p.w.result + column;
    const T* corner = static_cast<const T*>(p.source) + plane * p.h.source * p.w.source +
                      static_cast<int64_t>(start) * p.w.source + before;
    A g[kResults];
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
      g[r] = strip + r < p.h.result ? to_compute(gradient[static_cast<int64_t>(r) * p.w.result]) : A(0);
    }
    const T* line[kReach];
    bool inside[kReach];
#pragma unroll
    for (int i = 0; i < kReach; ++i) {
      line[i] = corner + static_cast<int64_t>(i) * p.w.source;
      inside[i] = static_cast<uint32_t>(start + i) < static_cast<uint32_t>(p.h.source);
    }
#pragma unroll
    for (int j = 0; j < K; ++j) {
      if (static_cast<uint32_t>(before + j) >= static_cast<uint32_t>(p.w.source)) continue;
      T value[kReach];
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        value[i] = T{};
        if (inside[i]) value[i] = line[i][j];
      }
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        const A x = to_compute(value[i]);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const int r = (i - k) / S;
          if (i >= k && r * S + k == i && r < kResults) sum[k][j] = fma(g[r], x, sum[k][j]);
        }
      }
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

template <typename T, int V, int K, int S>
bool launch_strips(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || (p.transposed ? 1 : p.h.stride) != S) return false;
  const Conv2dAxis &along = V == 1 ? p.h : p.w, &across = V == 1 ? p.w : p.h;
  const int64_t strips = (along.result + kStrip<V, K> - 1) / kStrip<V, K>, channels = p.groups / V;
  const int64_t count = p.batch * channels * strips * across.result;
  if (count > kMaxIndex32) return false;
  const StripItems items{static_cast<int32_t>(count), Divider<int32_t>(channels), Divider<int32_t>(strips),
                         Divider<int32_t>(across.result)};
  error = launch(depthwise<T, V, K, S>, {blocks_for(count), kThreads}, stream, p, items);
  return true;
}

template <typename T, int V>
bool launch_windows(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  return launch_strips<T, V, 3, 1>(p, stream, error) || launch_strips<T, V, 3, 2>(p, stream, error) ||
         launch_strips<T, V, 5, 1>(p, stream, error) || launch_strips<T, V, 5, 2>(p, stream, error) ||
         launch_strips<T, V, 7, 1>(p, stream, error);
}

}  // namespace

bool launch_conv2d_depthwise(Conv2dDirectParams p, DType dtype, cudaStream_t stream, cudaError_t& error) {
  if (p.source_channels != 1 || p.result_channels != 1 || p.h.stride != p.w.stride || p.h.dilation != 1 ||
      p.w.dilation != 1 || (p.transposed && p.h.stride != 1)) {
    return false;
  }
  if (p.transposed) {
    p.h.pad = p.h.kernel - 1 - p.h.pad;
    p.w.pad = p.w.kernel - 1 - p.w.pad;
  }
  bool taken = false;
  const cudaError_t failure = with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kVectorWidth<T>;
    if (!p.channels_last) {
      taken = launch_windows<T, 1>(p, stream, error);
    } else if (p.groups % V == 0 && aligned(p.source, 16) && aligned(p.weight, 16) && aligned(p.result, 16) &&
               aligned(p.residual, 16)) {
      taken = launch_windows<T, V>(p, stream, error);
    }
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

namespace {

template <typename T, int K, int S>
bool launch_weight_strips(const Conv2dWeightParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || p.h.stride != S) return false;
  const int64_t strips = (p.h.result + kStrip<1, K> - 1) / kStrip<1, K>;
  const int64_t count = p.batch * strips * p.w.result;
  if (count > kMaxIndex32) return false;
  const StripItems items{static_cast<int32_t>(count), Divider<int32_t>(1), Divider<int32_t>(strips),
                         Divider<int32_t>(p.w.result)};
  const LaunchShape shape{{static_cast<unsigned>(p.groups), static_cast<unsigned>(p.splits)}, kThreads};
  error = launch(depthwise_weight_strips<T, K, S>, shape, stream, p, items);
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
      taken = square && (launch_weight_strips<T, 3, 1>(p, stream, error) ||
                         launch_weight_strips<T, 3, 2>(p, stream, error) ||
                         launch_weight_strips<T, 5, 1>(p, stream, error));
      if constexpr (!std::is_same_v<T, double>) {  // which does not fit into the registers
        taken = taken || (square && (launch_weight_strips<T, 5, 2>(p, stream, error) ||
                                     launch_weight_strips<T, 7, 1>(p, stream, error)));
      }
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
