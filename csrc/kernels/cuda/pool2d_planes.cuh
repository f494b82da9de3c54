#pragma once

#include "device.cuh"
#include "pool2d_element.cuh"

// Max pooling in NCHW of whole planes in shared memory. A block takes a run of planes, which is contiguous
// and so moved by 16 bytes whatever the rows' width. Values of 16 bits are there in pairs, a slot each: those
// of a plane of the run's first half beside those of the plane as far into the second.
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

D2LFAST_HOST_DEVICE uint32_t permuted_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
#endif
}

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

template <typename T>
struct Piece : Halves<T, T> {
  using Halves<T, T>::V, Halves<T, T>::N, Halves<T, T>::half;

  __device__ void stage(SharedPointer<Slot<T>> to) const {
    if constexpr (V == 1) {
      store_shared(to, half[0].held);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Vector<uint32_t, 4> slots;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int word = (4 * i + k) / 2;
          slots.lane[k] =
              permuted_bytes(half[0].word[word], half[V - 1].word[word], k % 2 == 0 ? 0x5410 : 0x7632);
        }
        store_shared(to + 4 * i, slots);
      }
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
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Vector<uint32_t, 4> slots;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          slots.lane[k] = permuted_bytes(half[0].word[i], half[V - 1].word[i], 0x4400 + 0x1111 * k);
        }
        store_shared(to + 4 * i, slots);
      }
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

// As computed_once, in shared memory.
template <typename T>
__device__ SharedPointer<T> shared_once(SharedPointer<T> pointer) {
#ifdef __CUDA_ARCH__
  size_t address = __cvta_generic_to_shared(pointer);
  uint32_t word = static_cast<uint32_t>(address);
  asm("" : "+r"(word));
  return static_cast<T*>(__cvta_shared_to_generic(word));
#else
  return pointer;
#endif
}

// Calls body with those of K columns that are below `count`.
template <int K, typename Body>
__device__ __forceinline__ void each_column(int32_t count, Body&& body) {
  uint32_t bits = count < K ? (1u << count) - 1 : (1u << K) - 1;
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(bits));  // tested where they are used, since K predicates are not kept
#endif
#pragma unroll
  for (int c = 0; c < K; ++c) {
    if (bits & 1u << c) body(c);
  }
}

// Of a row's neighbours in scanning order, the maxima of the windows. With stride 1 two of them share what is
// in the middle.
template <typename Window, int K, int Span, typename Max>
__device__ void maxima_of_row(const Max (&line)[Span], Max (&to)[K]) {
  constexpr int kSide = Window::kernel, kStride = Window::stride;
#pragma unroll
  for (int c = 0; c < K; ++c) {
    if (kSide == 3 && kStride == 1 && c % 2 == 0 && c + 1 < K) {
      Max middle = line[c + 1];
      middle.take(line[c + 2]);
      to[c] = line[c];
      to[c].take(middle);
      to[c + 1] = middle;
      to[c + 1].take(line[c + 3 < Span ? c + 3 : c]);
    } else if (kSide != 3 || kStride != 1 || c % 2 == 0) {
      to[c] = line[c * kStride];
#pragma unroll
      for (int kw = 1; kw < kSide; ++kw) to[c].take(line[c * kStride + kw]);
    }
  }
}

template <int V, typename T, typename S>
__device__ Lanes<T, V> lanes_of(S slot) {
  Lanes<T, V> lanes;
  if constexpr (V == 1) {
    lanes.held.lane[0] = slot;
  } else {
    lanes.word[0] = slot;
  }
  return lanes;
}

