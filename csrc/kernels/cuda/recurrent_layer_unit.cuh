#pragma once

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

// One sequence's unit: sums[g] of the recurrent products become the new hidden state.
template <typename T, int G>
__device__ Compute<T> forward_unit(const RecurrentLayerParams& p, int64_t row, int32_t unit, Compute<T> state,
                                   const Compute<T> (&sums)[G], Compute<T>& cell) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const auto input = [&](int g) { return *element<A>(p.products, row * G * hidden + g * hidden + unit); };
  const auto recurrent = [&](int g) { return sums[g] + value_or_zero<T>(p.bias, g * hidden + unit); };
  A* saved = p.saved == nullptr ? nullptr : element<A>(p.saved, row * 4 * hidden + unit);
  if constexpr (G == 1) {
    return rnn_unit(input(0) + recurrent(0),
                    p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
  } else if constexpr (G == 3) {
    GRUUnit<A> u;
    u.forward(input(0) + recurrent(0), input(1) + recurrent(1), input(2), recurrent(2));
    if (saved != nullptr) {
      saved[0] = u.r;
      saved[hidden] = u.z;
      saved[2 * hidden] = u.n;
      saved[3 * hidden] = u.candidate;
    }
    return u.output(state);
  } else {
    const auto u = LSTMUnit<A>::of(input(0) + recurrent(0), input(1) + recurrent(1), input(2) + recurrent(2),
                                   input(3) + recurrent(3));
    cell = u.cell(cell);
    if (saved != nullptr) {
      saved[0] = u.i;
      saved[hidden] = u.f;
      saved[2 * hidden] = u.g;
      saved[3 * hidden] = u.o;
      *element<A>(p.cells, row * hidden + unit) = cell;
    }
    return u.o * tanh(cell);
  }
}

// Gradients before the activations of one sequence's unit; returns the part of the old state's gradient that
// bypasses the recurrent products.
template <typename T, int G>
__device__ Compute<T> backward_unit(const RecurrentLayerParams& p, const Step& now, const Step& before,
                                    int32_t sequence, int32_t unit, Compute<T> grad, Compute<T>& grad_cell,
                                    Compute<T> (&gates)[G], Compute<T> (&hidden_gates)[G]) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const int64_t row = now.offset + sequence, start = static_cast<int64_t>(sequence) * hidden + unit;
  const bool carried = sequence < before.count;
  const int64_t old_row = before.offset + sequence;
  const A* saved = element<A>(p.saved, row * 4 * hidden + unit);
  A direct = 0;
  if constexpr (G == 1) {
    const A output = to_compute(*element<T>(static_cast<const void*>(p.output), row * p.output_row + unit));
    gates[0] =
        rnn_unit_gradient(grad, output, p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
    hidden_gates[0] = gates[0];
  } else if constexpr (G == 3) {
    const A old =
        to_compute(carried ? *element<T>(static_cast<const void*>(p.output), old_row * p.output_row + unit)
                           : *element<T>(p.h_0, start));
    const GRUUnit<A> u{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
    const GRUUnitGradient<A> g(grad, u, old);
    gates[0] = hidden_gates[0] = g.r;
    gates[1] = hidden_gates[1] = g.z;
    gates[2] = g.n;
    hidden_gates[2] = g.hidden_n;
    direct = g.state;
  } else {
    const A old =
        carried ? *element<A>(p.cells, old_row * hidden + unit) : to_compute(*element<T>(p.c_0, start));
    const LSTMUnit<A> u{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
    const LSTMUnitGradient<A> g(grad, grad_cell, u, old, *element<A>(p.cells, row * hidden + unit));
    gates[0] = g.i;
    gates[1] = g.f;
    gates[2] = g.g;
    gates[3] = g.o;
#pragma unroll
    for (int i = 0; i < G; ++i) hidden_gates[i] = gates[i];
    grad_cell = g.cell;
  }
  return direct;
}

// A sequence's unit in a step of backward: adds the gradient of its output, stores those of its gates, and
// moves the gradients of its state and cell state on. hidden_gates: what goes through the recurrent products.
template <typename T, int G>
__device__ void backward_step(const RecurrentLayerParams& p, const Step& now, const Step& before,
                              int32_t sequence, int32_t unit, Compute<T>& grad, Compute<T>& grad_cell,
                              Compute<T> (&hidden_gates)[G]) {
  using A = Compute<T>;
  const int64_t row = now.offset + sequence;
  A gates[G] = {}, given = grad;
  if (p.grad_output != nullptr) {
    given += to_compute(*element<T>(p.grad_output, row * p.grad_output_row + unit));
  }
  grad = backward_unit<T, G>(p, now, before, sequence, unit, given, grad_cell, gates, hidden_gates);
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t to = (row * G + g) * p.hidden + unit;
    *element<A>(p.grad_gates, to) = gates[g];
    if (G == 3) *element<A>(p.grad_hidden_gates, to) = hidden_gates[g];
  }
}

}  // namespace d2lfast::cuda
