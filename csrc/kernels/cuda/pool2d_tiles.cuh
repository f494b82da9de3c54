#pragma once

#include "pool2d_element.cuh"

// Max pooling in channels_last by windows of 3x3 with stride 1, of which 9 cover a pixel: a thread takes a
// tile of pixels of V channels and reads what its windows share once.
namespace d2lfast::cuda {

constexpr int kTileSide = 2;
constexpr int kTileSpan = kTileSide + 2;
constexpr int kGradientRows = 3;  // of a tile of the gradient, which has kTileSide columns
constexpr int kTileBlocks = 2;    // per multiprocessor: at most 128 registers a thread

inline int64_t tiles_of(int64_t size, int side) { return (size + side - 1) / side; }

// Of neighbours in scanning order, the maxima of each three: two of them share the two in their middle.
template <typename Max>
D2LFAST_HOST_DEVICE void maxima_of_three(const Max (&from)[kTileSpan], Max (&to)[kTileSide]) {
  static_assert(kTileSide == 2);
  to[0] = from[0];
  to[1] = from[1];
  to[1].take(from[2]);
  to[0].take(to[1]);
  to[1].take(from[3]);
}

// The rows or columns that the windows of a tile of outputs cover. Those in the padding are the nearest in
// the image, which a window then has twice: it alters no maximum, and both have the same position.
struct TileAxis {
  int32_t at[kTileSpan], offset[kTileSpan];  // in the image; from the first of the tile

  D2LFAST_HOST_DEVICE TileAxis(int32_t first, int32_t size) {
#pragma unroll
    for (int i = 0; i < kTileSpan; ++i) {
      const int32_t i_inside = first + i < size ? first + i : size - 1;
      at[i] = i_inside > 0 ? i_inside : 0;
      offset[i] = at[i] - first;
    }
  }
};

// Items: tiles of the output. Rows are reduced before columns: of equals in two columns the upper is first.
template <int V, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_tile_item(Index item, const T* input, T* output, P* position,
                                        const PoolGeometry& g, const PoolItems<Index>& items) {
  using Max = RunningMax<T, V, P>;
  const PoolPlace<Index> at = place_of<V, false>(item, items);
  const Index pixel = g.channels, row = pixel * g.width, out_row = pixel * g.out_width;
  const int32_t oh = at.h * kTileSide, ow = at.w * kTileSide;
  const TileAxis rows(oh - g.pad_h, g.height), columns(ow - g.pad_w, g.width);
  const T* image = input + (at.image * (row * g.height) + at.channel);
  const T* column[kTileSpan];
#pragma unroll
  for (int j = 0; j < kTileSpan; ++j) column[j] = computed_once(image + columns.at[j] * pixel);
  Max best[kTileSide][kTileSpan];
#pragma unroll
  for (int i = 0; i < kTileSpan; ++i) {
    Max line[kTileSpan], of_row[kTileSide];
#pragma unroll
    for (int j = 0; j < kTileSpan; ++j) {
      const auto value = Lanes<T, V>::read(column[j] + rows.at[i] * row);
      line[j] = Max::of(value, rows.offset[i] * 3 + columns.offset[j]);
    }
    maxima_of_three(line, of_row);
#pragma unroll
    for (int c = 0; c < kTileSide; ++c) best[c][i] = of_row[c];
  }
  const Index to = at.image * (out_row * g.out_height) + oh * out_row + ow * pixel + at.channel;
#pragma unroll
  for (int c = 0; c < kTileSide; ++c) {
    Max done[kTileSide];
    maxima_of_three(best[c], done);
#pragma unroll
    for (int r = 0; r < kTileSide; ++r) {
      if (oh + r >= g.out_height || ow + c >= g.out_width) continue;
      const Index element = to + r * out_row + c * pixel;
      done[r].write(output + element);
      if constexpr (!std::is_same_v<P, NoPosition>) done[r].write_taps(position + element, r * 3 + c);
    }
  }
}

// By one multiply-add, where nvcc would shift and add with carry.
template <typename T>
D2LFAST_HOST_DEVICE const T* advanced(const T* base, int32_t elements) {
#ifdef __CUDA_ARCH__
  const T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(elements), "n"(sizeof(T)), "l"(base));
  __builtin_assume(__isGlobal(result));
  return result;
#else
  return base + elements;
#endif
}

