#include "recurrent_cluster.h"

#include <algorithm>
#include <cstdint>

#include "device_limits.h"
#include "recurrent_cluster.cuh"
#include "recurrent_step_time.h"
#include "warp_sum.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kStates = 32;  // of a unit's product, for each of the lanes that share it
constexpr int kUnits = 4;    // neighbours in a warp: four lanes differ in the unit alone
constexpr int kDepth = kStates / kUnits;
constexpr int kPad = 4;  // so that lanes by 16 bytes, and sequences, begin in different banks

// Warps that have all units of a block. Others have the same units and other sequences.
D2LFAST_HOST_DEVICE constexpr int32_t unit_warps(int32_t lanes) {
  return lanes * lanes < kWarps ? lanes * lanes : kWarps;
}

// A thread's unit, whose product it computes a part of, for the sequences of all lanes of the unit.
struct UnitLanes {
  int32_t unit, part, first, rows;  // first, rows: the cluster's sequences
  int32_t group, lanes, at_once;

  __device__ UnitLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : first(static_cast<int32_t>(blockIdx.x) / share.blocks * share.rows),
        lanes(share.lanes),
        at_once(share.at_once()) {
    const auto lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t warps = unit_warps(lanes), rank = static_cast<int32_t>(blockIdx.x) % share.blocks;
    const int32_t first_unit = (rank * warps + warp % warps) * (32 / lanes);
    unit = first_unit + lane / (kUnits * lanes) * kUnits + lane % kUnits;
    part = lane / kUnits % lanes;
    group = warp / warps;
    rows = first_unit < p.hidden ? share.rows : 0;
  }

  // The first of the lanes' sequences, counted from the cluster's first.
  __device__ int32_t begin(int32_t item) const { return item * at_once + group * lanes; }
  __device__ int32_t row(int32_t item) const { return begin(item) + part; }
  __device__ float exchanged(float value) const { return value; }

  // visit(row, whether it is the thread's) for those of the lanes' sequences that are among the first.
  template <typename Visit>
  __device__ void visit_lanes(int32_t item, int32_t sequences, Visit&& visit) const {
    const int32_t end = rows < sequences ? rows : sequences;
    for (int32_t i = 0; i < lanes; ++i) {
      if (begin(item) + i >= end) break;
      visit(begin(item) + i, i == part);
    }
  }

  // The sum of each value over the lanes of a unit.
  template <int N>
  __device__ void add_over_parts(float (&values)[N]) const {
#pragma unroll
    for (int32_t number = 1; number < 8; number *= 2) {
      if (lanes <= number) break;
#pragma unroll
      for (int n = 0; n < N; ++n) values[n] += shuffle_xor(values[n], kUnits * number);
    }
  }
};

D2LFAST_HOST_DEVICE constexpr int32_t state_pitch(int32_t lanes) { return lanes * (kStates + kPad) + kPad; }

template <int G>
struct ForwardLanes : UnitLanes {
  ClusterMemory memory;
  float weight[G][kStates];

  __device__ ForwardLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : UnitLanes(p, share), memory{state_pitch(share.lanes), 1, 0} {
    const int32_t begin = part * kStates, left = unit < p.hidden ? p.hidden - begin : 0;
    read_weights<float, G * kStates / 4>(
        share.by_fours,
        [&](int i) {
          const int g = i / (kStates / 4), k = i % (kStates / 4) * 4;
          const int64_t row = static_cast<int64_t>(g) * p.hidden + unit;
          return FourWeights<float>{element<float>(p.weight, row * p.hidden + begin + k), left - k};
        },
        [&](int i, int n, float value) { weight[i / (kStates / 4)][i % (kStates / 4) * 4 + n] = value; });
  }

  __device__ int32_t place(int32_t k) const { return k / kStates * (kStates + kPad) + k % kStates; }

