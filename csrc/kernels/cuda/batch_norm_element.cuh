#pragma once

#include <cmath>

#include "activation.cuh"
#include "batch_norm.h"
#include "device.cuh"

// Batch normalisation sees a tensor as rows: images, of a plane for each channel, or pixels of all channels
// ("columns", planes of one element). A thread takes a piece of a row: 8 elements in 16-byte accesses where
// rows allow it, else one, neighbouring lanes taking neighbouring elements.
namespace d2lfast::cuda {

constexpr int kPiece = 8;

template <typename T>
struct BatchNormView {
  using A = Compute<T>;
  int64_t rows, row_size, plane;
  int32_t pieces;  // of a plane: 8 elements, or 32 for a warp of single ones
  int32_t channels;
  Divider<int32_t> per_plane;    // pieces
  Divider<int32_t> per_image;    // planes
  Divider<int32_t> per_channel;  // columns, where an image has no more than 32 bits of them
  Divider<int32_t> per_block;    // pieces
  int32_t parts, spread;         // of a channel's sums, in all and of neighbouring blocks
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

// The channels of a piece: one for all elements of a plane, or one for each. mean: of the output, the bias.
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

template <typename T>
__device__ int32_t channel_of(const BatchNormView<T>& view, int64_t column) {
  return view.row_size <= INT32_MAX ? view.per_channel.divide(static_cast<int32_t>(column))
                                    : static_cast<int32_t>(column / view.plane);
}

// The channels of a piece of planes: one for its first elements, one for the others.
struct TwoChannels {
  int32_t one, other;
  int elements;  // of the first

  template <typename T>
  __device__ TwoChannels(const BatchNormView<T>& view, int64_t column) : one(channel_of(view, column)) {
    const int64_t rest = (one + int64_t{1}) * view.plane - column;
    elements = static_cast<int>(rest < kPiece ? rest : kPiece);
    other = one + (rest < kPiece ? 1 : 0);
  }
};

template <bool kBackward, int K, typename T>
__device__ Channels<Compute<T>, K> channels_of_columns(const BatchNormView<T>& view, int64_t column) {
  if constexpr (K == 1) {
    return channels_of<kBackward, K>(view, channel_of(view, column));
  } else {
    if (view.plane == 1) return channels_of<kBackward, K>(view, column);
    const TwoChannels at(view, column);
    const auto one = channels_of<kBackward, 1>(view, at.one),
               other = channels_of<kBackward, 1>(view, at.other);
    Channels<Compute<T>, K> c;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const bool first = k < at.elements;
      c.mean[k] = first ? one.mean[0] : other.mean[0];
      c.scale[k] = first ? one.scale[0] : other.scale[0];
      c.shift[k] = first ? one.shift[0] : other.shift[0];
      c.slope[k] = first ? one.slope[0] : other.slope[0];
      c.offset[k] = first ? one.offset[0] : other.offset[0];
    }
    return c;
  }
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

// A piece as it lies in memory, so that several are under way in few registers: converted where it is used.
template <typename T, int K>
struct Piece {
  static constexpr int V = K == 1 ? 1 : kVectorWidth<T>;
  Lanes<T, V> part[K / V];

  __device__ void read(const T* from) {
#pragma unroll
    for (int i = 0; i < K / V; ++i) part[i] = Lanes<T, V>::read(from + i * V);
  }
  __device__ Compute<T> operator[](int k) const { return to_compute(part[k / V].lane(k % V)); }
};

// What the moments read of a piece, forward and backward.
template <typename T, int K>
struct InputPiece {
  Piece<T, K> input;

  __device__ void read(const BatchNormView<T>& view, int64_t row, int64_t first) {
    input.read(view.input + (row * view.row_size + first));
  }
};

template <typename T, int K>
struct ForwardPiece {
  Piece<T, K> input, residual;

  __device__ void read(const BatchNormView<T>& view, int64_t row, int64_t first) {
    const int64_t at = row * view.row_size + first;
    input.read(view.input + at);
    residual = {};
    if (view.residual != nullptr) residual.read(view.residual + at);
  }
};

template <typename T, int K>
struct BackwardPiece {
  Piece<T, K> input, gradient, activated;
  unsigned bits;

  __device__ void read(const BatchNormView<T>& view, int64_t row, int64_t first) {
    const int64_t at = row * view.row_size + first;
    input.read(view.input + at);
    gradient.read(view.gradient + at);
    if (view.activation == Activation::kReLU) {
      if (view.mask != nullptr) bits = view.mask[row * view.mask_pitch + first / 8];
    } else if (view.activation != Activation::kNone) {
      activated.read(view.activated + at);
    }
  }
};

template <typename T, int K, int N>
__device__ void normalize_piece(const BatchNormView<T>& view, int64_t row, int64_t first, bool inside,
                                const ForwardPiece<T, K>& piece, const Channels<Compute<T>, N>& c) {
  using A = Compute<T>;
  A value[K];
  bool keep[K] = {};
  if (inside) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int n = N == 1 ? 0 : k;
      value[k] = normalized(piece.input[k], c.mean[n], c.scale[n], c.shift[n]) + piece.residual[k];
    }
    if (view.activation == Activation::kReLU) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        keep[k] = !(value[k] <= 0);
        value[k] = activate(value[k], Activation::kReLU);
      }
    } else if (view.activation != Activation::kNone) {
#pragma unroll
      for (int k = 0; k < K; ++k) value[k] = activate(value[k], view.activation);
    }
    store_piece<T, K>(view.result + (row * view.row_size + first), value);
  }
  if (view.mask != nullptr) store_bits<K>(view.mask + row * view.mask_pitch, first, keep, inside);
}

// The gradient before the activation.
template <typename T, int K, int N>
__device__ void gradient_piece(const BatchNormView<T>& view, int64_t first, const BackwardPiece<T, K>& piece,
                               const Channels<Compute<T>, N>& c, Compute<T> (&gradient)[K]) {
  using A = Compute<T>;
#pragma unroll
  for (int k = 0; k < K; ++k) gradient[k] = piece.gradient[k];
  if (view.activation == Activation::kNone) return;
  if (view.activation == Activation::kReLU) {
    // A piece of 8 begins at a byte.
    const unsigned bits = view.mask == nullptr ? 0 : K == kPiece ? piece.bits : piece.bits >> (first % 8);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int n = N == 1 ? 0 : k;
      const A input = piece.input[k];
      const A output = view.from_output ? input : normalized(input, c.mean[n], c.scale[n], c.shift[n]);
      const bool keep = view.mask != nullptr ? (bits >> k & 1u) != 0 : !(output <= 0);
      if (!keep) gradient[k] = 0;
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const A output = piece.activated[k];
    gradient[k] *= view.activation == Activation::kTanh ? 1 - output * output : output * (1 - output);
  }
}

}  // namespace d2lfast::cuda
