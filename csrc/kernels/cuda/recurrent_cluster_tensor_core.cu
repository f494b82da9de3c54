#include <cstdint>
#include <type_traits>

#include "recurrent_cluster.cuh"
#include "tensor_core.cuh"

// Products of 16 units by eight sequences in a warp. Numbers are of TF32, to which 16-bit weights convert
// without loss and floats, states and gradients are rounded; sums are of float. Warps with the same units
// have different parts of the sums, which they add up in shared memory.
namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32, kTileUnits = 16, kTileSequences = 8;
constexpr int kChunk = 16;  // elements of which a lane reads 16 bytes, for two fragments
constexpr int kChunks = 4;  // of a warp, at most; backward of each gate
constexpr int kTileSums = kTileUnits * kTileSequences;

// values: sums of a unit and sequence; places: of what it exchanges.
D2LFAST_HOST_DEVICE constexpr ClusterMemory memory_of(int32_t lanes, int32_t values, int32_t places) {
  return {places * tensor_core_depth(lanes) + 8, kTileSequences, 2 * values * kWarps * kTileSums};
}

__device__ __forceinline__ float rounded(float value) {
  return detail::float_of_bits(round_to_tf32(detail::bits_of_float(value)));
}

// Of a fragment's columns, in an order in which neither reads of fragments nor stores of results meet in a
// bank at a pitch of 8 modulo 32 floats.
__device__ inline int32_t sequence_of_column(int32_t column) {
  const int32_t high = column / 4, middle = column / 2 % 2, low = column % 2;
  return high * 4 + (high ^ low) * 2 + middle;
}

// Where a thread's results are. values, places: as of memory_of.
template <int kValues, int kPlaces>
struct FragmentPlace {
  ClusterMemory memory;
  SharedPointer<float> sums;             // [2][warps][kValues][4][lanes], of two tiles of sequences in turns
  int32_t unit, parts, chunks;           // parts: warps with the same units
  int32_t warp, part, lane, first_unit;  // of the warp's tile
  int32_t first_row, row_step;           // of the thread's items in a tile of sequences

  __device__ explicit FragmentPlace(const ClusterShare& share)
      : memory(memory_of(share.lanes, kValues, kPlaces)) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t rank = static_cast<int32_t>(blockIdx.x) % share.blocks;
    const int32_t tiles = 2 * share.lanes / share.blocks;
    warp = thread / 32;
    lane = thread % 32;
    parts = kWarps / tiles;
    part = warp % parts;
    chunks = tensor_core_depth(share.lanes) / (parts * kChunk);
    first_unit = (rank * tiles + warp / parts) * kTileUnits;
    unit = first_unit + lane / 4 + result(0) / 2 * 8;
    const int32_t column = lane % 4 * 2;
    first_row = sequence_of_column(column + result(0) % 2);
    row_step = sequence_of_column(column + 1) - sequence_of_column(column);
    sums = dynamic_shared<float>() + 2 * memory.exchanged(share);
  }

  // A lane's four results of a tile are shared out to the threads of its parts: one item each, or two.
  __device__ int32_t tile_of(int32_t item) const { return item >> (parts == 2); }
  __device__ int32_t of_tile(int32_t item) const { return item & (parts == 2); }
  __device__ int32_t result(int32_t item) const { return (part << (parts == 2)) + of_tile(item); }
  __device__ int32_t row(int32_t item) const {
    return tile_of(item) * kTileSequences + first_row + of_tile(item) * row_step;
  }
  __device__ int32_t place(int32_t of) const { return of * kPlaces; }
  __device__ float exchanged(float value) const { return rounded(value); }
  // The lane's first element of a chunk.
  __device__ int32_t begin(int32_t chunk) const {
    return (part * chunks * kPlaces + chunk) * kChunk + lane % 4 * 4;
  }

  // The sums of an item; with a tile's first the warps multiply: multiply(chunks of each gate, a constant;
  // where the lane's elements are; results). Nothing for a tile without any of the first `sequences`.
  template <typename Multiply>
  __device__ Gates<float, kValues> sums_of(SharedPointer<float> from, int32_t item, int32_t sequences,
                                           Multiply&& multiply) const {
    const int32_t tile = tile_of(item);
    Gates<float, kValues> total = {};
    if (tile * kTileSequences >= sequences) return total;
    const auto buffer = sums + tile % 2 * (kValues * kWarps * kTileSums);
    if (of_tile(item) == 0) {
      const int32_t row = tile * kTileSequences + sequence_of_column(lane / 4);
      const auto elements = from + (row * memory.pitch + begin(0));
      float results[kValues][4] = {};
      if (chunks == 4) {
        multiply(std::integral_constant<int, 4>{}, elements, results);
      } else if (chunks == 2) {
        multiply(std::integral_constant<int, 2>{}, elements, results);
      } else {
        multiply(std::integral_constant<int, 1>{}, elements, results);
      }
      const auto to = buffer + (warp * kValues * kTileSums + lane);
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[(v * 4 + i) * 32] = results[v][i];
      }
      __syncthreads();
    }
    const auto own = buffer + ((warp - part) * kValues * kTileSums + result(item) * 32 + lane);
#pragma unroll
    for (int32_t other = 0; other < 4; ++other) {
      if (other >= parts) break;
#pragma unroll
      for (int v = 0; v < kValues; ++v) total.of[v] += own[(other * kValues + v) * kTileSums];
    }
    return total;
  }
};

