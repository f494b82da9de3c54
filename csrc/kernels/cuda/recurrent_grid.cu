#include "recurrent_grid.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "device.cuh"
#include "device_limits.h"
#include "recurrent_layer_unit.cuh"
#include "recurrent_step_time.h"
#include "warp_sum.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kTileRows = 8, kTileSequences = 4;  // a warp's sums, one for each lane
constexpr int kWarps = kThreads / 32;

// What a block has: `units` of the layer for `sequences` of the batch, of which `staged` are in shared memory
// at a time. `pitch`: the length of a product, filled up to 16 bytes.
struct GridShare {
  int32_t units, sequences, staged, pitch;
};

template <typename T>
constexpr int kLanes = 16 / sizeof(Compute<T>);

// A block's place in the layer and the batch.
struct Place {
  int32_t unit, units, sequence, sequences;
  bool last;  // has the layer's last units

  __device__ Place(const RecurrentLayerParams& p, const GridShare& share) {
    unit = static_cast<int32_t>(blockIdx.x) * share.units;
    units = unit + share.units < p.hidden ? share.units : p.hidden - unit;
    sequence = static_cast<int32_t>(blockIdx.y) * share.sequences;
    sequences = sequence + share.sequences < p.batch ? share.sequences : p.batch - sequence;
    last = unit + units == p.hidden;
  }

  // visit(sequence, unit) for all of the block's; neighbouring threads take neighbouring units.
  template <typename Visit>
  __device__ void visit(Visit&& body) const {
    for (int32_t i = threadIdx.x; i < sequences * units; i += kThreads) {
      const int32_t s = i / units;
      body(sequence + s, unit + i - s * units);
    }
  }
};

// Rows [first, first + count) of `from` [*,pitch]; zeros for the rest of the staged ones.
template <typename A>
__device__ void stage(const SharedPointer<A>& to, const A* from, int64_t first, int32_t count,
                      const GridShare& share) {
  constexpr int V = 16 / sizeof(A);
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * V; i < share.staged * share.pitch; i += kThreads * V) {
    const int32_t row = i / share.pitch, k = i - row * share.pitch;
    const bool valid = row < count;
    copy_async_16(to + i, from + (valid ? (first + row) * share.pitch + k : 0), valid);
  }
  commit_async();
  wait_async<0>();
}

__device__ inline int32_t filled_rows(int32_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// sums [staged][filled_rows] of staged [staged][pitch] by weight [rows][pitch]: the lanes of a warp share out
// the product's length.
template <typename T>
__device__ void multiply(const SharedPointer<Compute<T>>& sums, const SharedPointer<Compute<T>>& staged,
                         const SharedPointer<T>& weight, int32_t rows, const GridShare& share) {
  using A = Compute<T>;
  constexpr int V = kLanes<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t filled = filled_rows(rows), row_tiles = filled / kTileRows;
  const int32_t tiles = row_tiles * (share.staged / kTileSequences);
  for (int32_t tile = static_cast<int32_t>(threadIdx.x) / 32; tile < tiles; tile += kWarps) {
    const int32_t sequence_tile = tile / row_tiles, sequence = sequence_tile * kTileSequences;
    const int32_t row = (tile - sequence_tile * row_tiles) * kTileRows;
    A sum[kTileRows * kTileSequences] = {};
#pragma unroll 1
    for (int32_t k = lane * V; k < share.pitch; k += 32 * V) {
      Vector<A, V> state[kTileSequences];
#pragma unroll
      for (int i = 0; i < kTileSequences; ++i) {
        state[i] = load_shared<V>(staged + (sequence + i) * share.pitch + k);
      }
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        const int32_t stored = row + r < rows ? row + r : rows - 1;
        const auto factors = load_shared<V>(weight + stored * share.pitch + k);
#pragma unroll
        for (int n = 0; n < V; ++n) {
          const A factor = to_compute(factors.lane[n]);
#pragma unroll
          for (int i = 0; i < kTileSequences; ++i) {
            A& to = sum[r * kTileSequences + i];
            to = fma(state[i].lane[n], factor, to);
          }
        }
      }
    }
    add_over_lanes<16>(sum, lane);
    sums[(sequence + lane % kTileSequences) * filled + row + lane / kTileSequences] = sum[0];
  }
}