// One strip of K columns of the results of a slot's planes. Positions count from the first row of the plane
// and the first column of the strip until they are written.
template <typename Window, int K, typename T, typename P>
__device__ void pool_plane_strip(int32_t item, SharedPointer<Slot<T>> input, SharedPointer<Slot<T>> output,
                                 SharedPointer<TapSlot<T>> taps, const PoolGeometry& g, const PlaneRun& run) {
  constexpr int V = kSlotPlanes<T>, kSide = Window::kernel, kStride = Window::stride;
  constexpr int kSpan = (K - 1) * kStride + kSide, kKept = kSide - kStride, kTurns = kKept > 1 ? kKept : 1;
  using Max = RunningMax<T, V, P>;
  const int32_t ow = take_remainder(item, run.columns) * K;
  const int32_t begin = take_remainder(item, run.lines) * run.rows;
  const int32_t end = begin + run.rows < g.out_height ? begin + run.rows : g.out_height;
  const int32_t left = ow * kStride - g.pad_w;
  // What is in the padding is the nearest in the image, which a window then has twice: it alters no maximum,
  // and both have the same position.
  SharedPointer<Slot<T>> column[kSpan];
  int32_t offset[kSpan];
#pragma unroll
  for (int j = 0; j < kSpan; ++j) {
    const int32_t inside = left + j < g.width ? left + j : g.width - 1, w = inside > 0 ? inside : 0;
    offset[j] = w - left;
    column[j] = input + (item * run.source_planes.pitch() + w);
  }
  const auto reduce = [&](int32_t h, Max(&to)[K]) {
    const int32_t below = h > 0 ? h : 0, inside = below < g.height ? below : g.height - 1;
    const int32_t row = inside * g.width * static_cast<int32_t>(sizeof(Slot<T>));
    Max line[kSpan];
#pragma unroll
    for (int j = 0; j < kSpan; ++j) {
      line[j] = Max::of(lanes_of<V, T>(load_shared_at<1>(column[j], row).lane[0]), offset[j]);
    }
    maxima_of_row<Window, K>(line, to);
#pragma unroll
    for (int c = 0; c < K; ++c) to[c].move(inside * kSide);
  };
  Max kept[kTurns][K];
#pragma unroll
  for (int i = 0; i < kKept; ++i) reduce(begin * kStride - g.pad_h + i, kept[i]);
  int32_t to = item * run.result_planes.pitch() + begin * g.out_width + ow;
  for (int32_t first = begin; first < end; first += kTurns) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int32_t oh = first + turn;
      if (oh >= end) break;
      const int32_t top = oh * kStride - g.pad_h;
      Max done[K];
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        Max fresh[K];
        Max(&row)[K] = i < kKept      ? kept[(turn + i) % kTurns]
                       : i >= kStride ? kept[(turn + 1 + i - kStride) % kTurns]
                                      : fresh;
        if (i >= kKept) reduce(top + i, row);
#pragma unroll
        for (int c = 0; c < K; ++c) {
          if (i == 0) {
            done[c] = row[c];
          } else {
            done[c].take(row[c]);
          }
        }
      }
      const auto row_to = shared_once(output + to);
      const auto row_taps = shared_once(taps + to);
      each_column<K>(g.out_width - ow, [&](int c) {
        done[c].move(-(top * kSide + c * kStride));
        if constexpr (V == 1) {
          row_to[c] = done[c].lane(0);
        } else {
          row_to[c] = done[c].value.word[0];
        }
        if constexpr (!std::is_same_v<P, NoPosition>) {
          row_taps[c] = static_cast<TapSlot<T>>(done[c].position[0]);
        }
      });
      to += g.out_width;
    }
  }
}

// Adds, in the lanes where the position is `tap`.
template <typename A>
__device__ __forceinline__ void add_chosen(A (&sum)[1], uint32_t code, int tap, const A (&gradient)[1]) {
  if (code == static_cast<uint32_t>(tap)) sum[0] += gradient[0];
}
__device__ __forceinline__ void add_chosen(float (&sum)[2], uint32_t codes, int tap,
                                           const float (&gradient)[2]) {
  const uint32_t wanted = static_cast<uint32_t>(tap) * 0x1010101u;
#ifdef __CUDA_ARCH__
  asm("{ .reg .pred p, q; setp.eq.f16x2 p|q, %2, %3; @p add.f32 %0, %0, %4; @q add.f32 %1, %1, %5; }"
      : "+f"(sum[0]), "+f"(sum[1])
      : "r"(codes), "r"(wanted), "f"(gradient[0]), "f"(gradient[1]));
#else
  if ((codes & 0xffff) == (wanted & 0xffff)) sum[0] += gradient[0];
  if (codes >> 16 == wanted >> 16) sum[1] += gradient[1];
#endif
}

