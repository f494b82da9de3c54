#include "recurrent_cluster.h"

#include <algorithm>
#include <cstdint>

#include "device.cuh"
#include "device_limits.h"
#include "recurrent_layer_unit.cuh"
#include "recurrent_step_time.h"
#include "warp_sum.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kStates = 32;  // of a unit's product, for each of its lanes
constexpr int kUnits = 4;    // neighbours in a warp: four lanes differ in the unit alone
constexpr int kDepth = kStates / kUnits;
constexpr int kPad = 4;  // so that lanes by 16 bytes, and sequences, begin in different banks

// `lanes` share a unit (1, 2, 4 or 8), which suffices for 32 units each; `blocks` of a cluster have all
// units, for `rows` sequences.
struct ClusterShare {
  int32_t lanes, blocks, rows;
  bool by_fours;  // the weight is read by four elements
};

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

// Warps that have all units of a block. Others have the same units and other sequences.
D2LFAST_HOST_DEVICE constexpr int32_t unit_warps(int32_t lanes) {
  return lanes * lanes < kWarps ? lanes * lanes : kWarps;
}

// Sequences that the threads of a unit have at a time.
D2LFAST_HOST_DEVICE constexpr int32_t sequences_at_once(int32_t lanes) {
  return kWarps / unit_warps(lanes) * lanes;
}

// A thread's unit and, of each item, its sequence.
struct Place {
  int32_t unit, part, first, rows;  // part: of the unit's lanes; first, rows: the cluster's sequences
  int32_t group, lanes, at_once, units;

  __device__ Place(const RecurrentLayerParams& p, const ClusterShare& share)
      : first(static_cast<int32_t>(blockIdx.x) / share.blocks * share.rows),
        lanes(share.lanes),
        at_once(sequences_at_once(share.lanes)),
        units(p.hidden) {
    const auto lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t warps = unit_warps(lanes), rank = static_cast<int32_t>(blockIdx.x) % share.blocks;
    const int32_t first_unit = (rank * warps + warp % warps) * (32 / lanes);
    unit = first_unit + lane / (kUnits * lanes) * kUnits + lane % kUnits;
    part = lane / kUnits % lanes;
    group = warp / warps;
    rows = first_unit < units ? share.rows : 0;
  }

  // The first of the lanes' sequences, counted from the cluster's first.
  __device__ int32_t begin(int32_t item) const { return item * at_once + group * lanes; }
  __device__ int32_t row(int32_t item) const { return begin(item) + part; }
  __device__ int32_t sequence(int32_t item) const { return first + row(item); }
  // Whether the thread's sequence is one of the first `sequences`.
  __device__ bool has(int32_t item, int32_t sequences) const {
    return unit < units && row(item) < rows && sequence(item) < sequences;
  }

  // visit(row, whether it is the thread's) for those of the lanes' sequences that are among the first.
  template <typename Visit>
  __device__ void visit_lanes(int32_t item, int32_t sequences, Visit&& visit) const {
    const int32_t end = rows < sequences - first ? rows : sequences - first;
    for (int32_t i = 0; i < lanes; ++i) {
      if (begin(item) + i >= end) break;
      visit(begin(item) + i, i == part);
    }
  }

  // The sum of each value over the lanes of a unit.
  template <typename A, int N>
  __device__ void add_over_parts(A (&values)[N]) const {
#pragma unroll
    for (int32_t number = 1; number < 8; number *= 2) {
      if (lanes <= number) break;
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] += shuffle_xor(values[n], kUnits * number);
    }
  }
};

// The step that comes after `s` others.
__device__ inline Step step_in_order(const RecurrentLayerParams& p, int32_t s, bool backward) {
  if (s >= p.steps) return {0, 0, 0};
  return step_at(p, p.reversed != backward ? p.steps - 1 - s : s);
}

__device__ inline int32_t state_place(int32_t k) { return k / kStates * (kStates + kPad) + k % kStates; }
D2LFAST_HOST_DEVICE constexpr int32_t state_pitch(int32_t lanes) { return lanes * (kStates + kPad) + kPad; }

