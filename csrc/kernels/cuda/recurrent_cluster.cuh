#pragma once

#include <cstdint>

#include "device.cuh"
#include "recurrent_cluster_plan.h"
#include "recurrent_layer_unit.cuh"

// A cluster's way through time. Its blocks have some units each and exchange states, backward gradients of
// gates, through each other's shared memory: [2][rows][pitch], in turns. What depends on how products are
// computed is a kernel's `Core`:
//   Core(p, share)                     reads the block's part of the weight into registers
//   unit; row(item)                    the thread's unit, and its sequence, counted from the cluster's first
//   memory                             how much is exchanged
//   product(from, item, sequences)     of the thread's unit: Gates, backward a single sum
//   place(unit)                        of a unit's state in a row, backward of the gradients of its gates
//   exchanged(value)                   what the products read of it
namespace d2lfast::cuda {

// Neighbouring weights, of which there are no more than `left`.
template <typename T>
struct FourWeights {
  const T* from;
  int32_t left;
};

// store(i, n, weight) for four neighbours n at each of `where(i)`, i < kCount; zeros where there are none.
template <typename T, int kCount, typename Where, typename Store>
__device__ __forceinline__ void read_weights(bool by_fours, Where&& where, Store&& store) {
  const auto read = [&](auto load_four) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Vector<T, 4> four = load_four(where(i));
#pragma unroll
      for (int n = 0; n < 4; ++n) store(i, n, to_compute(four.lane[n]));
    }
  };
  if (by_fours) {
    read([](const FourWeights<T>& w) { return w.left > 0 ? load<4>(w.from) : Vector<T, 4>{}; });
  } else {
    read([](const FourWeights<T>& w) {
      Vector<T, 4> four{};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (n < w.left) four.lane[n] = w.from[n];
      }
      return four;
    });
  }
}

// The step that comes after `s` others.
__device__ inline Step step_in_order(const RecurrentLayerParams& p, int32_t s, bool backward) {
  if (s >= p.steps) return {0, 0, 0};
  return step_at(p, p.reversed != backward ? p.steps - 1 - s : s);
}

// The sequences of a thread.
template <typename Core>
struct Sequences {
  const RecurrentLayerParams& p;
  const ClusterShare& share;
  const Core& core;
  int32_t first, items;

  __device__ Sequences(const RecurrentLayerParams& params, const ClusterShare& shared, const Core& of)
      : p(params),
        share(shared),
        core(of),
        first(static_cast<int32_t>(blockIdx.x) / shared.blocks * shared.rows),
        items(of.memory.items(shared)) {}

  __device__ int32_t number(int32_t item) const { return first + core.row(item); }
  // Whether the thread's sequence is one of the first `sequences`.
  __device__ bool has(int32_t item, int32_t sequences) const {
    return core.unit < p.hidden && core.row(item) < share.rows && number(item) < sequences;
  }
  // visit(place among what the threads keep, place in [N,H]) for all.
  template <typename Visit>
  __device__ void visit(Visit&& visit_one) const {
    for (int32_t item = 0; item < items; ++item) {
      if (!has(item, p.batch)) continue;
      visit_one(item * kThreads + static_cast<int32_t>(threadIdx.x),
                static_cast<int64_t>(number(item)) * p.hidden + core.unit);
    }
  }
};

template <typename T, int G, typename Core>
__device__ __forceinline__ void cluster_forward(const RecurrentLayerParams& p, const ClusterShare& share) {
  using A = Compute<T>;
  const Core core(p, share);
  const Sequences own(p, share, core);
  const int32_t hidden = p.hidden, pitch = core.memory.pitch, size = core.memory.exchanged(share);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto states = dynamic_shared<A>();
  const auto kept = states + (2 * size + core.memory.sums);  // the thread's states, and an LSTM's cell states
  const auto cells = kept + own.items * kThreads;
  const auto bias = core.unit < hidden ? bias_gates<T, G>(p, core.unit) : Gates<A, G>{};
  for (int32_t i = thread; i < 2 * size; i += kThreads) states[i] = A(0);
  __syncthreads();
  const int32_t known = share.rows < p.batch - own.first ? share.rows : p.batch - own.first;
  for (int32_t i = thread; i < known * hidden; i += kThreads) {
    const int32_t row = i / hidden, k = i - row * hidden;
    const A state = to_compute(*element<T>(p.h_0, static_cast<int64_t>(own.first) * hidden + i));
    states[row * pitch + core.place(k)] = core.exchanged(state);
  }
  own.visit([&](int32_t at, int64_t from) {
    kept[at] = to_compute(*element<T>(p.h_0, from));
    if (G == 4) cells[at] = to_compute(*element<T>(p.c_0, from));
  });
  const auto input_of = [&](const Step& step, int32_t item) {
    if (!own.has(item, step.count)) return Gates<A, G>{};
    return input_gates<T, G>(p, step.offset + own.number(item), core.unit);
  };
  Step now = step_in_order(p, 0, false), next = step_in_order(p, 1, false);
  Gates<A, G> ahead = input_of(now, 0);
  Unit<A, G> result;
  int64_t result_row = -1;
  // An item's results go to memory behind the barrier that may follow it, which would wait for them.
  const auto store_result = [&] {
    if (result_row >= 0) store_unit<T, G>(p, result_row, core.unit, result);
    result_row = -1;
  };
  sync_cluster(share.blocks);
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step later = step_in_order(p, s + 2, false);
    const auto before = states + s % 2 * size, after = states + (s + 1) % 2 * size;
    for (int32_t item = 0; item < own.items; ++item) {
      store_result();
      const Gates<A, G> input = ahead;
      ahead = item + 1 < own.items ? input_of(now, item + 1) : input_of(next, 0);
      const Gates<A, G> recurrent = core.product(before, item, now.count - own.first);
      if (!own.has(item, p.batch)) continue;
      const int32_t at = item * kThreads + thread;
      A state = kept[at];
      if (own.has(item, now.count)) {
        const A cell = G == 4 ? static_cast<A>(cells[at]) : A(0);
        result = forward_unit<A, G>(p.mode, state, cell, input, recurrent, bias);
        result_row = now.offset + own.number(item);
        state = result.state;
        kept[at] = state;
        if (G == 4) cells[at] = result.cell;
      }
      store_in_cluster(after + (core.row(item) * pitch + core.place(core.unit)), share.blocks,
                       core.exchanged(state));
    }
    sync_cluster(share.blocks);
    now = next;
    next = later;
  }
  store_result();
  own.visit([&](int32_t at, int64_t to) {
    const A state = kept[at];
    *element<T>(p.h_n, to) = from_compute<T>(state);
    if (G == 4) {
      const A cell = cells[at];
      *element<T>(p.c_n, to) = from_compute<T>(cell);
    }
  });
}