// Compares bytes of positions in their places: by one operation each, since the compiler does not know the
// masks.
struct TapTest {
  static constexpr uint32_t kNoTap = 0x10101010;  // in each byte, more than any position
  uint32_t mask[4];

  // `one`: 1, from memory.
  explicit D2LFAST_HOST_DEVICE TapTest(uint32_t one) {
#pragma unroll
    for (int v = 0; v < 4; ++v) mask[v] = one * (0xffu << 8 * v);
  }
  template <int V>
  D2LFAST_HOST_DEVICE bool holds(const Lanes<uint8_t, V>& taps, int v, int tap) const {
    if constexpr (V % 4 == 0) {
      return ((taps.word[v / 4] ^ static_cast<uint32_t>(tap) * 0x1010101u) & mask[v % 4]) == 0;
    } else {
      return taps.lane(v) == tap;
    }
  }
  template <int V>
  static D2LFAST_HOST_DEVICE void set(Lanes<uint8_t, V>& taps, uint32_t bits) {
    if constexpr (V % 4 == 0) {
#pragma unroll
      for (int i = 0; i < V / 4; ++i) taps.word[i] |= bits;
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) taps.held.lane[v] |= static_cast<uint8_t>(bits);
    }
  }
};

// Items: tiles of the input. Sums as gather_gradient, in the same order.
template <int V, typename T, typename Index>
D2LFAST_HOST_DEVICE void pool_tile_backward_item(Index item, const T* grad_output, const uint8_t* position,
                                                 T* grad_input, const PoolGeometry& g,
                                                 const PoolItems<Index>& items) {
  const PoolPlace<Index> at = place_of<V, false>(item, items);
  const Index pixel = g.channels, row = pixel * g.width, out_row = pixel * g.out_width;
  const int32_t h = at.h * kGradientRows, w = at.w * kTileSide;
  const int32_t top = h + g.pad_h - 2, left = w + g.pad_w - 2;
  const Index image = at.image * (out_row * g.out_height) + at.channel;
  // Windows outside have chosen nothing; the first of the row or column is read for them.
  Index column[kTileSpan];
  uint32_t beside[kTileSpan];
#pragma unroll
  for (int j = 0; j < kTileSpan; ++j) {
    const bool inside = left + j >= 0 && left + j < g.out_width;
    column[j] = image + (inside ? left + j : 0) * pixel;
    beside[j] = inside ? 0 : TapTest::kNoTap;
  }
  const TapTest test(g.stride_h);
  Compute<T> sum[kGradientRows][kTileSide][V] = {};
#pragma unroll
  for (int i = 0; i < kGradientRows + 2; ++i) {
    const bool inside = top + i >= 0 && top + i < g.out_height;
    const Index down = (inside ? top + i : 0) * out_row;
    const uint32_t below = inside ? 0 : TapTest::kNoTap;
    Lanes<uint8_t, V> taps[kTileSpan];
    Lanes<T, V> given[kTileSpan];
#pragma unroll
    for (int j = 0; j < kTileSpan; ++j) {
      taps[j] = Lanes<uint8_t, V>::read(advanced(position, column[j] + down));
      given[j] = Lanes<T, V>::read(grad_output + (column[j] + down));
      TapTest::set(taps[j], below | beside[j]);
    }
#pragma unroll
    for (int j = 0; j < kTileSpan; ++j) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Compute<T> gradient = to_compute(given[j].lane(v));
#pragma unroll
        for (int r = 0; r < kGradientRows; ++r) {
#pragma unroll
          for (int c = 0; c < kTileSide; ++c) {
            const int kh = r + 2 - i, kw = c + 2 - j;
            if (kh < 0 || kh > 2 || kw < 0 || kw > 2) continue;
            if (test.holds(taps[j], v, kh * 3 + kw)) sum[r][c][v] += gradient;
          }
        }
      }
    }
  }
  const Index to = at.image * (row * g.height) + h * row + w * pixel + at.channel;
#pragma unroll
  for (int r = 0; r < kGradientRows; ++r) {
#pragma unroll
    for (int c = 0; c < kTileSide; ++c) {
      if (h + r >= g.height || w + c >= g.width) continue;
      Vector<T, V> done;
#pragma unroll
      for (int v = 0; v < V; ++v) done.lane[v] = from_compute<T>(sum[r][c][v]);
      store(grad_input + (to + r * row + c * pixel), done);
    }
  }
}

}  // namespace d2lfast::cuda
