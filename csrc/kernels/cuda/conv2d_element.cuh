#pragma once

#include "activation.cuh"
#include "conv2d.h"

namespace d2lfast::cuda {

__device__ inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Whether a tap of the result position meets the source, and where.
template <bool kTransposed>
__device__ bool source_of(const Conv2dAxis& axis, int32_t result, int32_t tap, int32_t& source) {
  if constexpr (kTransposed) {
    const int32_t reach = result + axis.pad - tap * axis.dilation;
    source = axis.stride == 1 ? reach : reach / axis.stride;
    return reach >= 0 && source < axis.source && source * axis.stride == reach;
  } else {
    source = result * axis.stride - axis.pad + tap * axis.dilation;
    return source >= 0 && source < axis.source;
  }
}

// Where the taps from `first` on, of a weight's gradient, meet the source, from a result's position there on.
constexpr int kTapTile = 9;
struct TapTile {
  int32_t down[kTapTile], right[kTapTile];

  __device__ TapTile(const Conv2dWeightParams& p, int32_t first) {
#pragma unroll
    for (int i = 0; i < kTapTile; ++i) {
      const int32_t kh = (first + i) / p.w.kernel;
      // Beyond the last tap: a row outside of every image.
      down[i] = kh < p.h.kernel ? kh * p.h.dilation - p.h.pad : -(1 << 30);
      right[i] = (first + i - kh * p.w.kernel) * p.w.dilation - p.w.pad;
    }
  }
};

template <typename T>
__device__ Compute<T> bias_of(const void* bias, int32_t channel) {
  return bias == nullptr ? Compute<T>(0) : to_compute(static_cast<const T*>(bias)[channel]);
}

template <typename A, int N>
__device__ __forceinline__ void activate_all(A (&values)[N], Activation activation) {
  if (activation == Activation::kNone) return;
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = activate(values[i], activation);
}

// N of them. Those beyond ReLU by a loop through whose first kAtOnce registers the values pass, since each
// copy of their code is long.
template <int N, int kAtOnce, typename A>
__device__ __forceinline__ void activate_in_turns(A* values, Activation activation) {
  static_assert(N % kAtOnce == 0);
  if (activation == Activation::kNone) return;
  if (activation == Activation::kReLU) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate(values[i], Activation::kReLU);
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < N; turn += kAtOnce) {
    A done[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) done[i] = activate(values[i], activation);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = i < N - kAtOnce ? values[i + kAtOnce] : done[i - N + kAtOnce];
  }
}

// V neighbours of the residual, or zeros.
template <int V, typename T>
__device__ Vector<T, V> residual_of(const void* residual, int64_t at) {
  return residual == nullptr ? Vector<T, V>{} : load<V>(static_cast<const T*>(residual) + at);
}

}  // namespace d2lfast::cuda
