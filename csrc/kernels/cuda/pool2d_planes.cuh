#pragma once

#include "pool2d_element.cuh"
#include "pool2d_plane_memory.cuh"

// Max pooling in NCHW of whole planes in shared memory, by strips of columns.
namespace d2lfast::cuda {

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
