#pragma once

#include <cmath>

#include "activation.cuh"
#include "batch_norm.h"
#include "device.cuh"

// Batch normalisation sees a tensor as rows: planes of one channel each, or pixels of all channels
// ("columns"). A thread takes a piece of a row: 8 elements in 16-byte accesses where rows allow it, else one,
// neighbouring lanes taking neighbouring elements.
namespace d2lfast::cuda {

constexpr int kPiece = 8;

template <typename T>
struct BatchNormView {
  using A = Compute<T>;
  int64_t rows, row_size;
  int32_t pieces;  // of a row: 8 elements, or 32 for a warp of single ones
  int32_t channels;
  Divider<int32_t> per_row;    // pieces
  Divider<int32_t> per_image;  // planes
  Activation activation;
  bool wide_parameters, training, from_output;
  const T *input, *residual, *gradient, *activated;
  uint8_t* mask;
  int64_t mask_pitch;
  T *result, *grad_residual;
  const void *weight, *bias;
  const A *mean, *invstd, *shift, *slope, *offset;
  double* partial;
};

template <typename T>
__device__ Compute<T> parameter(const void* values, bool wide, int64_t i) {
  return wide ? static_cast<const Compute<T>*>(values)[i] : to_compute(static_cast<const T*>(values)[i]);
}

template <typename T>
__device__ void set_parameter(void* values, bool wide, int64_t i, Compute<T> value) {
  if (wide) {
    static_cast<Compute<T>*>(values)[i] = value;
  } else {
    static_cast<T*>(values)[i] = from_compute<T>(value);
  }
}

template <typename T, int K>
__device__ void load_piece(const T* from, Compute<T> (&values)[K]) {
  constexpr int V = K == 1 ? 1 : kVectorWidth<T>;
#pragma unroll
  for (int k = 0; k < K; k += V) {
    const Vector<T, V> part = load<V>(from + k);
#pragma unroll
    for (int v = 0; v < V; ++v) values[k + v] = to_compute(part.lane[v]);
  }
}

template <typename T, int K>
__device__ void store_piece(T* to, const Compute<T> (&values)[K]) {
  constexpr int V = K == 1 ? 1 : kVectorWidth<T>;
#pragma unroll
  for (int k = 0; k < K; k += V) {
    Vector<T, V> part;
#pragma unroll
    for (int v = 0; v < V; ++v) part.lane[v] = from_compute<T>(values[k + v]);
    store(to + k, part);
  }
}

// The channels of a piece: one for all elements of a plane, K in columns. mean: of the output, the bias.
template <typename A, int N>
struct Channels {
  A mean[N], scale[N], shift[N], slope[N], offset[N];
};

template <bool kBackward, int N, typename T>
__device__ Channels<Compute<T>, N> channels_of(const BatchNormView<T>& view, int64_t channel) {
  using A = Compute<T>;
  Channels<A, N> c;
  A invstd[N];
  load_piece<A, N>(view.invstd + channel, invstd);
  load_piece<A, N>(view.shift + channel, c.shift);
  if (!view.from_output) load_piece<A, N>(view.mean + channel, c.mean);
  if (kBackward && view.slope != nullptr) {
    load_piece<A, N>(view.slope + channel, c.slope);
    load_piece<A, N>(view.offset + channel, c.offset);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) c.slope[i] = c.offset[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int64_t at = channel + i;
    c.scale[i] =
        invstd[i] * (view.weight != nullptr ? parameter<T>(view.weight, view.wide_parameters, at) : A(1));
    if (view.from_output) {
      c.mean[i] = view.bias != nullptr ? parameter<T>(view.bias, view.wide_parameters, at) : A(0);
    }
  }
  return c;
}

// Before ReLU. Backward repeats this exactly, so the contraction is spelled out.
template <typename A>
__device__ A normalized(A value, A mean, A scale, A shift) {
  return fma(value - mean, scale, shift);
}

// One bit for each element of a piece; the lanes of a warp share the bytes of single elements, and all of
// them must be here.
template <int K>
__device__ void store_bits(uint8_t* row, int64_t first, const bool (&keep)[K], bool inside) {
  if constexpr (K == kPiece) {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) bits |= static_cast<unsigned>(keep[k]) << k;
    row[first / 8] = static_cast<uint8_t>(bits);
  } else {
    const unsigned bits = ballot(keep[0]);
    const int lane = threadIdx.x % 32;
    if (inside && lane % 8 == 0) row[first / 8] = static_cast<uint8_t>(bits >> lane);
  }
}

template <typename T, int K, int N>
__device__ void normalize_piece(const BatchNormView<T>& view, int64_t row, int64_t first, bool inside,
                                const Channels<Compute<T>, N>& c) {
  using A = Compute<T>;
  A value[K], other[K] = {};
  bool keep[K] = {};
  const int64_t at = row * view.row_size + first;
  if (inside) {
    load_piece<T, K>(view.input + at, value);
    if (view.residual != nullptr) load_piece<T, K>(view.residual + at, other);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int n = N == 1 ? 0 : k;
      const A sum = normalized(value[k], c.mean[n], c.scale[n], c.shift[n]) + other[k];
      keep[k] = !(sum <= 0);
      value[k] = activate(sum, view.activation);
    }
    store_piece<T, K>(view.result + at, value);
  }
  if (view.mask != nullptr) store_bits<K>(view.mask + row * view.mask_pitch, first, keep, inside);
}

// The gradient before the activation.
template <typename T, int K, int N>
__device__ void gradient_piece(const BatchNormView<T>& view, int64_t row, int64_t first,
                               const Channels<Compute<T>, N>& c, const Compute<T> (&input)[K],
                               Compute<T> (&gradient)[K]) {
  using A = Compute<T>;
  const int64_t at = row * view.row_size + first;
  load_piece<T, K>(view.gradient + at, gradient);
  if (view.activation == Activation::kNone) return;
  if (view.activation == Activation::kReLU) {
    unsigned bits = 0;
    if (view.mask != nullptr) bits = view.mask[row * view.mask_pitch + first / 8] >> (first % 8);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int n = N == 1 ? 0 : k;
      const A output = view.from_output ? input[k] : normalized(input[k], c.mean[n], c.scale[n], c.shift[n]);
      const bool keep = view.mask != nullptr ? (bits >> k & 1u) != 0 : !(output <= 0);
      if (!keep) gradient[k] = 0;
    }
    return;
  }
  A output[K];
  load_piece<T, K>(view.activated + at, output);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    gradient[k] *=
        view.activation == Activation::kTanh ? 1 - output[k] * output[k] : output[k] * (1 - output[k]);
  }
}

}  // namespace d2lfast::cuda