// Shared memory: states before and after a step [2][rows][pitch]; of an LSTM cell states [items][threads].
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster(const RecurrentLayerParams p, const ClusterShare share) {
  using A = Compute<T>;
  const Place own(p, share);
  const int32_t hidden = p.hidden, pitch = state_pitch(share.lanes), size = share.rows * pitch;
  const int32_t items = (share.rows + own.at_once - 1) / own.at_once;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const auto states = dynamic_shared<A>();
  const auto cells = states + 2 * size;
  A weight[G][kStates];
  const int32_t begin = own.part * kStates, left = own.unit < hidden ? hidden - begin : 0;
  read_weights<T, G * kStates / 4>(
      share.by_fours,
      [&](int i) {
        const int g = i / (kStates / 4), k = i % (kStates / 4) * 4;
        const int64_t row = static_cast<int64_t>(g) * hidden + own.unit;
        return FourWeights<T>{element<T>(p.weight, row * hidden + begin + k), left - k};
      },
      [&](int i, int n, A value) { weight[i / (kStates / 4)][i % (kStates / 4) * 4 + n] = value; });
  const auto bias = own.unit < hidden ? bias_gates<T, G>(p, own.unit) : Gates<A, G>{};
  const int32_t filled = share.lanes * kStates;
  for (int32_t i = thread; i < share.rows * filled; i += kThreads) {
    const int32_t row = i / filled, k = i - row * filled, sequence = own.first + row;
    const bool valid = k < hidden && sequence < p.batch;
    const int64_t from = static_cast<int64_t>(sequence) * hidden + k;
    states[row * pitch + state_place(k)] = valid ? to_compute(*element<T>(p.h_0, from)) : A(0);
    states[size + row * pitch + state_place(k)] = A(0);
  }
  for (int32_t item = 0; G == 4 && item < items; ++item) {
    if (!own.has(item, p.batch)) continue;
    const int64_t from = static_cast<int64_t>(own.sequence(item)) * hidden + own.unit;
    cells[item * kThreads + thread] = to_compute(*element<T>(p.c_0, from));
  }
  const auto input_of = [&](const Step& step, int32_t item) {
    if (!own.has(item, step.count)) return Gates<A, G>{};
    return input_gates<T, G>(p, step.offset + own.sequence(item), own.unit);
  };
  Step now = step_in_order(p, 0, false), next = step_in_order(p, 1, false);
  Gates<A, G> ahead = input_of(now, 0);
  Unit<A, G> result;
  int64_t result_row = -1;
  // An item's results go to memory behind the barrier that may follow it, which would wait for them.
  const auto store_result = [&] {
    if (result_row >= 0) store_unit<T, G>(p, result_row, own.unit, result);
    result_row = -1;
  };
  sync_cluster(share.blocks);
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step later = step_in_order(p, s + 2, false);
    const auto before = states + s % 2 * size, after = states + (s + 1) % 2 * size;
    for (int32_t item = 0; item < items; ++item) {
      store_result();
      const Gates<A, G> input = ahead;
      ahead = item + 1 < items ? input_of(now, item + 1) : input_of(next, 0);
      Gates<A, G> recurrent = {};
      own.visit_lanes(item, now.count, [&](int32_t row, bool mine) {
        // Four sums of a single gate, lest each product wait for the one before.
        constexpr int kSums = G == 1 ? 4 : 1;
        A parts[G][kSums] = {}, sums[G];
        const auto from = before + row * pitch + own.part * (kStates + kPad);
#pragma unroll
        for (int k = 0; k < kStates; k += 4) {
          const auto state = load_shared<4>(from + k);
#pragma unroll
          for (int g = 0; g < G; ++g) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
              A& to = parts[g][n % kSums];
              to = fma(state.lane[n], weight[g][k + n], to);
            }
          }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
          sums[g] = parts[g][0];
#pragma unroll
          for (int n = 1; n < kSums; ++n) sums[g] += parts[g][n];
        }
        own.add_over_parts(sums);
#pragma unroll
        for (int g = 0; g < G; ++g) recurrent.of[g] = mine ? sums[g] : recurrent.of[g];
      });
      if (!own.has(item, p.batch)) continue;
      const int32_t at = own.row(item) * pitch + state_place(own.unit);
      A state = before[at];
      if (own.has(item, now.count)) {
        const int32_t kept = item * kThreads + thread;
        const A cell = G == 4 ? static_cast<A>(cells[kept]) : A(0);
        result = forward_unit<A, G>(p.mode, state, cell, input, recurrent, bias);
        result_row = now.offset + own.sequence(item);
        state = result.state;
        if (G == 4) cells[kept] = result.cell;
      }
      store_in_cluster(after + at, share.blocks, state);
    }
    sync_cluster(share.blocks);
    now = next;
    next = later;
  }
  store_result();
  for (int32_t item = 0; item < items; ++item) {
    if (!own.has(item, p.batch)) continue;
    const int64_t to = static_cast<int64_t>(own.sequence(item)) * hidden + own.unit;
    const A state = states[p.steps % 2 * size + own.row(item) * pitch + state_place(own.unit)];
    *element<T>(p.h_n, to) = from_compute<T>(state);
    if (G == 4) {
      const A cell = cells[item * kThreads + thread];
      *element<T>(p.c_n, to) = from_compute<T>(cell);
    }
  }
}

