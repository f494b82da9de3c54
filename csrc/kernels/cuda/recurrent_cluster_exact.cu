#include <cstdint>

#include "recurrent_cluster.cuh"
#include "warp_sum.cuh"

// Products of float32, exact, on the ordinary units: one, two, four or eight lanes share a unit, each with 32
// elements of its weights.
namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kStates = kLaneUnits;  // of a unit's product, for each of its lanes
constexpr int kUnits = 4;            // neighbours in a warp: four lanes differ in the unit alone
constexpr int kDepth = kStates / kUnits;
constexpr int kPad = 4;  // so that lanes by 16 bytes, and sequences, begin in different banks

// Warps that have all units of a block. Others have the same units and other sequences.
D2LFAST_HOST_DEVICE constexpr int32_t unit_warps(int32_t lanes) {
  return lanes * lanes < kWarps ? lanes * lanes : kWarps;
}

// A thread's unit, whose product it computes a part of, for the sequences of all lanes of the unit.
struct UnitLanes {
  int32_t unit, part, rows;  // rows: the cluster's sequences
  int32_t group, lanes, at_once;

  __device__ UnitLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : lanes(share.lanes), at_once(share.at_once()) {
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

D2LFAST_HOST_DEVICE constexpr ClusterMemory memory_of(int32_t lanes) {
  return {lanes * (kStates + kPad) + kPad, 1, 0};
}

template <int G>
struct ForwardLanes : UnitLanes {
  ClusterMemory memory;
  float weight[G][kStates];

  __device__ ForwardLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : UnitLanes(p, share), memory(memory_of(share.lanes)) {
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
D2LFAST_HOST_DEVICE constexpr ClusterMemory memory_of_gates(int32_t gates, int32_t lanes) {
  return {lanes * kUnits * (kDepth * gates + kPad) + (gates == 4 ? 16 : kPad), 1, 0};
}

template <int G>
struct BackwardLanes : UnitLanes {
  ClusterMemory memory;
  int32_t lane, reads;  // reads: the number of the units whose gates the lane reads
  float weight[kUnits][G][kDepth];

  __device__ BackwardLanes(const RecurrentLayerParams& p, const ClusterShare& share)
      : UnitLanes(p, share),
        memory(memory_of_gates(G, share.lanes)),
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
    recurrent_cluster_exact(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_forward<float, G, ForwardLanes<G>>(p, share);
}

template <int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster_exact_backward(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_backward<float, G, BackwardLanes<G>>(p, share);
}

}  // namespace

int32_t exact_blocks(int32_t lanes) { return lanes <= 2 ? 1 : lanes * lanes / kWarps; }

ClusterMemory exact_memory(int32_t gates, int32_t lanes, bool backward) {
  return backward ? memory_of_gates(gates, lanes) : memory_of(lanes);
}

cudaError_t launch_exact(const RecurrentLayerParams& p, const ClusterShare& share, bool backward,
                         const LaunchShape& shape, cudaStream_t stream) {
  return with_gates(p.mode, [&](auto gates) {
    constexpr int G = decltype(gates)::value;
    const auto kernel = backward ? recurrent_cluster_exact_backward<G> : recurrent_cluster_exact<G>;
    return launch(kernel, shape, stream, p, share);
  });
}

}  // namespace d2lfast::cuda