// Workspace: states before and after a step [2][N][pitch], cell states [N,H].
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_grid(const RecurrentLayerParams p, void* workspace, const GridShare share) {
  using A = Compute<T>;
  const Place own(p, share);
  const int32_t hidden = p.hidden, pitch = share.pitch, rows = own.units * G, filled = filled_rows(rows);
  const int64_t size = static_cast<int64_t>(p.batch) * pitch;
  A* states = static_cast<A*>(workspace);
  A* cells = states + 2 * size;
  const auto staged = dynamic_shared<A>();
  const auto sums = staged + share.staged * pitch;
  const auto weight =
      dynamic_shared<T>() + share.staged * (pitch + filled) * static_cast<int32_t>(sizeof(A) / sizeof(T));
  for (int32_t i = threadIdx.x; i < rows * pitch; i += kThreads) {
    const int32_t row = i / pitch, k = i - row * pitch, g = row / own.units;
    const int64_t from = static_cast<int64_t>(g) * hidden + own.unit + row - g * own.units;
    weight[i] = k < hidden ? *element<T>(p.weight, from * hidden + k) : T{};
  }
  own.visit([&](int64_t sequence, int32_t unit) {
    const int64_t at = sequence * hidden + unit;
    states[sequence * pitch + unit] = to_compute(*element<T>(p.h_0, at));
    if (G == 4) cells[at] = to_compute(*element<T>(p.c_0, at));
  });
  if (own.last) {
    for (int32_t i = threadIdx.x; i < own.sequences * (pitch - hidden); i += kThreads) {
      const int32_t s = i / (pitch - hidden);
      const int64_t at = static_cast<int64_t>(own.sequence + s) * pitch + hidden + i - s * (pitch - hidden);
      states[at] = states[size + at] = A(0);
    }
  }
  sync_grid();
  for (int32_t step = 0; step < p.steps; ++step) {
    const Step now = step_at(p, p.reversed ? p.steps - 1 - step : step);
    const A* before = states + step % 2 * size;
    A* after = states + (step + 1) % 2 * size;
    own.visit([&](int32_t sequence, int32_t unit) {
      if (sequence >= now.count) return;
      const A* inputs = element<A>(p.products, (now.offset + sequence) * G * hidden + unit);
#pragma unroll
      for (int g = 0; g < G; ++g) prefetch(inputs + g * hidden);
    });
    for (int32_t done = 0; done < own.sequences; done += share.staged) {
      if (done > 0) __syncthreads();
      stage(staged, before, own.sequence + done, own.sequences - done, share);
      __syncthreads();
      multiply<T>(sums, staged, weight, rows, share);
      __syncthreads();
      for (int32_t i = threadIdx.x; i < share.staged * own.units; i += kThreads) {
        const int32_t s = i / own.units, u = i - s * own.units;
        if (done + s >= own.sequences) continue;
        const int32_t sequence = own.sequence + done + s, unit = own.unit + u;
        A state = staged[s * pitch + unit];
        if (sequence < now.count) {
          Gates<A, G> sum;
#pragma unroll
          for (int g = 0; g < G; ++g) sum.of[g] = sums[s * filled + g * own.units + u];
          const int64_t row = now.offset + sequence, at = static_cast<int64_t>(sequence) * hidden + unit;
          const A cell = G == 4 ? cells[at] : A(0);
          const auto input = input_gates<T, G>(p, row, unit), bias = bias_gates<T, G>(p, unit);
          const auto result = forward_unit<A, G>(p.mode, state, cell, input, sum, bias);
          store_unit<T, G>(p, row, unit, result);
          state = result.state;
          if (G == 4) cells[at] = result.cell;
        }
        after[static_cast<int64_t>(sequence) * pitch + unit] = state;
      }
    }
    sync_grid();
  }
  own.visit([&](int64_t sequence, int32_t unit) {
    const int64_t at = sequence * hidden + unit;
    *element<T>(p.h_n, at) = from_compute<T>(states[p.steps % 2 * size + sequence * pitch + unit]);
    if (G == 4) *element<T>(p.c_n, at) = from_compute<T>(cells[at]);
  });
}