  __device__ Gates<float, G> product(SharedPointer<float> states, int32_t item, int32_t sequences) const {
    Gates<float, G> product = {};
    visit_lanes(item, sequences, [&](int32_t row, bool mine) {
      // Four sums of a single gate, lest each product wait for the one before.
      constexpr int kSums = G == 1 ? 4 : 1;
      float parts[G][kSums] = {}, sums[G];
      const auto from = states + (row * memory.pitch + part * (kStates + kPad));
#pragma unroll
      for (int k = 0; k < kStates; k += 4) {
        const auto state = load_shared<4>(from + k);
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float& to = parts[g][n % kSums];
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
      add_over_parts(sums);
#pragma unroll
      for (int g = 0; g < G; ++g) product.of[g] = mine ? sums[g] : product.of[g];
    });
    return product;
  }
};

// Of a sequence the gradients that a lane reads lie together: those of the gates of `kDepth` units. Four
// gates are stored at once, by neighbouring units of two sequences.
D2LFAST_HOST_DEVICE constexpr int32_t gates_pitch(int32_t gates, int32_t lanes) {
  return lanes * kUnits * (kDepth * gates + kPad) + (gates == 4 ? 16 : kPad);
}

template <int G>
struct BackwardLanes : UnitLanes {
  ClusterMemory memory;
  int32_t lane, reads;  // reads: the number of the units whose gates the lane reads
  float weight[kUnits][G][kDepth];

  __device__ BackwardLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : UnitLanes(p, share),
        memory{gates_pitch(G, share.lanes), 1, 0},
        lane(static_cast<int32_t>(threadIdx.x) % 32),
        reads(lane % (kUnits * share.lanes)) {
    const int32_t begin = unit - lane % kUnits;
    read_weights<float, G * kDepth>(
        share.by_fours,
        [&](int i) {
          const int32_t of = reads * kDepth + i % kDepth;
          const int64_t row = static_cast<int64_t>(i / kDepth) * p.hidden + of;
          return FourWeights<float>{element<float>(p.weight, row * p.hidden + begin),
                                    of < p.hidden ? p.hidden - begin : 0};
        },
        [&](int i, int u, float value) { weight[u][i / kDepth][i % kDepth] = value; });
  }

  __device__ int32_t place(int32_t of) const { return of / kDepth * (kDepth * G + kPad) + of % kDepth * G; }

  __device__ float product(SharedPointer<float> gates, int32_t item, int32_t sequences) const {
    float product = 0;
    visit_lanes(item, sequences, [&](int32_t row, bool mine) {
      float sums[kUnits] = {};
      const auto from = gates + (row * memory.pitch + reads * (kDepth * G + kPad));
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
      float sum[1] = {sums[0]};
      add_over_parts(sum);
      product = mine ? sum[0] : product;
    });
    return product;
  }
};

template <int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_forward<float, G, ForwardLanes<G>>(p, share);
}

template <int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster_backward(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_backward<float, G, BackwardLanes<G>>(p, share);
}

struct ClusterPlan {
  ClusterShare share;  // no rows: it does not fit
  ClusterMemory memory;
  int64_t clusters, waves, shared_bytes;
};

// How the products of a layer are computed.
bool on_tensor_cores(DType dtype, bool tf32) { return tf32 || dtype != DType::kFloat32; }

ClusterPlan plan_of(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool tf32, bool backward) {
  constexpr int64_t kRegisters = 65536;  // of a block: up to 255 a thread
  const DeviceLimits limits = device_limits();
  ClusterPlan plan{};
  ClusterShare& share = plan.share;
  share.lanes = 1;
  while (share.lanes < 8 && share.lanes * kStates < hidden) share.lanes *= 2;
  const bool tensor_cores = on_tensor_cores(dtype, tf32);
  share.blocks = share.lanes <= 2 ? 1 : tensor_cores ? share.lanes : share.lanes * share.lanes / kWarps;
  const bool fits = hidden <= share.lanes * kStates && dtype != DType::kFloat64 &&
                    limits.registers >= kRegisters && (share.blocks == 1 || limits.clusters);
  if (!fits) return {};
  const auto gates = static_cast<int32_t>(layer_gates(mode));
  plan.memory = tensor_cores ? tensor_core_memory(gates, share.lanes, backward)
                : backward   ? ClusterMemory{gates_pitch(gates, share.lanes), 1, 0}
                             : ClusterMemory{state_pitch(share.lanes), 1, 0};
  const auto bytes = [&](int32_t rows) {
    ClusterShare of = share;
    of.rows = rows;
    const int64_t kept = int64_t{mode == LayerMode::kLSTM ? 2 : 1} * plan.memory.items(of) * kThreads;
    return static_cast<int64_t>(sizeof(float)) * (2 * plan.memory.exchanged(of) + plan.memory.sums + kept);
  };
  const int64_t clusters = std::max<int64_t>(1, limits.processors / share.blocks);
  constexpr int64_t kMost = 1024;  // more than fit
  share.rows = static_cast<int32_t>(std::min(divide_up(batch, clusters), kMost));
  while (share.rows > 0 && bytes(share.rows) > limits.shared_bytes) --share.rows;
  if (share.rows == 0) return {};
  plan.clusters = divide_up(batch, share.rows);
  plan.waves = divide_up(plan.clusters * share.blocks, limits.processors);
  plan.shared_bytes = bytes(share.rows);
  return plan;
}