// One strip of K columns of the gradient of a slot's planes, of windows of 3x3 with stride 1. Sums as
// gather_gradient, in the same order.
template <int K, typename T>
__device__ void pool_plane_strip_backward(int32_t item, SharedPointer<Slot<T>> grad_output,
                                          SharedPointer<TapSlot<T>> position,
                                          SharedPointer<Slot<T>> grad_input, const PoolGeometry& g,
                                          const PlaneRun& run) {
  constexpr int V = kSlotPlanes<T>, kWindows = K + 2;
  const int32_t w = take_remainder(item, run.columns) * K, left = w + g.pad_w - 2;
  const int32_t begin = take_remainder(item, run.lines) * run.rows;
  const int32_t end = begin + run.rows < g.height ? begin + run.rows : g.height;
  const int32_t windows = item * run.source_planes.pitch() + left;
  const auto gradients = grad_output + windows;
  const auto taps = position + windows;
  // What is outside stays as it is here: chosen nothing.
  bool inside[kWindows];
  Compute<T> given[kWindows][V] = {};
  uint32_t chosen[kWindows];
#pragma unroll
  for (int j = 0; j < kWindows; ++j) {
    inside[j] = is_below(left + j, g.out_width);
    chosen[j] = 0x0f0f0f0f;
  }
  int32_t to = item * run.result_planes.pitch() + begin * g.width + w;
  // Of three rows by turns: the windows of a row add to it and to the two after it.
  Compute<T> sum[3][K][V] = {};
  const auto step = [&](int32_t h, auto turn) {
    constexpr int kTurn = decltype(turn)::value;
    const int32_t oh = h + g.pad_h;
    if (h >= end) return;
    if (h + 2 >= begin && is_below(oh, g.out_height)) {
      const auto row_gradients = shared_once(gradients + oh * g.out_width);
      const auto row_taps = shared_once(taps + oh * g.out_width);
#pragma unroll
      for (int j = 0; j < kWindows; ++j) {
        if (!inside[j]) continue;
        const auto slot = lanes_of<V, T>(static_cast<Slot<T>>(row_gradients[j]));
#pragma unroll
        for (int v = 0; v < V; ++v) given[j][v] = to_compute(slot.lane(v));
        chosen[j] = row_taps[j];
      }
#pragma unroll
      for (int kh = 0; kh < 3; ++kh) {
        if (!is_below(h + kh - begin, end - begin)) continue;
#pragma unroll
        for (int j = 0; j < kWindows; ++j) {
#pragma unroll
          for (int c = 0; c < K; ++c) {
            const int kw = c + 2 - j;
            if (kw < 0 || kw > 2) continue;
            add_chosen(sum[(kTurn + kh) % 3][c], chosen[j], kh * 3 + kw, given[j]);
          }
        }
      }
    }
    if (h < begin) return;
    const auto row_to = shared_once(grad_input + to);
    each_column<K>(g.width - w, [&](int c) {
      T results[V];
#pragma unroll
      for (int v = 0; v < V; ++v) results[v] = from_compute<T>(sum[kTurn][c][v]);
      row_to[c] = slot_of<Slot<T>, V>(results);
    });
#pragma unroll
    for (int c = 0; c < K; ++c) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[kTurn][c][v] = 0;
    }
    to += g.width;
  };
  for (int32_t h = begin - 3; h < end; h += 3) {
    step(h, std::integral_constant<int, 0>{});
    step(h + 1, std::integral_constant<int, 1>{});
    step(h + 2, std::integral_constant<int, 2>{});
  }
}

}  // namespace d2lfast::cuda
