#pragma once

#include <type_traits>

#include "device.cuh"

// Whole planes of NCHW in shared memory. A block takes a run of planes, which is contiguous and so moved by
// 16 bytes whatever the rows' width. Values of 16 bits are there in pairs, a slot each: those of a plane of
// the run's first half beside those of the plane as far into the second.
namespace d2lfast::cuda {

constexpr int kPlaneThreads = 128;
constexpr int kPiecesUnderWay = 4;  // of 16 bytes, in each half

template <typename T>
constexpr int kSlotPlanes = sizeof(T) == 2 ? 2 : 1;
template <typename T>
using Slot = std::conditional_t<sizeof(T) == 2, uint32_t, T>;
template <typename T>
using TapSlot = std::conditional_t<sizeof(T) == 2, uint32_t, uint8_t>;

// Of planes in shared memory. What is between them, where Pitched, keeps the strips of a warp in different
// banks.
struct PlanePitch {
  Divider<int32_t> size;
  int32_t fours;  // of slots between two planes: so the compiler sees what is aligned

  D2LFAST_HOST_DEVICE int32_t pitch() const { return size.divisor + 4 * fours; }
  template <bool Pitched>
  D2LFAST_HOST_DEVICE int32_t place(int32_t slot) const {
    if constexpr (!Pitched) return slot;
    return slot + 4 * (fours * size.divide(slot));
  }
};

// Strips of 3 columns of planes that are multiples of 8 elements would share few banks.
constexpr bool pitched(int columns) { return columns == 3; }

struct PlaneRun {
  int64_t planes;  // of the tensor
  int32_t half;    // planes of each half of a block
  int32_t rows;    // of a strip
  PlanePitch source_planes, result_planes;
  int32_t result, taps;             // in shared memory, by slots of values and of positions
  Divider<int32_t> columns, lines;  // strips in a plane's width and height
  bool wide;                        // whether the halves of all tensors begin on 16 bytes, of positions on 8
};

// The planes of a block.
template <typename T>
struct PlaneBlock {
  static constexpr int V = kSlotPlanes<T>;
  int64_t first;
  int32_t planes[V];
  bool wide;

  __device__ PlaneBlock(const PlaneRun& run, int64_t block) : first(block * run.half * V), wide(run.wide) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t left = run.planes - first - v * run.half;
      planes[v] = static_cast<int32_t>(left < run.half ? (left > 0 ? left : 0) : run.half);
      wide = wide && planes[v] == run.half;
    }
  }
};

// What a thread moves at once, of E: 16 bytes of values T, or the positions that go with them.
template <typename T, typename E>
struct Halves {
  static constexpr int V = kSlotPlanes<T>, N = kVectorWidth<T>;
  Lanes<E, N> half[V];

  // `distance`: of the halves.
  __device__ void load_values(const E* from, int32_t at, int32_t distance) {
#pragma unroll
    for (int v = 0; v < V; ++v) half[v] = Lanes<E, N>::read(from + (v * distance + at));
  }
  __device__ void store_values(E* to, int32_t at, int32_t distance) const {
#pragma unroll
    for (int v = 0; v < V; ++v) half[v].write(to + (v * distance + at));
  }
};

// Writes eight slots: slot(i, k) is the k-th of the i-th four.
template <typename Make>
__device__ __forceinline__ void stage_slots(SharedPointer<uint32_t> to, Make&& slot) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Vector<uint32_t, 4> slots;
#pragma unroll
    for (int k = 0; k < 4; ++k) slots.lane[k] = slot(i, k);
    store_shared(to + 4 * i, slots);
  }
}

template <typename T>
struct Piece : Halves<T, T> {
  using Halves<T, T>::V, Halves<T, T>::N, Halves<T, T>::half;

  __device__ void stage(SharedPointer<Slot<T>> to) const {
    if constexpr (V == 1) {
      store_shared(to, half[0].held);
    } else {
      stage_slots(to, [&](int i, int k) {
        const int word = (4 * i + k) / 2;
        return permuted_bytes(half[0].word[word], half[V - 1].word[word], k % 2 == 0 ? 0x5410 : 0x7632);
      });
    }
  }
  __device__ void unstage(SharedPointer<Slot<T>> from) {
    if constexpr (V == 1) {
      half[0].held = load_shared<N>(from);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Vector<uint32_t, 4> slots = load_shared<4>(from + 4 * i);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          half[0].word[2 * i + k] = permuted_bytes(slots.lane[2 * k], slots.lane[2 * k + 1], 0x5410);
          half[V - 1].word[2 * i + k] = permuted_bytes(slots.lane[2 * k], slots.lane[2 * k + 1], 0x7632);
        }
      }
    }
  }
};