// Workspace: gradients of the gates of this step and the one before it [2][N][pitch], of the states and the
// cell states [N,H] each.
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_grid_backward(const RecurrentLayerParams p, void* workspace, const GridShare share) {
  using A = Compute<T>;
  const Place own(p, share);
  const int32_t hidden = p.hidden, width = G * hidden, pitch = share.pitch, filled = filled_rows(own.units);
  const int64_t size = static_cast<int64_t>(p.batch) * pitch;
  A* gates = static_cast<A*>(workspace);
  A* grads = gates + 2 * size;
  A* grad_cells = grads + static_cast<int64_t>(p.batch) * hidden;
  const auto staged = dynamic_shared<A>();
  const auto sums = staged + share.staged * pitch;
  const auto weight =
      dynamic_shared<T>() + share.staged * (pitch + filled) * static_cast<int32_t>(sizeof(A) / sizeof(T));
  visit_transposed(own.units, pitch, [&](int32_t u, int32_t j) {
    weight[u * pitch + j] =
        j < width ? *element<T>(p.weight, static_cast<int64_t>(j) * hidden + own.unit + u) : T{};
  });
  own.visit([&](int64_t sequence, int32_t unit) {
    const int64_t at = sequence * hidden + unit;
    grads[at] = value_or_zero<T>(p.grad_h, at);
    if (G == 4) grad_cells[at] = value_or_zero<T>(p.grad_c, at);
  });
  if (own.last) {
    for (int32_t i = threadIdx.x; i < own.sequences * (pitch - width); i += kThreads) {
      const int32_t s = i / (pitch - width);
      const int64_t at = static_cast<int64_t>(own.sequence + s) * pitch + width + i - s * (pitch - width);
      gates[at] = gates[size + at] = A(0);
    }
  }
  for (int32_t step = 0; step < p.steps; ++step) {
    const Step now = step_at(p, p.reversed ? step : p.steps - 1 - step);
    const Step before = step_before(p, now);
    A* of_step = gates + step % 2 * size;
    own.visit([&](int32_t sequence, int32_t unit) {
      const int64_t at = static_cast<int64_t>(sequence) * hidden + unit;
      Gates<A, G> recurrent = {};
      if (sequence < now.count) {
        A grad = grads[at], grad_cell = G == 4 ? grad_cells[at] : A(0);
        const auto kept = kept_of<T, G>(p, now, before, sequence, unit);
        const auto gradients = backward_unit<A, G>(p.mode, kept, grad, grad_cell);
        store_gradients<T, G>(p, now.offset + sequence, unit, gradients);
        recurrent = gradients.hidden;
        grads[at] = grad;
        if (G == 4) grad_cells[at] = grad_cell;
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        of_step[static_cast<int64_t>(sequence) * pitch + g * hidden + unit] = recurrent.of[g];
      }
    });
    sync_grid();
    if (G > 1) {
      own.visit([&](int32_t sequence, int32_t unit) {
        if (sequence >= before.count) return;
        const T* saved = element<T>(p.saved, (before.offset + sequence) * 4 * hidden + unit);
#pragma unroll
        for (int i = 0; i < 4; ++i) prefetch(saved + i * hidden);
      });
    }
    for (int32_t done = 0; done < own.sequences; done += share.staged) {
      stage(staged, const_cast<const A*>(of_step), own.sequence + done, own.sequences - done, share);
      __syncthreads();
      multiply<T>(sums, staged, weight, own.units, share);
      __syncthreads();
      for (int32_t i = threadIdx.x; i < share.staged * own.units; i += kThreads) {
        const int32_t s = i / own.units, u = i - s * own.units, sequence = own.sequence + done + s;
        // A sequence that takes no part keeps its gradient.
        if (done + s < own.sequences && sequence < now.count) {
          grads[static_cast<int64_t>(sequence) * hidden + own.unit + u] += sums[s * filled + u];
        }
      }
      __syncthreads();
    }
  }
  own.visit([&](int64_t sequence, int32_t unit) {
    const int64_t at = sequence * hidden + unit;
    *element<T>(p.grad_h_0, at) = from_compute<T>(grads[at]);
    if (G == 4) *element<T>(p.grad_c_0, at) = from_compute<T>(grad_cells[at]);
  });
}

int64_t compute_bytes_of(DType dtype) { return std::max<int64_t>(4, bytes_of(dtype)); }

int64_t pitch_of(LayerMode mode, int64_t hidden, DType dtype, bool backward) {
  const int64_t lanes = 16 / compute_bytes_of(dtype);
  return divide_up((backward ? layer_gates(mode) : 1) * hidden, lanes) * lanes;
}

struct GridPlan {
  GridShare share;
  int64_t unit_blocks = 0, groups, shared_bytes;  // no blocks: the weight does not fit
  double cycles;                                  // of a step, between two barriers
};

