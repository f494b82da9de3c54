#pragma once

#include "device.cuh"
#include "recurrent.h"

// The gates of one hidden unit of one sequence.
namespace d2lfast::cuda {

template <typename A>
__device__ A sigmoid(A value) {
  return A(1) / (A(1) + exp(-value));
}

template <typename T>
__device__ Compute<T> value_or_zero(const void* values, int64_t i) {
  return values == nullptr ? Compute<T>(0) : to_compute(static_cast<const T*>(values)[i]);
}

template <typename A>
__device__ A rnn_unit(A sum, Activation activation) {
  if (activation == Activation::kTanh) return tanh(sum);
  return sum <= 0 ? A(0) : sum;
}

template <typename A>
__device__ A rnn_unit_gradient(A gradient, A output, Activation activation) {
  if (activation == Activation::kTanh) return gradient * (1 - output * output);
  return output <= 0 ? A(0) : gradient;
}

template <typename A>
struct GRUUnit {
  A r, z, n, candidate;  // candidate: the hidden state's part of n

  // Sums with their biases; `hidden_n` is the hidden state's part.
  __device__ void forward(A sum_r, A sum_z, A input_n, A hidden_n) {
    r = sigmoid(sum_r);
    z = sigmoid(sum_z);
    candidate = hidden_n;
    n = tanh(fma(r, hidden_n, input_n));
  }
  __device__ A output(A state) const { return fma(z, state - n, n); }
};

template <typename A>
struct GRUUnitGradient {
  A r, z, n, hidden_n, state;

  __device__ GRUUnitGradient(A gradient, const GRUUnit<A>& unit, A old) {
    n = gradient * (1 - unit.z) * (1 - unit.n * unit.n);
    z = gradient * (old - unit.n) * (1 - unit.z) * unit.z;
    r = n * unit.candidate * (1 - unit.r) * unit.r;
    hidden_n = n * unit.r;
    state = gradient * unit.z;
  }
};

template <typename A>
struct LSTMUnit {
  A i, f, g, o;

  __device__ static LSTMUnit of(A sum_i, A sum_f, A sum_g, A sum_o) {
    return {sigmoid(sum_i), sigmoid(sum_f), tanh(sum_g), sigmoid(sum_o)};
  }
  __device__ A cell(A old) const { return fma(f, old, i * g); }
};

template <typename A>
struct LSTMUnitGradient {
  A i, f, g, o, cell;  // cell: of the old cell state

  __device__ LSTMUnitGradient(A grad_output, A grad_cell, const LSTMUnit<A>& unit, A old, A now) {
    const A squashed = tanh(now);
    const A gradient = fma(grad_output * unit.o, 1 - squashed * squashed, grad_cell);
    i = gradient * unit.g * (1 - unit.i) * unit.i;
    f = gradient * old * (1 - unit.f) * unit.f;
    g = gradient * unit.i * (1 - unit.g * unit.g);
    o = grad_output * squashed * (1 - unit.o) * unit.o;
    cell = gradient * unit.f;
  }
};

}  // namespace d2lfast::cuda