template <typename T, int G, typename Core>
__device__ __forceinline__ void cluster_backward(const RecurrentLayerParams& p, const ClusterShare& share) {
  using A = Compute<T>;
  const Core core(p, share);
  const Sequences own(p, share, core);
  const int32_t pitch = core.memory.pitch, size = core.memory.exchanged(share);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto gates = dynamic_shared<A>();
  const auto grads = gates + (2 * size + core.memory.sums);  // of the thread's states, and of its cell states
  const auto grad_cells = grads + own.items * kThreads;
  for (int32_t i = thread; i < 2 * size; i += kThreads) gates[i] = A(0);
  own.visit([&](int32_t at, int64_t from) {
    grads[at] = value_or_zero<T>(p.grad_h, from);
    if (G == 4) grad_cells[at] = value_or_zero<T>(p.grad_c, from);
  });
  const auto kept_in = [&](const Step& step, const Step& before, int32_t item) {
    if (!own.has(item, step.count)) return Kept<A, G>{};
    return kept_of<T, G>(p, step, before, own.number(item), core.unit);
  };
  Step now = step_in_order(p, 0, true), before = step_in_order(p, 1, true), next = step_in_order(p, 2, true);
  Kept<A, G> ahead = kept_in(now, before, 0);
  GateGradients<A, G> gradients;
  int64_t gradients_row = -1;
  const auto store = [&] {
    if (gradients_row >= 0) store_gradients<T, G>(p, gradients_row, core.unit, gradients);
    gradients_row = -1;
  };
  sync_cluster(share.blocks);
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step later = step_in_order(p, s + 3, true);
    const auto of_step = gates + s % 2 * size;
    for (int32_t item = 0; item < own.items; ++item) {
      store();
      const Kept<A, G> kept = ahead;
      ahead = item + 1 < own.items ? kept_in(now, before, item + 1) : kept_in(before, next, 0);
      if (!own.has(item, now.count)) continue;
      const int32_t at = item * kThreads + thread;
      A grad = grads[at], grad_cell = G == 4 ? static_cast<A>(grad_cells[at]) : A(0);
      gradients = backward_unit<A, G>(p.mode, kept, grad, grad_cell);
      gradients_row = now.offset + own.number(item);
      grads[at] = grad;
      if (G == 4) grad_cells[at] = grad_cell;
      const auto to = of_step + (core.row(item) * pitch + core.place(core.unit));
      const auto given = [&](int g) { return core.exchanged(gradients.hidden.of[g]); };
      if constexpr (G == 4) {
        store_in_cluster(to, share.blocks, Vector<A, 4>{{given(0), given(1), given(2), given(3)}});
      } else {
#pragma unroll
        for (int g = 0; g < G; ++g) store_in_cluster(to + g, share.blocks, given(g));
      }
    }
    sync_cluster(share.blocks);
    store();
    for (int32_t item = 0; item < own.items; ++item) {
      const A grad = core.product(of_step, item, now.count - own.first);
      // A sequence that takes no part keeps its gradient.
      if (own.has(item, now.count)) {
        const int32_t at = item * kThreads + thread;
        grads[at] = grads[at] + grad;
      }
    }
    now = before;
    before = next;
    next = later;
  }
  own.visit([&](int32_t at, int64_t to) {
    const A grad = grads[at];
    *element<T>(p.grad_h_0, to) = from_compute<T>(grad);
    if (G == 4) {
      const A grad_cell = grad_cells[at];
      *element<T>(p.grad_c_0, to) = from_compute<T>(grad_cell);
    }
  });
}

}  // namespace d2lfast::cuda