// Of the ways to share out units and sequences, that with the shortest computed step.
GridPlan make_plan(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool backward,
                   const DeviceLimits& limits) {
  const int64_t unit_rows = backward ? 1 : layer_gates(mode), compute = compute_bytes_of(dtype);
  const int64_t pitch = pitch_of(mode, hidden, dtype, backward);
  const int64_t iterations = divide_up(pitch * compute, 32 * 16);
  GridPlan best{};
  for (int64_t wanted = 1; wanted <= std::min(limits.processors, hidden); ++wanted) {
    const int64_t units = divide_up(hidden, wanted), unit_blocks = divide_up(hidden, units);
    const int64_t rows = units * unit_rows, row_tiles = divide_up(rows, kTileRows);
    const int64_t row_bytes = (pitch + row_tiles * kTileRows) * compute;  // of a staged sequence
    const int64_t most = (limits.shared_bytes - rows * pitch * bytes_of(dtype)) / row_bytes;
    if (most < kTileSequences) continue;
    const auto in_tiles = [](int64_t n) { return divide_up(n, kTileSequences) * kTileSequences; };
    const int64_t sequences = in_tiles(divide_up(batch, limits.processors / unit_blocks));
    const int64_t groups = divide_up(batch, sequences);
    const int64_t chunks = divide_up(sequences, most / kTileSequences * kTileSequences);
    const int64_t staged = in_tiles(divide_up(sequences, chunks));
    const int64_t rounds = divide_up(row_tiles * (staged / kTileSequences), kWarps);
    // 12 vectors from shared memory take 48 cycles of the multiprocessor, more than their products; all
    // blocks together read 3000 bytes a cycle from the L2 cache.
    const double arithmetic = static_cast<double>(rounds * kWarps * iterations * 48);
    const double exchange = static_cast<double>(unit_blocks * batch * pitch * compute) / 3000;
    const double cycles = static_cast<double>(chunks) * (arithmetic + 1000) + exchange;
    if (best.unit_blocks > 0 && cycles >= best.cycles) continue;
    best = {{static_cast<int32_t>(units), static_cast<int32_t>(sequences), static_cast<int32_t>(staged),
             static_cast<int32_t>(pitch)},
            unit_blocks,
            groups,
            rows * pitch * bytes_of(dtype) + staged * row_bytes,
            cycles};
  }
  return best;
}

// Plans are kept: a layer asks for the same ones in every call.
GridPlan plan_of(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool backward) {
  using Key = std::tuple<LayerMode, int64_t, int64_t, DType, bool, int64_t, int64_t>;
  static std::mutex lock;
  static std::map<Key, GridPlan> plans;
  const DeviceLimits limits = device_limits();
  const Key key{mode, hidden, batch, dtype, backward, limits.processors, limits.shared_bytes};
  const std::lock_guard guard(lock);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  return plans[key] = make_plan(mode, hidden, batch, dtype, backward, limits);
}

template <bool kBackward>
cudaError_t run(const RecurrentLayerParams& p, void* workspace, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  const GridPlan plan = plan_of(p.mode, p.hidden, p.batch, dtype, kBackward);
  if (plan.unit_blocks == 0 || !aligned(workspace, 16)) return cudaErrorInvalidValue;
  const LaunchShape shape{{static_cast<unsigned>(plan.unit_blocks), static_cast<unsigned>(plan.groups)},
                          kThreads,
                          static_cast<size_t>(plan.shared_bytes),
                          true};
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_gates(p.mode, [&](auto gates) {
      constexpr int G = decltype(gates)::value;
      const auto kernel = kBackward ? recurrent_grid_backward<T, G> : recurrent_grid<T, G>;
      return launch(kernel, shape, stream, p, workspace, plan.share);
    });
  });
}

}  // namespace

int64_t recurrent_grid_workspace(LayerMode mode, int64_t hidden, int64_t batch, DType dtype) {
  if (hidden * batch == 0) return 0;
  for (const bool backward : {false, true}) {
    if (plan_of(mode, hidden, batch, dtype, backward).unit_blocks == 0) return 0;
  }
  return 2 * batch * (pitch_of(mode, hidden, dtype, true) + hidden);
}

bool recurrent_grid_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool training) {
  constexpr double kBarrier = 1500;  // ns
  if (recurrent_grid_workspace(mode, hidden, batch, dtype) == 0) return false;
  const auto step = [&](bool backward) {
    return kBarrier + kCycle * plan_of(mode, hidden, batch, dtype, backward).cycles;
  };
  return step(false) + (training ? step(true) : 0) <
         native_step(mode, hidden, batch, dtype) * (training ? 2 : 1);
}

cudaError_t launch_recurrent_grid(const RecurrentLayerParams& params, void* workspace, DType dtype,
                                  cudaStream_t stream) {
  return run<false>(params, workspace, dtype, stream);
}

cudaError_t launch_recurrent_grid_backward(const RecurrentLayerParams& params, void* workspace, DType dtype,
                                           cudaStream_t stream) {
  return run<true>(params, workspace, dtype, stream);
}

}  // namespace d2lfast::cuda