// Cycles of a step's products. Of lanes: instructions of a warp, counted in sm_90's disassembly, or
// wavefronts of shared memory, of which a sequence's products read 32. Of tensor cores: multiplications at
// 512 a cycle.
int64_t cycles_of_products(const ClusterPlan& plan, int64_t gates, bool tensor_cores, bool backward) {
  const int64_t lanes = plan.share.lanes, rows = plan.memory.rows(plan.share);
  if (tensor_cores)
    return rows * gates * std::max<int64_t>(64, 32 * lanes) * 32 * lanes / plan.share.blocks / 512;
  const int64_t halvings = lanes == 8 ? 3 : lanes / 2, sums = backward ? 1 : gates;
  const int64_t shared = lanes > 1 ? (backward ? 14 : 20) + 2 * sums * halvings : 0;
  const int64_t issued = 34 * gates + (backward ? 23 : 9) + shared;
  const int64_t read = 32 + sums * halvings;
  return divide_up(rows * lanes, plan.share.at_once()) * std::max(2 * issued, 8 * read);
}

// A thread's sequence takes it some 300 instructions, with parts of sums through shared memory 400; a barrier
// and what each step waits for come on top.
int64_t cycles_of_step(const ClusterPlan& plan, int64_t gates, bool tensor_cores, bool backward) {
  const int64_t products = cycles_of_products(plan, gates, tensor_cores, backward);
  const int64_t cycles = products + plan.memory.items(plan.share) * 2 * (tensor_cores ? 400 : 300);
  return plan.waves * (cycles * 5 / 4 + (plan.share.blocks > 1 ? 1000 : 500));
}

cudaError_t launch_on_lanes(const RecurrentLayerParams& p, const ClusterShare& share, bool backward,
                            const LaunchShape& shape, cudaStream_t stream) {
  return with_gates(p.mode, [&](auto gates) {
    constexpr int G = decltype(gates)::value;
    return launch(backward ? recurrent_cluster_backward<G> : recurrent_cluster<G>, shape, stream, p, share);
  });
}

cudaError_t run(const RecurrentLayerParams& p, bool backward, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  ClusterPlan plan = plan_of(p.mode, p.hidden, p.batch, dtype, p.tf32, backward);
  if (plan.share.rows == 0) return cudaErrorInvalidValue;
  plan.share.by_fours = p.hidden % 4 == 0 && aligned(p.weight, static_cast<size_t>(4 * bytes_of(dtype)));
  LaunchShape shape{static_cast<unsigned>(plan.clusters * plan.share.blocks), kThreads,
                    static_cast<size_t>(plan.shared_bytes)};
  shape.cluster = static_cast<unsigned>(plan.share.blocks);
  return on_tensor_cores(dtype, p.tf32)
             ? launch_on_tensor_cores(p, plan.share, backward, dtype, shape, stream)
             : launch_on_lanes(p, plan.share, backward, shape, stream);
}

}  // namespace

bool recurrent_cluster_fits(LayerMode mode, int64_t hidden, DType dtype, bool tf32) {
  return plan_of(mode, hidden, 1, dtype, tf32, false).share.rows > 0 &&
         plan_of(mode, hidden, 1, dtype, tf32, true).share.rows > 0;
}

bool recurrent_cluster_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool tf32,
                            bool training) {
  const auto step = [&](bool backward) {
    const ClusterPlan plan = plan_of(mode, hidden, std::max<int64_t>(1, batch), dtype, tf32, backward);
    const int64_t cycles = cycles_of_step(plan, layer_gates(mode), on_tensor_cores(dtype, tf32), backward);
    return kCycle * static_cast<double>(cycles);
  };
  return step(false) + (training ? step(true) : 0) <
         native_step(mode, hidden, batch, dtype) * (training ? 2 : 1);
}

cudaError_t launch_recurrent_cluster(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream) {
  return run(params, false, dtype, stream);
}

cudaError_t launch_recurrent_cluster_backward(const RecurrentLayerParams& params, DType dtype,
                                              cudaStream_t stream) {
  return run(params, true, dtype, stream);
}

}  // namespace d2lfast::cuda