// Of a sequence the gradients that a lane reads lie together: those of the gates of `kDepth` units. Four
// gates are stored at once, by neighbouring units of two sequences.
template <int G>
D2LFAST_HOST_DEVICE constexpr int32_t gates_pitch(int32_t lanes) {
  return lanes * kUnits * (kDepth * G + kPad) + (G == 4 ? 16 : kPad);
}
template <int G>
__device__ int32_t gates_place(int32_t unit) {
  return unit / kDepth * (kDepth * G + kPad) + unit % kDepth * G;
}

// Shared memory: gradients of the gates of this step and the one before it [2][rows][pitch], of the states
// and the cell states [items][threads] each.
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster_backward(const RecurrentLayerParams p, const ClusterShare share) {
  using A = Compute<T>;
  const Place own(p, share);
  const int32_t hidden = p.hidden, pitch = gates_pitch<G>(share.lanes), size = share.rows * pitch;
  const int32_t items = (share.rows + own.at_once - 1) / own.at_once;
  const auto thread = static_cast<int32_t>(threadIdx.x), lane = thread % 32;
  const int32_t reads = lane % (kUnits * share.lanes);  // the number of the units whose gates the lane reads
  const auto gates = dynamic_shared<A>();
  const auto grads = gates + 2 * size;
  const auto grad_cells = grads + items * kThreads;
  A weight[kUnits][G][kDepth];
  const int32_t begin = own.unit - lane % kUnits;
  read_weights<T, G * kDepth>(
      share.by_fours,
      [&](int i) {
        const int32_t unit = reads * kDepth + i % kDepth;
        const int64_t row = static_cast<int64_t>(i / kDepth) * hidden + unit;
        return FourWeights<T>{element<T>(p.weight, row * hidden + begin), unit < hidden ? hidden - begin : 0};
      },
      [&](int i, int u, A value) { weight[u][i / kDepth][i % kDepth] = value; });
  for (int32_t i = thread; i < 2 * size; i += kThreads) gates[i] = A(0);
  for (int32_t item = 0; item < items; ++item) {
    if (!own.has(item, p.batch)) continue;
    const int64_t from = static_cast<int64_t>(own.sequence(item)) * hidden + own.unit;
    grads[item * kThreads + thread] = value_or_zero<T>(p.grad_h, from);
    if (G == 4) grad_cells[item * kThreads + thread] = value_or_zero<T>(p.grad_c, from);
  }
  const auto kept_in = [&](const Step& step, const Step& before, int32_t item) {
    if (!own.has(item, step.count)) return Kept<A, G>{};
    return kept_of<T, G>(p, step, before, own.sequence(item), own.unit);
  };
  Step now = step_in_order(p, 0, true), before = step_in_order(p, 1, true), next = step_in_order(p, 2, true);
  Kept<A, G> ahead = kept_in(now, before, 0);
  GateGradients<A, G> gradients;
  int64_t gradients_row = -1;
  const auto store = [&] {
    if (gradients_row >= 0) store_gradients<T, G>(p, gradients_row, own.unit, gradients);
    gradients_row = -1;
  };
  sync_cluster(share.blocks);
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step later = step_in_order(p, s + 3, true);
    const auto of_step = gates + s % 2 * size;
    for (int32_t item = 0; item < items; ++item) {
      store();
      const Kept<A, G> kept = ahead;
      ahead = item + 1 < items ? kept_in(now, before, item + 1) : kept_in(before, next, 0);
      if (!own.has(item, now.count)) continue;
      const int32_t at = item * kThreads + thread;
      A grad = grads[at], grad_cell = G == 4 ? static_cast<A>(grad_cells[at]) : A(0);
      gradients = backward_unit<A, G>(p.mode, kept, grad, grad_cell);
      gradients_row = now.offset + own.sequence(item);
      grads[at] = grad;
      if (G == 4) grad_cells[at] = grad_cell;
      const auto to = of_step + own.row(item) * pitch + gates_place<G>(own.unit);
      if constexpr (G == 4) {
        const auto& of = gradients.hidden.of;
        store_in_cluster(to, share.blocks, Vector<A, 4>{{of[0], of[1], of[2], of[3]}});
      } else {
#pragma unroll
        for (int g = 0; g < G; ++g) store_in_cluster(to + g, share.blocks, gradients.hidden.of[g]);
      }
    }
    sync_cluster(share.blocks);
    store();
    for (int32_t item = 0; item < items; ++item) {
      A grad = 0;
      own.visit_lanes(item, now.count, [&](int32_t row, bool mine) {
        A sums[kUnits] = {};
        const auto from = of_step + row * pitch + reads * (kDepth * G + kPad);
#pragma unroll
        for (int i = 0; i < kDepth * G; i += 4) {
          const auto gradient = load_shared<4>(from + i);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int g = (i + n) % G, k = (i + n) / G;
#pragma unroll
            for (int u = 0; u < kUnits; ++u) sums[u] = fma(gradient.lane[n], weight[u][g][k], sums[u]);
          }
        }
        add_over_lanes<kUnits / 2>(sums, lane);
        A sum[1] = {sums[0]};
        own.add_over_parts(sum);
        grad = mine ? sum[0] : grad;
      });
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
  for (int32_t item = 0; item < items; ++item) {
    if (!own.has(item, p.batch)) continue;
    const int64_t to = static_cast<int64_t>(own.sequence(item)) * hidden + own.unit;
    const A grad = grads[item * kThreads + thread];
    *element<T>(p.grad_h_0, to) = from_compute<T>(grad);
    if (G == 4) {
      const A grad_cell = grad_cells[item * kThreads + thread];
      *element<T>(p.grad_c_0, to) = from_compute<T>(grad_cell);
    }
  }
}

