#pragma once

#include "pool2d_tiles.cuh"

// Max pooling in NCHW by windows of 3x3 with stride 1: a thread goes down a strip of a few columns and reads
// each row once, by single elements, so that rows may begin anywhere. Values of 16 bits are those of V
// planes.
namespace d2lfast::cuda {

constexpr int kStripRows = 14;
constexpr int kStripColumns = kTileSide;  // of the output
constexpr int kGradientColumns = 3;       // of the input

template <typename T>
constexpr int kStripPlanes = sizeof(T) == 2 ? 2 : 1;

// Items: strips of V planes of the output. Where the last has no second plane it is the first again, and
// written twice. `planes`: of the tensor.
template <typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_strip_item(Index item, const T* input, T* output, P* position,
                                         const PoolGeometry& g, const PoolItems<Index>& items, Index planes) {
  constexpr int V = kStripPlanes<T>;
  using Max = RunningMax<T, V, P>;
  const PoolPlace<Index> at = place_of<1, true>(item, items);
  const Index first = at.image * V, size = g.width * g.height, out_size = g.out_width * g.out_height;
  const bool whole = first + V <= planes;
  const Index plane = whole ? size : 0, out_plane = whole ? out_size : 0;
  const int32_t begin = at.h * kStripRows;
  const int32_t end = begin + kStripRows < g.out_height ? begin + kStripRows : g.out_height;
  const int32_t ow = at.w * kStripColumns;
  const TileAxis columns(ow - g.pad_w, g.width);
  const T* column[kTileSpan];
#pragma unroll
  for (int j = 0; j < kTileSpan; ++j) column[j] = computed_once(input + (first * size + columns.at[j]));
  const auto reduce = [&](int32_t h, Max(&to)[kStripColumns]) {
    const Index row = (h < g.height ? h : g.height - 1) * g.width;
    Max line[kTileSpan];
#pragma unroll
    for (int j = 0; j < kTileSpan; ++j) {
      T values[V];
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = column[j][row + v * plane];
      auto pixel = Lanes<T, V>::gather(values, 1);
#ifdef __CUDA_ARCH__
      if constexpr (V == 2) asm("" : "+r"(pixel.word[0]));  // packed once
#endif
      line[j] = Max::of(pixel, columns.offset[j]);
    }
    maxima_of_three(line, to);
  };
  T* result = computed_once(output + (first * out_size + ow));
  P* taps = nullptr;
  if constexpr (!std::is_same_v<P, NoPosition>) taps = computed_once(position + (first * out_size + ow));
  Max above[kStripColumns], here[kStripColumns], below[kStripColumns], last[kStripColumns];
  reduce(begin < g.pad_h ? 0 : begin - g.pad_h, above);
  reduce(begin - g.pad_h + 1, here);
#pragma unroll
  for (int c = 0; c < kStripColumns; ++c) above[c].move(begin < g.pad_h ? 3 : 0);
  for (int32_t oh = begin; oh < end; oh += 2) {
    const int32_t h = oh - g.pad_h;
    reduce(h + 2, below);
    reduce(h + 3, last);
    Max done[2][kStripColumns];
#pragma unroll
    for (int c = 0; c < kStripColumns; ++c) {
      Max upper = here[c], lower = below[c], lowest = last[c];
      lower.move(h + 2 < g.height ? 3 : 0);
      lowest.move(h + 3 < g.height ? 6 : 3);
      upper.take(lower);
      done[1][c] = upper;
      done[1][c].take(lowest);
      upper.move(3);
      done[0][c] = above[c];
      done[0][c].take(upper);
      above[c] = below[c];
      here[c] = last[c];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Index row = (oh + r) * g.out_width + v * out_plane;
        T* to = computed_once(result + row);
        P* tap_to = nullptr;
        if constexpr (!std::is_same_v<P, NoPosition>) tap_to = computed_once(taps + row);
#pragma unroll
        for (int c = 0; c < kStripColumns; ++c) {
          if (oh + r >= end || ow + c >= g.out_width) continue;
          to[c] = done[r][c].lane(v);
          if constexpr (!std::is_same_v<P, NoPosition>) tap_to[c] = static_cast<P>(done[r][c].tap(v) - c);
        }
      }
    }
  }
}

// Items: strips of the input. Sums as gather_gradient, in the same order.
template <typename T, typename Index>
D2LFAST_HOST_DEVICE void pool_strip_backward_item(Index item, const T* grad_output, const uint8_t* position,
                                                  T* grad_input, const PoolGeometry& g,
                                                  const PoolItems<Index>& items) {
  constexpr int kColumns = kGradientColumns, kWindows = kColumns + 2;
  const PoolPlace<Index> at = place_of<1, true>(item, items);
  const int32_t w = at.w * kColumns, left = w + g.pad_w - 2;
  const int32_t begin = at.h * kStripRows,
                end = begin + kStripRows < g.height ? begin + kStripRows : g.height;
  const Index windows = at.image * (g.out_width * g.out_height) + left;
  const T* gradients = computed_once(grad_output + windows);
  const uint8_t* taps = computed_once(position + windows);
  T* result = computed_once(grad_input + (at.image * (g.width * g.height) + w));
  // What is outside stays as it is here: chosen nothing.
  bool inside[kWindows];
  T value[kWindows] = {};
  int32_t tap[kWindows];
#pragma unroll
  for (int j = 0; j < kWindows; ++j) {
    inside[j] = is_below(left + j, g.out_width);
    tap[j] = 9;
  }
  // Of three rows by turns: the windows of a row add to it and to the two after it.
  Compute<T> sum[3][kColumns] = {};
  const auto step = [&](int32_t h, auto turn) {
    constexpr int kTurn = decltype(turn)::value;
    const int32_t oh = h + g.pad_h;
    if (oh >= 0 && oh < g.out_height) {
      const T* given = gradients + oh * g.out_width;
      const uint8_t* chosen = taps + oh * g.out_width;
#pragma unroll
      for (int j = 0; j < kWindows; ++j) {
        if (!inside[j]) continue;
        value[j] = given[j];
        tap[j] = chosen[j];
      }
#pragma unroll
      for (int j = 0; j < kWindows; ++j) {
        const Compute<T> gradient = to_compute(value[j]);
#pragma unroll
        for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const int kw = c + 2 - j;
            if (kw < 0 || kw > 2) continue;
            if (tap[j] == kh * 3 + kw) sum[(kTurn + kh) % 3][c] += gradient;
          }
        }
      }
    }
    T* row = computed_once(result + h * g.width);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (h >= begin && h < end && w + c < g.width) row[c] = from_compute<T>(sum[kTurn][c]);
      sum[kTurn][c] = 0;
    }
  };
  for (int32_t h = begin - 2; h < end; h += 3) {
    step(h, std::integral_constant<int, 0>{});
    step(h + 1, std::integral_constant<int, 1>{});
    step(h + 2, std::integral_constant<int, 2>{});
  }
}

}  // namespace d2lfast::cuda