// A chunk as two fragments of sequences.
__device__ __forceinline__ void read_fragments(uint32_t (&b)[2][2], SharedPointer<float> from) {
  const auto four = load_shared<4>(from);
#pragma unroll
  for (int n = 0; n < 4; ++n) b[n / 2][n % 2] = detail::bits_of_float(four.lane[n]);
}

// Adds up sums that do not wait for each other.
__device__ __forceinline__ void add_chains(float (&result)[4], const float (&chains)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) result[i] = (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
}

template <typename T, int G>
struct ForwardFragments : FragmentPlace<G, 1> {
  using Place = FragmentPlace<G, 1>;
  uint32_t weight[G][2 * kChunks][4];

  __device__ ForwardFragments(const RecurrentLayerParams& p, const ClusterShare& share) : Place(share) {
    constexpr int kOfGate = 2 * kChunks;
    read_weights<T, G * kOfGate>(
        share.by_fours,
        [&](int i) {
          const int half = i / kChunks % 2, chunk = i % kChunks;
          const int32_t unit = this->first_unit + this->lane / 4 + half * 8, k = this->begin(chunk);
          const int64_t row = static_cast<int64_t>(i / kOfGate) * p.hidden + unit;
          const bool valid = unit < p.hidden && chunk < this->chunks;
          return FourWeights<T>{element<T>(p.weight, row * p.hidden + k), valid ? p.hidden - k : 0};
        },
        [&](int i, int n, float value) {
          const int half = i / kChunks % 2, chunk = i % kChunks;
          weight[i / kOfGate][2 * chunk + n / 2][half + n % 2 * 2] =
              round_to_tf32(detail::bits_of_float(value));
        });
  }

  __device__ Gates<float, G> product(SharedPointer<float> states, int32_t item, int32_t sequences) const {
    const auto multiply = [&](auto chunks, SharedPointer<float> from, float (&results)[G][4]) {
      constexpr int kChains = G == 1 ? 4 : 1;  // of a single gate
      float chains[kChains][4] = {};
#pragma unroll
      for (int chunk = 0; chunk < decltype(chunks)::value; ++chunk) {
        uint32_t b[2][2];
        read_fragments(b, from + chunk * kChunk);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int g = 0; g < G; ++g) {
            auto& to = G == 1 ? chains[(2 * chunk + n) % kChains] : results[g];
            multiply_fragments<float>(to, weight[g][2 * chunk + n], b[n]);
          }
        }
      }
      if constexpr (G == 1) add_chains(results[0], chains);
    };
    return Place::sums_of(states, item, sequences, multiply);
  }
};

template <typename T, int G>
struct BackwardFragments : FragmentPlace<1, G> {
  using Place = FragmentPlace<1, G>;
  uint32_t weight[2 * kChunks * G][4];

  __device__ BackwardFragments(const RecurrentLayerParams& p, const ClusterShare& share) : Place(share) {
#pragma unroll
    for (int i = 0; i < kChunks * G * 4; ++i) {
      const int chunk = i / 4, n = i % 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t unit = this->first_unit + this->lane / 4 + half * 8, k = this->begin(chunk) + n;
        const bool valid = unit < p.hidden && k / G < p.hidden && chunk < this->chunks * G;
        const int64_t row = static_cast<int64_t>(k % G) * p.hidden + k / G;
        const float value = valid ? to_compute(*element<T>(p.weight, row * p.hidden + unit)) : 0.0f;
        weight[2 * chunk + n / 2][half + n % 2 * 2] = round_to_tf32(detail::bits_of_float(value));
      }
    }
  }

  __device__ float product(SharedPointer<float> gates, int32_t item, int32_t sequences) const {
    const auto multiply = [&](auto chunks, SharedPointer<float> from, float (&results)[1][4]) {
      float chains[4][4] = {};
#pragma unroll
      for (int chunk = 0; chunk < decltype(chunks)::value * G; ++chunk) {
        uint32_t b[2][2];
        read_fragments(b, from + chunk * kChunk);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int fragment = 2 * chunk + n;
          multiply_fragments<float>(chains[fragment % 4], weight[fragment], b[n]);
        }
      }
      add_chains(results[0], chains);
    };
    return Place::sums_of(gates, item, sequences, multiply).of[0];
  }
};

template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster_tensor_core(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_forward<T, G, ForwardFragments<T, G>>(p, share);
}

template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_cluster_tensor_core_backward(const RecurrentLayerParams p, const ClusterShare share) {
  cluster_backward<T, G, BackwardFragments<T, G>>(p, share);
}

}  // namespace

int32_t tensor_core_blocks(int32_t lanes) { return lanes <= 2 ? 1 : lanes; }

ClusterMemory tensor_core_memory(int32_t gates, int32_t lanes, bool backward) {
  return backward ? memory_of(lanes, 1, gates) : memory_of(lanes, gates, 1);
}

cudaError_t launch_on_tensor_cores(const RecurrentLayerParams& p, const ClusterShare& share, bool backward,
                                   DType dtype, const LaunchShape& shape, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (std::is_same_v<T, double>) {
      return cudaErrorInvalidValue;
    } else {
      return with_gates(p.mode, [&](auto gates) {
        constexpr int G = decltype(gates)::value;
        const auto kernel =
            backward ? recurrent_cluster_tensor_core_backward<T, G> : recurrent_cluster_tensor_core<T, G>;
        return launch(kernel, shape, stream, p, share);
      });
    }
  });
}

}  // namespace d2lfast::cuda
