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

// What the gates of a unit get in one step: from the input, from the states, or b_hh.
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

template <typename T, int G>
__device__ Gates<Compute<T>, G> bias_gates(const RecurrentLayerParams& p, int32_t unit) {
  Gates<Compute<T>, G> gates;
#pragma unroll
  for (int g = 0; g < G; ++g) gates.of[g] = value_or_zero<T>(p.bias, g * p.hidden + unit);
  return gates;
}

// A sequence's unit after a step. saved: what backward reads, of a GRU r, z, n and the states' part of n, of
// an LSTM i, f, g, o.
template <typename A, int G>
struct Unit {
  A state, cell, saved[4];
};

__device__ inline Activation activation_of(LayerMode mode) {
  return mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU;
}

// products: of the states.
template <typename A, int G>
__device__ Unit<A, G> forward_unit(LayerMode mode, A state, A cell, const Gates<A, G>& input,
                                   const Gates<A, G>& products, const Gates<A, G>& bias) {
  const auto recurrent = [&](int g) { return products.of[g] + bias.of[g]; };
  const auto sum = [&](int g) { return input.of[g] + recurrent(g); };
  if constexpr (G == 1) {
    return {rnn_unit(sum(0), activation_of(mode)), cell, {}};
  } else if constexpr (G == 3) {
    GRUUnit<A> u;
    u.forward(sum(0), sum(1), input.of[2], recurrent(2));
    return {u.output(state), cell, {u.r, u.z, u.n, u.candidate}};
  } else {
    const auto u = LSTMUnit<A>::of(sum(0), sum(1), sum(2), sum(3));
    cell = u.cell(cell);
    return {u.o * tanh(cell), cell, {u.i, u.f, u.g, u.o}};
  }
}

// Its output and what is saved.
template <typename T, int G>
__device__ void store_unit(const RecurrentLayerParams& p, int64_t row, int32_t unit,
                           const Unit<Compute<T>, G>& result) {
  *element<T>(p.output, row * p.output_row + unit) = from_compute<T>(result.state);
  if (G == 1 || p.saved == nullptr) return;
  T* saved = element<T>(p.saved, row * 4 * p.hidden + unit);
#pragma unroll
  for (int i = 0; i < 4; ++i) saved[i * p.hidden] = from_compute<T>(result.saved[i]);
  if (G == 4) *element<T>(p.cells, row * p.hidden + unit) = from_compute<T>(result.cell);
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
  const int32_t hidden = p.hidden;
  const int64_t row = now.offset + sequence, start = static_cast<int64_t>(sequence) * hidden + unit;
  const int64_t old_row = before.offset + sequence;
  const bool carried = sequence < before.count;
  const auto output = [&](int64_t r) {
    return to_compute(*element<T>(static_cast<const void*>(p.output), r * p.output_row + unit));
  };
  const auto cell = [&](int64_t r) {
    return to_compute(*element<T>(static_cast<const void*>(p.cells), r * hidden + unit));
  };
  Kept<Compute<T>, G> kept;
  kept.grad_output = value_or_zero<T>(p.grad_output, row * p.grad_output_row + unit);
  if constexpr (G == 1) {
    kept.now = output(row);
  } else {
    const T* saved = element<T>(static_cast<const void*>(p.saved), row * 4 * hidden + unit);
#pragma unroll
    for (int i = 0; i < 4; ++i) kept.saved[i] = to_compute(saved[i * hidden]);
  }
  if constexpr (G == 3) kept.old = carried ? output(old_row) : to_compute(*element<T>(p.h_0, start));
  if constexpr (G == 4) {
    kept.old = carried ? cell(old_row) : to_compute(*element<T>(p.c_0, start));
    kept.now = cell(row);
  }
  return kept;
}

// Of the gates of a unit; hidden: of the recurrent products.
template <typename A, int G>
struct GateGradients {
  Gates<A, G> gates, hidden;
};

// Moves the gradients of a unit's state and cell state to the step before; that of the state lacks what goes
// through the recurrent products.
template <typename A, int G>
__device__ GateGradients<A, G> backward_unit(LayerMode mode, const Kept<A, G>& kept, A& grad, A& grad_cell) {
  const A given = grad + kept.grad_output;
  grad = 0;
  if constexpr (G == 1) {
    const Gates<A, G> gates{rnn_unit_gradient(given, kept.now, activation_of(mode))};
    return {gates, gates};
  } else if constexpr (G == 3) {
    const GRUUnit<A> u{kept.saved[0], kept.saved[1], kept.saved[2], kept.saved[3]};
    const GRUUnitGradient<A> g(given, u, kept.old);
    grad = g.state;
    return {{g.r, g.z, g.n}, {g.r, g.z, g.hidden_n}};
  } else {
    const LSTMUnit<A> u{kept.saved[0], kept.saved[1], kept.saved[2], kept.saved[3]};
    const LSTMUnitGradient<A> g(given, grad_cell, u, kept.old, kept.now);
    grad_cell = g.cell;
    const Gates<A, G> gates{g.i, g.f, g.g, g.o};
    return {gates, gates};
  }
}

template <typename T, int G>
__device__ void store_gradients(const RecurrentLayerParams& p, int64_t row, int32_t unit,
                                const GateGradients<Compute<T>, G>& gradients) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t to = (row * G + g) * p.hidden + unit;
    *element<T>(p.grad_gates, to) = from_compute<T>(gradients.gates.of[g]);
    if (G == 3) *element<T>(p.grad_hidden_gates, to) = from_compute<T>(gradients.hidden.of[g]);
  }
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