struct ClusterPlan {
  ClusterShare share;  // no rows: it does not fit
  int64_t clusters, waves, shared_bytes;
};

ClusterPlan plan_of(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool backward) {
  constexpr int64_t kRegisters = 65536;  // of a block: up to 255 a thread
  const DeviceLimits limits = device_limits();
  int32_t lanes = 1;
  while (lanes < 8 && lanes * kStates < hidden) lanes *= 2;
  const int32_t warps = lanes * lanes, blocks = warps < kWarps ? 1 : warps / kWarps;
  const bool fits = hidden <= lanes * kStates && dtype != DType::kFloat64 && limits.registers >= kRegisters &&
                    (blocks == 1 || limits.clusters);
  if (!fits) return {};
  const int64_t pitch = !backward                  ? state_pitch(lanes)
                        : mode == LayerMode::kLSTM ? gates_pitch<4>(lanes)
                        : mode == LayerMode::kGRU  ? gates_pitch<3>(lanes)
                                                   : gates_pitch<1>(lanes);
  constexpr int64_t kBytes = sizeof(float);
  const int64_t of_threads = mode == LayerMode::kLSTM ? 1 + backward : backward;
  const auto bytes = [&](int64_t rows) {
    const int64_t items = divide_up(rows, sequences_at_once(lanes));
    return kBytes * (2 * rows * pitch + of_threads * items * kThreads);
  };
  const int64_t clusters = std::max<int64_t>(1, limits.processors / blocks);
  int64_t rows = std::min(divide_up(batch, clusters), limits.shared_bytes / (2 * kBytes * pitch));
  while (rows > 0 && bytes(rows) > limits.shared_bytes) --rows;
  if (rows == 0) return {};
  const int64_t needed = divide_up(batch, rows);
  return {{lanes, blocks, static_cast<int32_t>(rows), false},
          needed,
          divide_up(needed * blocks, limits.processors),
          bytes(rows)};
}