template <typename T>
struct TapPiece : Halves<T, uint8_t> {
  using Halves<T, uint8_t>::V, Halves<T, uint8_t>::N, Halves<T, uint8_t>::half;

  // Each byte twice: slots are halves of 16 bits that can be compared as numbers.
  __device__ void stage(SharedPointer<TapSlot<T>> to) const {
    if constexpr (V == 1) {
      Vector<uint8_t, N> bytes;
#pragma unroll
      for (int i = 0; i < N; ++i) bytes.lane[i] = half[0].lane(i);
      store_shared(to, bytes);
    } else {
      stage_slots(to, [&](int i, int k) {
        return permuted_bytes(half[0].word[i], half[V - 1].word[i], 0x4400 + 0x1111 * k);
      });
    }
  }
  __device__ void unstage(SharedPointer<TapSlot<T>> from) {
    if constexpr (V == 1) {
      const Vector<uint8_t, N> bytes = load_shared<N>(from);
      half[0] = Lanes<uint8_t, N>::gather(bytes.lane, 1);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Vector<uint32_t, 4> slots = load_shared<4>(from + 4 * i);
        const uint32_t low = permuted_bytes(slots.lane[0], slots.lane[1], 0x6240);
        const uint32_t high = permuted_bytes(slots.lane[2], slots.lane[3], 0x6240);
        half[0].word[i] = permuted_bytes(low, high, 0x5410);
        half[V - 1].word[i] = permuted_bytes(low, high, 0x7632);
      }
    }
  }
};

// A slot of what is in each half.
template <typename S, int V, typename E>
__device__ S slot_of(const E (&values)[V]) {
  if constexpr (V == 1) {
    return values[0];
  } else if constexpr (sizeof(E) == 2) {
    return Lanes<E, V>::gather(values, 1).word[0];
  } else {
    return static_cast<uint32_t>(values[0]) * 0x101u | static_cast<uint32_t>(values[1]) * 0x1010000u;
  }
}

// Beyond the tensor slots are zero.
template <typename Taken, bool Pitched, typename T, typename E, typename S>
__device__ void stage_planes(SharedPointer<S> to, const E* tensor, const PlanePitch& planes, int32_t half,
                             const PlaneBlock<T>& block) {
  const int32_t size = planes.size.divisor;
  constexpr int V = kSlotPlanes<T>, N = kVectorWidth<T>;
  const E* from = tensor + block.first * size;
  const int32_t count = half * size, thread = threadIdx.x;
  if (block.wide) {
    for (int32_t first = thread * N; first < count; first += kPiecesUnderWay * kPlaneThreads * N) {
      Taken taken[kPiecesUnderWay];
#pragma unroll
      for (int i = 0; i < kPiecesUnderWay; ++i) {
        const int32_t at = first + i * kPlaneThreads * N;
        if (at < count) taken[i].load_values(from, at, count);
      }
#pragma unroll
      for (int i = 0; i < kPiecesUnderWay; ++i) {
        const int32_t at = first + i * kPlaneThreads * N;
        if (at < count) taken[i].stage(to + planes.template place<Pitched>(at));
      }
    }
    return;
  }
#pragma unroll 4
  for (int32_t at = thread; at < count; at += kPlaneThreads) {
    E values[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (at < block.planes[v] * size) values[v] = from[v * count + at];
    }
    to[planes.template place<Pitched>(at)] = slot_of<S, V>(values);
  }
}

template <typename Taken, bool Pitched, typename T, typename E, typename S>
__device__ void unstage_planes(E* tensor, SharedPointer<S> from, const PlanePitch& planes, int32_t half,
                               const PlaneBlock<T>& block) {
  const int32_t size = planes.size.divisor;
  constexpr int V = kSlotPlanes<T>, N = kVectorWidth<T>;
  E* to = tensor + block.first * size;
  const int32_t count = half * size, thread = threadIdx.x;
  if (block.wide) {
#pragma unroll 2
    for (int32_t at = thread * N; at < count; at += kPlaneThreads * N) {
      Taken taken;
      taken.unstage(from + planes.template place<Pitched>(at));
      taken.store_values(to, at, count);
    }
    return;
  }
  for (int32_t at = thread; at < block.planes[0] * size; at += kPlaneThreads) {
    const S slot = from[planes.template place<Pitched>(at)];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (at >= block.planes[v] * size) continue;
      E value;
      if constexpr (V == 1) {
        value = slot;
      } else {
        const uint32_t bits = slot >> 16 * v;
        memcpy(&value, &bits, sizeof(value));
      }
      to[v * count + at] = value;
    }
  }
}

}  // namespace d2lfast::cuda
