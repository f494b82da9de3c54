#include "conv2d_depthwise.cuh"

#include "conv2d_depthwise.h"

namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;  // of a multiprocessor at least: up to 128 registers a thread

// Two neighbours of 16 bits in a word.
template <typename T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t word;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  }
#else
  const T pair[] = {from_compute<T>(low), from_compute<T>(high)};
  memcpy(&word, pair, sizeof(word));
#endif
  return word;
}

template <typename T, int V>
__device__ __forceinline__ Lanes<T, V> rounded(const Compute<T> (&numbers)[V]) {
  if constexpr (sizeof(T) == 2) {
    Lanes<T, V> lanes;
#pragma unroll
    for (int v = 0; v < V; v += 2) lanes.word[v / 2] = rounded_pair<T>(numbers[v], numbers[v + 1]);
    return lanes;
  } else {
    return Lanes<T, V>::gather(numbers, 1);
  }
}

// A tile of one row of results meets each row of a large window once: a loop, whose taps registers hold a row
// of.
template <int K, int kRows>
constexpr bool kWhole = K == 3 || kRows > 1;
template <int K, int kRows>
constexpr int kUnrolled = kWhole<K, kRows> ? 64 : 1;
template <int K, int kRows>
constexpr int kFactorRows = kWhole<K, kRows> ? K : 1;

template <bool kWide, typename T, int K, int S, int kRows>
__device__ __forceinline__ void convolve_plane(const Conv2dDirectParams& p, int64_t plane, int32_t channel,
                                               int32_t row, int32_t column,
                                               Compute<T> (&sum)[kRows][kColumns<T>]) {
  PlaneRows<T, K, S> source(p.source, plane, p.h, p.w, row, column);
  const T* weight = static_cast<const T*>(p.weight) + channel * (K * K) + (p.transposed ? K * K - 1 : 0);
  const int32_t tap_step = p.transposed ? -1 : 1;
  Compute<T> factor[kFactorRows<K, kRows>][K];
#pragma unroll kUnrolled < K, kRows>
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    if (i < K) {
#pragma unroll
      for (int j = 0; j < K; ++j) {
        factor[i % kFactorRows<K, kRows>][j] = to_compute(weight[(i * K + j) * tap_step]);
      }
    }
    if constexpr (!kWhole<K, kRows>) assume_global(source.from);
    Compute<T> x[PlaneRow<T, K, S>::kReach];
    source.template next<kWide>(x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = i - r * S;
      if (k < 0 || k >= K) continue;
#pragma unroll
      for (int j = 0; j < K; ++j) {
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c)
          sum[r][c] = fma(x[c * S + j], factor[k % kFactorRows<K, kRows>][j], sum[r][c]);
      }
    }
  }
}

// A transposed convolution of stride 1 comes with the padding of the equal forward one, and takes the taps
// from the last to the first.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise_planes(const Conv2dDirectParams p, const DepthwiseTiles tiles) {
  using A = Compute<T>;
  constexpr int kRows = kPlaneRows<T, K, S>;
  for (int32_t item = first_item<int32_t>(); item < tiles.count; item += grid_width<int32_t>()) {
    int32_t plane = item;
    const int32_t column = take_remainder(plane, tiles.across) * kColumns<T>;
    const int32_t row = take_remainder(plane, tiles.down) * kRows;
    int32_t image = plane;
    const int32_t channel = take_remainder(image, tiles.channels);
    A sum[kRows][kColumns<T>];
    const A bias = bias_of<T>(p.bias, channel);
#pragma unroll
    for (int i = 0; i < kRows * kColumns<T>; ++i) sum[i / kColumns<T>][i % kColumns<T>] = bias;
    if (tiles.wide_source) {
      convolve_plane<kVectors<T>, T, K, S, kRows>(p, plane, channel, row, column, sum);
    } else {
      convolve_plane<false, T, K, S, kRows>(p, plane, channel, row, column, sum);
    }
    const int64_t start = (int64_t{plane} * p.h.result + row) * p.w.result + column;
    const int32_t rows = least(p.h.result - row, kRows), columns = least(p.w.result - column, kColumns<T>);
    const bool wide = tiles.wide_result;
    if (p.residual != nullptr) {
      const T* residual = static_cast<const T*>(p.residual) + start;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto added = read_columns<T>(residual + int64_t{r} * p.w.result, wide, r < rows ? columns : 0);
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) sum[r][c] += number(added, c);
      }
    }
    activate_in_turns<kRows * kColumns<T>, kColumns<T>>(&sum[0][0], p.activation);
    T* result = static_cast<T*>(p.result) + start;
#pragma unroll
    for (int r = 0; r < kRows; ++r, result += p.w.result) {
      if (r >= rows) break;
      const auto done = rounded<T>(sum[r]);
      if (kVectors<T> && wide) {
        done.write(result);
      } else {
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) {
          if (c < columns) result[c] = done.lane(c);
        }
      }
    }
  }
}

