#pragma once

#include <type_traits>

#include "recurrent_element.cuh"
#include "recurrent_layer.h"

// One unit of one sequence in a layer over whole sequences: what it reads and writes beside the recurrent
// products.
namespace d2lfast::cuda {

template <typename T>
__device__ const T* element(const void* data, int64_t i) {
  return static_cast<const T*>(data) + i;
}
template <typename T>
__device__ T* element(void* data, int64_t i) {
  return static_cast<T*>(data) + i;
}

struct Step {
  int32_t t;
  int64_t offset;
  int32_t count;
};

__device__ inline Step step_at(const RecurrentLayerParams& p, int32_t t) {
  if (p.counts == nullptr) return {t, static_cast<int64_t>(t) * p.batch, p.batch};
  return {t, p.offsets[t], static_cast<int32_t>(p.counts[t])};
}

// The step before `now` in the layer's direction, for the sequences that take part in it.
__device__ inline Step step_before(const RecurrentLayerParams& p, const Step& now) {
  const int32_t t = p.reversed ? now.t + 1 : now.t - 1;
  return t >= 0 && t < p.steps ? step_at(p, t) : Step{t, 0, 0};
}

// What the gates of a unit get in one step, from the input or from the states.
template <typename A, int G>
struct Gates {
  A of[G];
};

// The input's products, with b_ih.
template <typename T, int G>
__device__ Gates<Compute<T>, G> input_gates(const RecurrentLayerParams& p, int64_t row, int32_t unit) {
  Gates<Compute<T>, G> gates;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    gates.of[g] = *element<Compute<T>>(p.products, (row * G + g) * p.hidden + unit);
  }
  return gates;
}

// b_hh.
template <typename T, int G>
__device__ Gates<Compute<T>, G> bias_gates(const RecurrentLayerParams& p, int32_t unit) {
  Gates<Compute<T>, G> gates;
#pragma unroll
  for (int g = 0; g < G; ++g) gates.of[g] = value_or_zero<T>(p.bias, g * p.hidden + unit);
  return gates;
}

// A sequence's unit in a step: stores its output and what backward reads, moves the cell state on and returns
// the new hidden state. `recurrent`: the states' products, with b_hh.
template <typename T, int G>
__device__ Compute<T> forward_step(const RecurrentLayerParams& p, int64_t row, int32_t unit, Compute<T> state,
                                   const Gates<Compute<T>, G>& input, const Gates<Compute<T>, G>& recurrent,
                                   Compute<T>& cell) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const auto sum = [&](int g) { return input.of[g] + recurrent.of[g]; };
  A* saved = p.saved == nullptr ? nullptr : element<A>(p.saved, row * 4 * hidden + unit);
  if constexpr (G == 1) {
    state = rnn_unit(sum(0), p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
  } else if constexpr (G == 3) {
    GRUUnit<A> u;
    u.forward(sum(0), sum(1), input.of[2], recurrent.of[2]);
    if (saved != nullptr) {
      saved[0] = u.r;
      saved[hidden] = u.z;
      saved[2 * hidden] = u.n;
      saved[3 * hidden] = u.candidate;
    }
    state = u.output(state);
  } else {
    const auto u = LSTMUnit<A>::of(sum(0), sum(1), sum(2), sum(3));
    cell = u.cell(cell);
    if (saved != nullptr) {
      saved[0] = u.i;
      saved[hidden] = u.f;
      saved[2 * hidden] = u.g;
      saved[3 * hidden] = u.o;
      *element<A>(p.cells, row * hidden + unit) = cell;
    }
    state = u.o * tanh(cell);
  }
  *element<T>(p.output, row * p.output_row + unit) = from_compute<T>(state);
  return state;
}

// What backward reads of a unit in a step. G of 1: its output; GRU: saved, the old state; LSTM: saved, the
// old cell state and the new one.
template <typename A, int G>
struct Kept {
  A grad_output, saved[4], old, now;
};

template <typename T, int G>
__device__ Kept<Compute<T>, G> kept_of(const RecurrentLayerParams& p, const Step& now, const Step& before,
                                       int32_t sequence, int32_t unit) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const int64_t row = now.offset + sequence, start = static_cast<int64_t>(sequence) * hidden + unit;
  const int64_t old_row = before.offset + sequence;
  const bool carried = sequence < before.count;
  const auto output = [&](int64_t r) {
    return to_compute(*element<T>(static_cast<const void*>(p.output), r * p.output_row + unit));
  };
  const auto cell = [&](int64_t r) {
    return *element<A>(static_cast<const void*>(p.cells), r * hidden + unit);
  };
  Kept<A, G> kept;
  kept.grad_output = value_or_zero<T>(p.grad_output, row * p.grad_output_row + unit);
  if constexpr (G == 1) {
    kept.now = output(row);
  } else {
    const A* saved = element<A>(static_cast<const void*>(p.saved), row * 4 * hidden + unit);
#pragma unroll
    for (int i = 0; i < 4; ++i) kept.saved[i] = saved[i * hidden];
  }
  if constexpr (G == 3) kept.old = carried ? output(old_row) : to_compute(*element<T>(p.h_0, start));
  if constexpr (G == 4) {
    kept.old = carried ? cell(old_row) : to_compute(*element<T>(p.c_0, start));
    kept.now = cell(row);
  }
  return kept;
}

// A sequence's unit in a step of backward: stores the gradients of its gates and moves those of its state and
// cell state on; that of the state lacks what goes through the recurrent products. Returns the gradients of
// these products.
template <typename T, int G>
__device__ Gates<Compute<T>, G> backward_step(const RecurrentLayerParams& p, int64_t row, int32_t unit,
                                              const Kept<Compute<T>, G>& kept, Compute<T>& grad,
                                              Compute<T>& grad_cell) {
  using A = Compute<T>;
  const A given = grad + kept.grad_output;
  Gates<A, G> gates, hidden_gates;
  grad = 0;
  if constexpr (G == 1) {
    gates.of[0] = rnn_unit_gradient(given, kept.now,
                                    p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
    hidden_gates = gates;
  } else if constexpr (G == 3) {
    const GRUUnit<A> u{kept.saved[0], kept.saved[1], kept.saved[2], kept.saved[3]};
    const GRUUnitGradient<A> g(given, u, kept.old);
    gates = {g.r, g.z, g.n};
    hidden_gates = {g.r, g.z, g.hidden_n};
    grad = g.state;
  } else {
    const LSTMUnit<A> u{kept.saved[0], kept.saved[1], kept.saved[2], kept.saved[3]};
    const LSTMUnitGradient<A> g(given, grad_cell, u, kept.old, kept.now);
    hidden_gates = gates = {g.i, g.f, g.g, g.o};
    grad_cell = g.cell;
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t to = (row * G + g) * p.hidden + unit;
    *element<A>(p.grad_gates, to) = gates.of[g];
    if (G == 3) *element<A>(p.grad_hidden_gates, to) = hidden_gates.of[g];
  }
  return hidden_gates;
}

// body(number of gates), as a type.
template <typename Body>
cudaError_t with_gates(LayerMode mode, Body&& body) {
  switch (mode) {
    case LayerMode::kGRU:
      return body(std::integral_constant<int, 3>{});
    case LayerMode::kLSTM:
      return body(std::integral_constant<int, 4>{});
    default:
      return body(std::integral_constant<int, 1>{});
  }
}

}  // namespace d2lfast::cuda