// Instructions of a warp are counted in sm_90's disassembly: those of a sequence's products, which read 32
// wavefronts of shared memory, and some 300 for what a thread does with its sequence; a barrier and what each
// step waits for come on top.
int64_t cycles_of_step(const ClusterPlan& plan, int64_t gates, bool backward) {
  const int32_t lanes = plan.share.lanes, at_once = sequences_at_once(lanes);
  const int64_t halvings = lanes == 8 ? 3 : lanes / 2, sums = backward ? 1 : gates;
  const int64_t shared = lanes > 1 ? (backward ? 14 : 20) + 2 * sums * halvings : 0;
  const int64_t issued = 34 * gates + (backward ? 23 : 9) + shared;
  const int64_t read = 32 + sums * halvings;
  const int64_t products = divide_up(plan.share.rows * lanes, at_once) * std::max(2 * issued, 8 * read);
  const int64_t cycles = products + divide_up(plan.share.rows, at_once) * 2 * 300;
  return plan.waves * (cycles * 5 / 4 + (plan.share.blocks > 1 ? 1000 : 500));
}

template <bool kBackward>
cudaError_t run(const RecurrentLayerParams& p, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  ClusterPlan plan = plan_of(p.mode, p.hidden, p.batch, dtype, kBackward);
  if (plan.share.rows == 0) return cudaErrorInvalidValue;
  LaunchShape shape{static_cast<unsigned>(plan.clusters * plan.share.blocks), kThreads,
                    static_cast<size_t>(plan.shared_bytes)};
  shape.cluster = static_cast<unsigned>(plan.share.blocks);
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (std::is_same_v<T, double>) {
      return cudaErrorInvalidValue;
    } else {
      plan.share.by_fours = p.hidden % 4 == 0 && aligned(p.weight, 4 * sizeof(T));
      return with_gates(p.mode, [&](auto gates) {
        constexpr int G = decltype(gates)::value;
        const auto kernel = kBackward ? recurrent_cluster_backward<T, G> : recurrent_cluster<T, G>;
        return launch(kernel, shape, stream, p, plan.share);
      });
    }
  });
}

}  // namespace

bool recurrent_cluster_fits(LayerMode mode, int64_t hidden, DType dtype) {
  return plan_of(mode, hidden, 1, dtype, true).share.rows > 0;  // backward needs more than forward
}

bool recurrent_cluster_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool training) {
  const auto step = [&](bool backward) {
    const ClusterPlan plan = plan_of(mode, hidden, std::max<int64_t>(1, batch), dtype, backward);
    return kCycle * static_cast<double>(cycles_of_step(plan, layer_gates(mode), backward));
  };
  return step(false) + (training ? step(true) : 0) <
         native_step(mode, hidden, batch, dtype) * (training ? 2 : 1);
}

cudaError_t launch_recurrent_cluster(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream) {
  return run<false>(params, dtype, stream);
}

cudaError_t launch_recurrent_cluster_backward(const RecurrentLayerParams& params, DType dtype,
                                              cudaStream_t stream) {
  return run<true>(params, dtype, stream);
}

}  // namespace d2lfast::cuda