// Of the source rows of a tile the vectors that exist, which are all with kInside.
template <bool kInside, typename T, int K, int S, int kRows>
__device__ __forceinline__ void convolve_pixels(const Conv2dDirectParams& p, const T* source, int32_t row,
                                                int32_t column, int32_t channel,
                                                Compute<T> (&sum)[kRows * kColumns<T>][kLaneChannels<T>]) {
  using A = Compute<T>;
  constexpr int V = kLaneChannels<T>, C = kColumns<T>, kReach = PixelRows<T, K, S>::kReach;
  PixelRows<T, K, S> rows(source, p.groups, p.h, p.w, row, column);
  const int32_t tap_step = p.transposed ? -p.groups : p.groups;
  const T* weight =
      computed_once(static_cast<const T*>(p.weight) + channel + (p.transposed ? (K * K - 1) * p.groups : 0));
  Lanes<T, V> factor[kFactorRows<K, kRows>][K];
#pragma unroll kUnrolled < K, kRows>
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    if constexpr (!kWhole<K, kRows>) {
      assume_global(rows.from);
      assume_global(weight);
    }
    if (i < K) {
#pragma unroll
      for (int j = 0; j < K; ++j) {
        factor[i % kFactorRows<K, kRows>][j] = Lanes<T, V>::read(weight + j * tap_step);
      }
      weight = computed_once(weight + K * tap_step);
    }
    Lanes<T, V> value[kReach];
    rows.template next<kInside>(value);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A x[kReach];
#pragma unroll
      for (int j = 0; j < kReach; ++j) x[j] = number(value[j], v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int k = i - r * S;
        if (k < 0 || k >= K) continue;
#pragma unroll
        for (int j = 0; j < K; ++j) {
          const A w = number(factor[k % kFactorRows<K, kRows>][j], v);
#pragma unroll
          for (int c = 0; c < C; ++c) sum[r * C + c][v] = fma(x[c * S + j], w, sum[r * C + c][v]);
        }
      }
    }
  }
}

template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise_pixels(const Conv2dDirectParams p, const DepthwiseTiles tiles) {
  constexpr int V = kLaneChannels<T>, C = kColumns<T>, kRows = kPixelRows<T, K, S>;
  for (int32_t item = first_item<int32_t>(); item < tiles.count; item += grid_width<int32_t>()) {
    int32_t image = item;
    const int32_t channel = take_remainder(image, tiles.channels) * V;
    const int32_t column = take_remainder(image, tiles.across) * C;
    const int32_t row = take_remainder(image, tiles.down) * kRows;
    const T* source = static_cast<const T*>(p.source) +
                      static_cast<int64_t>(image) * p.h.source * p.w.source * p.groups + channel;
    Compute<T> sum[kRows * C][V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Compute<T> bias = bias_of<T>(p.bias, channel + v);
#pragma unroll
      for (int i = 0; i < kRows * C; ++i) sum[i][v] = bias;
    }
    const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
    const bool inside = kWhole<K, kRows> && top >= 0 && top + (kRows - 1) * S + K <= p.h.source &&
                        left >= 0 && left + (C - 1) * S + K <= p.w.source;
    if (inside) {
      convolve_pixels<kWhole<K, kRows>, T, K, S, kRows>(p, source, row, column, channel, sum);
    } else {
      convolve_pixels<false, T, K, S, kRows>(p, source, row, column, channel, sum);
    }
    const int64_t start =
        ((static_cast<int64_t>(image) * p.h.result + row) * p.w.result + column) * p.groups + channel;
    const int32_t rows = p.h.result - row, columns = p.w.result - column;
    const auto to = [&](int i) { return static_cast<int64_t>(i / C * p.w.result + i % C) * p.groups; };
    if (p.residual != nullptr) {
      const T* residual = computed_once(static_cast<const T*>(p.residual) + start);
#pragma unroll
      for (int i = 0; i < kRows * C; ++i) {
        if (i / C >= rows || i % C >= columns) continue;
        const auto added = Lanes<T, V>::read(residual + to(i));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[i][v] += number(added, v);
      }
    }
    activate_in_turns<kRows * C * V, V>(&sum[0][0], p.activation);
    T* line = computed_once(static_cast<T*>(p.result) + start);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      T* result = line;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (c < columns) rounded<T>(sum[r * C + c]).write(result);
        result = computed_once(result + p.groups);
      }
      line = computed_once(line + p.w.result * p.groups);
    }
  }
}

template <typename T, bool kPlanar, int K, int S>
bool launch_tiles(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || (p.transposed ? 1 : p.h.stride) != S) return false;
  constexpr int kRows = kPlanar ? kPlaneRows<T, K, S> : kPixelRows<T, K, S>;
  const int64_t channels = kPlanar ? p.groups : p.groups / kLaneChannels<T>;
  DepthwiseTiles tiles;
  if (!tiles_of<T>(p.batch, channels, p.h, p.w, kRows, tiles)) return false;
  tiles.wide_source = wide_source<T, K>(p.source, p.w);
  tiles.wide_result = wide_result<T>(p.result, p.w) && aligned(p.residual, kColumns<T> * sizeof(T));
  const LaunchShape shape{blocks_for(tiles.count), kThreads};
  if constexpr (kPlanar) {
    error = launch(depthwise_planes<T, K, S>, shape, stream, p, tiles);
  } else {
    error = launch(depthwise_pixels<T, K, S>, shape, stream, p, tiles);
  }
  return true;
}

template <typename T, bool kPlanar>
bool launch_windows(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  return launch_tiles<T, kPlanar, 3, 1>(p, stream, error) ||
         launch_tiles<T, kPlanar, 3, 2>(p, stream, error) ||
         launch_tiles<T, kPlanar, 5, 1>(p, stream, error) ||
         launch_tiles<T, kPlanar, 5, 2>(p, stream, error) || launch_tiles<T, kPlanar, 7, 1>(p, stream, error);
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
    constexpr size_t kBytes = kLaneChannels<T> * sizeof(T);
    if (!p.channels_last) {
      taken = launch_windows<T, true>(p, stream, error);
    } else if (p.groups % kLaneChannels<T> == 0 && aligned(p.source, kBytes) && aligned(p.weight, kBytes) &&
               aligned(p.result, kBytes) && aligned(p.residual, kBytes)) {
      taken = launch_windows<T, false>(p, stream, error);
    }
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

}  // namespace d2lfast::cuda
