#include "conv2d_tile_products.h"

#include <utility>

#include "conv2d_element.cuh"
#include "conv2d_product_plan.cuh"
#include "device.cuh"
#include "tensor_core.cuh"

// Few channels per group, in 16 bits or TF32: products of result channels by pixels on tensor cores. A block
// keeps the weights of some units of result channels in shared memory, in the order of fragments, and goes
// through tiles of source pixels. The products sum over quads, four values that lie side by side in shared
// memory: four neighbours of a row as it lies in memory (conv2d_staged_rows.cuh), which its taps meet; of
// groups that share fragments, odd rows of 16 bits and data gradients, four channels at a tap, or, of one or
// two channels, neighbouring taps of a row, staged once for each. A lane of a fragment takes a quad by one
// access. Groups of few channels share a fragment, with zero weights for the channels of the others: what is
// not finite there is computed anew, group by group.
//
// A transposed convolution of stride s is s convolutions of stride 1 for each axis, one for the positions of
// each remainder (its phase).
namespace d2lfast::cuda {
namespace {

// The taps that a phase meets, by source position.
struct PhaseTaps {
  int32_t count, origin, first, step;

  __device__ PhaseTaps(const Conv2dAxis& axis, const TileAxis& tile, bool transposed, int32_t phase)
      : count(axis.kernel), origin(-axis.pad), first(0), step(1) {
    if (!transposed) return;
    while (first < axis.kernel && (phase + axis.pad - first * axis.dilation) % axis.stride != 0) ++first;
    count = first < axis.kernel ? (axis.kernel - 1 - first) / tile.period + 1 : 0;
    first += (count - 1) * tile.period;
    origin = count > 0 ? (phase + axis.pad - first * axis.dilation) / axis.stride : 0;
    step = -tile.period;
  }
};

// Of a column of a warp's block of pixels. A lane's two columns of each block are neighbours; where pixels in
// fours are, so are those of two blocks.
__device__ inline int32_t pixel_of(const ProductTiles& tiles, int block, int column) {
  return tiles.neighbours == 4 ? block / 2 * 16 + column / 2 * 4 + block % 2 * 2 + column % 2
                               : block * 8 + column;
}

// Of a word of a quad, those of its first values.
template <typename T>
__device__ inline uint32_t low_bits(int word, int32_t values) {
  if (sizeof(T) == 4) return values > word ? 0xffffffffu : 0u;
  return values >= 2 * word + 2 ? 0xffffffffu : values == 2 * word + 1 ? 0xffffu : 0u;
}

// A quad as products take it.
template <typename T>
__device__ Vector<uint32_t, kQuad<T>> quad_of(const T (&value)[4]) {
  if constexpr (sizeof(T) == 4) {
    Vector<uint32_t, 4> quad;
#pragma unroll
    for (int e = 0; e < 4; ++e) quad.lane[e] = round_to_tf32(detail::bits_of_float(value[e]));
    return quad;
  } else {
    const auto pair = [](T low, T high) {
      return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
    };
    return {pair(value[0], value[1]), pair(value[2], value[3])};
  }
}

// Element [f][j][2 half + e] is the lane's channel 2 f + half, column 2 t + e of block j.
template <int N>
using Sums = float[N][kPixelBlocks][4];

// Some of a warp's blocks of pixels.
template <int kFrom, int kTo>
struct Blocks {};
constexpr Blocks<0, kPixelBlocks> kAll;

// A lane's part of a tile of results.
struct OwnResults {
  int32_t warp_pixel, t, row0, column0, row_phase, column_phase, images;
  int32_t channel, count;  // of channels

  // Of the first channel, in the result of these images; -1 outside.
  template <bool kLast>
  __device__ int32_t place(const Conv2dDirectParams& p, const ProductTiles& tiles, int block, int e) const {
    int32_t image = warp_pixel + pixel_of(tiles, block, 2 * t + e);
    const int32_t column = take_remainder(image, tiles.result_columns);
    const int32_t row = take_remainder(image, tiles.result_rows);
    const int32_t h = (row0 + row) * tiles.h.phases + row_phase;
    const int32_t w = (column0 + column) * tiles.w.phases + column_phase;
    // Beyond the tile's pixels are images beyond its own.
    if (image >= images || h >= p.h.result || w >= p.w.result || count <= 0) return -1;
    const int32_t width = p.groups * p.result_channels, at = h * p.w.result + w;
    const int32_t plane = p.h.result * p.w.result;
    return kLast ? (image * plane + at) * width + channel : (image * width + channel) * plane + at;
  }

  // Calls with a place in the result and the lane's sums from there on, which are neighbours.
  template <int N, bool kLast, typename Body>
  __device__ __forceinline__ void each_run(const Conv2dDirectParams& p, const ProductTiles& tiles,
                                           Sums<N>& sum, Body&& body) const {
    const int32_t next = kLast ? p.groups * p.result_channels : 1, plane = p.h.result * p.w.result;
#pragma unroll
    for (int j = 0; j < kPixelBlocks; j += 2) {
      int32_t to[4];
      to[0] = place<kLast>(p, tiles, j, 0);
      if (tiles.neighbours == 4) {
#pragma unroll
        for (int r = 1; r < 4; ++r) to[r] = to[0] < 0 ? -1 : to[0] + r * next;
      } else {
        to[2] = place<kLast>(p, tiles, j + 1, 0);
#pragma unroll
        for (int r = 0; r < 4; r += 2) {
          to[r + 1] = tiles.neighbours == 1 ? place<kLast>(p, tiles, j + r / 2, 1)
                      : to[r] < 0           ? -1
                                            : to[r] + next;
        }
      }
      if (kLast && tiles.whole) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (to[r] < 0) continue;
          [&]<size_t... v>(std::index_sequence<v...>) {
            body(to[r], sum[v / 2][j + r / 2][v % 2 * 2 + r % 2]...);
          }(std::make_index_sequence<2 * N>{});
        }
        continue;
      }
#pragma unroll
      for (int v = 0; v < 2 * N; ++v) {
        if (v >= count) break;
        float (&first)[4] = sum[v / 2][j], (&second)[4] = sum[v / 2][j + 1];
        const int e = v % 2 * 2;
        const int32_t shift = kLast ? v : v * plane;
        if (!kLast && tiles.whole && tiles.neighbours == 4) {
          if (to[0] >= 0) body(to[0] + shift, first[e], first[e + 1], second[e], second[e + 1]);
        } else if (!kLast && tiles.whole) {
          if (to[0] >= 0) body(to[0] + shift, first[e], first[e + 1]);
          if (to[2] >= 0) body(to[2] + shift, second[e], second[e + 1]);
        } else {
          if (to[0] >= 0) body(to[0] + shift, first[e]);
          if (to[1] >= 0) body(to[1] + shift, first[e + 1]);
          if (to[2] >= 0) body(to[2] + shift, second[e]);
          if (to[3] >= 0) body(to[3] + shift, second[e + 1]);
        }
      }
    }
  }
};

// The quads of a tile's source, from this image, row and column on; those that are not copied are gathered,
// by fours, so that loads are under way.
template <typename T, bool kLast>
__device__ __forceinline__ void stage_quads(const Conv2dDirectParams& p, const ProductTiles& tiles,
                                            const T* images, int32_t images_left, int32_t group0, int32_t top,
                                            int32_t left, int32_t threads, SharedPointer<uint32_t> source) {
  constexpr int kOfPiece = kQuadsAtOnce<T>, kAhead = 4;
  const auto first = static_cast<int32_t>(threadIdx.x);
  const int32_t shift = tiles.tap_bits, low = (1 << shift) - 1;
  const int32_t source_width = p.groups * p.source_channels, source_pixels = p.h.source * p.w.source;
  const int32_t next_tap = tiles.w.distance * (kLast ? source_width : 1);
  const int32_t next_channel = kLast ? 1 : source_pixels;
  const bool by_pieces = kLast && tiles.by_pieces;
  struct Staged {
    SharedPointer<uint32_t> to;
    const T* from;
    int32_t column, channels;  // of its first value; there from it on, 0 outside
  };
  const auto find = [&](int32_t i) {
    int32_t image = i, quad = 0;
    if constexpr (kLast) quad = take_remainder(image, tiles.staged);
    const int32_t x = take_remainder(image, tiles.source_columns);
    const int32_t y = take_remainder(image, tiles.source_rows);
    if constexpr (!kLast) quad = take_remainder(image, tiles.staged);
    int32_t group = by_pieces ? kOfPiece * quad : quad;
    const int32_t q = take_remainder(group, tiles.quads_of_group);
    const int32_t h = top + y, w = left + x, c = (group0 + group) * p.source_channels + 4 * q;
    const bool inside = is_below(h, p.h.source) && image < images_left && group0 + group < p.groups;
    const int32_t at = h * p.w.source + w;
    return Staged{source + (group * tiles.group + q / 4 * tiles.plane + q % 4 * kQuad<T> +
                            ((image * tiles.source_rows.divisor + y) * tiles.pitch + x) * tiles.position),
                  images + (kLast ? (image * source_pixels + at) * source_width + c
                                  : (image * source_width + c) * source_pixels + at),
                  w, inside ? p.source_channels - 4 * q : 0};
  };
  const int32_t count =
      tiles.images * tiles.source_rows.divisor * tiles.source_columns.divisor * tiles.staged.divisor;
  struct Quad {
    SharedPointer<uint32_t> to;
    T value[4];
  };
  const auto store_quad = [](const Quad& quad) { store_shared_words(quad.to, quad_of(quad.value)); };
  if (by_pieces && kOfPiece == 2) {
    for (int32_t i = first; i < count; i += threads) {
      const Staged piece = find(i);
      const bool inside = piece.channels > 0 && is_below(piece.column, p.w.source);
      const auto from = reinterpret_cast<const uint32_t*>(inside ? piece.from : images);
      if (tiles.second == kQuad<T>) {
        copy_async_16(piece.to, from, inside);
      } else {
        copy_async_8(piece.to, from, inside);
        copy_async_8(piece.to + tiles.second, from + 2, inside);
      }
    }
  } else if (by_pieces) {
    const auto load_piece = [&](int32_t i) {
      const Staged staged = find(i);
      const bool inside = staged.channels > 0 && is_below(staged.column, p.w.source);
      const auto four = inside ? load<4>(staged.from) : Vector<T, 4>{};
      return Quad{staged.to, {four.lane[0], four.lane[1], four.lane[2], four.lane[3]}};
    };
    load_ahead<kAhead>(first, count, threads, load_piece, store_quad);
  } else {
    const auto load_quad = [&](int32_t i) {
      const Staged staged = find(i);
      Quad quad{staged.to, {}};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool inside = is_below(staged.column + (e >> shift) * tiles.w.distance, p.w.source);
        if (inside && (e & low) < staged.channels) {
          quad.value[e] = staged.from[(e >> shift) * next_tap + (e & low) * next_channel];
        }
      }
      return quad;
    };
    load_ahead<kAhead>(first, count, threads, load_quad, store_quad);
  }
}

// A warp has 16 N result channels of 64 pixels.
template <typename T, int N, bool kLast>
__global__ void __launch_bounds__(kThreads, kResident)
    tile_products(const Conv2dDirectParams p, const ProductTiles tiles) {
  constexpr int kOwn = 2 * N;  // result channels of a lane
  constexpr int kProducts = kStepProducts<T>, kOfPiece = kQuadsAtOnce<T>;
  const auto words = dynamic_shared<uint32_t>();
  const auto weights = words + tiles.weights;
  const auto source = words + tiles.source;
  const int32_t thread = threadIdx.x, threads = blockDim.x, warps = threads / 32;
  const int lane = thread % 32, g = lane / 4, t = lane % 4;
  const int32_t warp = thread / 32, unit = warp % tiles.units, warp_pixel = warp / tiles.units * kWarpPixels;

  int32_t slice = blockIdx.x;
  int32_t group0 = take_remainder(slice, tiles.unit_tiles);
  const int32_t unit0 = take_remainder(group0, tiles.tiles_of_group) * tiles.units;
  if (tiles.by_groups) group0 *= tiles.units * tiles.groups_of_unit;
  const int32_t column_phase = slice % tiles.w.phases;
  slice /= tiles.w.phases;
  const int32_t row_phase = slice % tiles.h.phases;
  slice /= tiles.h.phases;
  const PhaseTaps down(p.h, tiles.h, p.transposed, row_phase);
  const PhaseTaps right(p.w, tiles.w, p.transposed, column_phase);
  const int32_t shift = tiles.tap_bits, low = (1 << shift) - 1;

  const int32_t beside = tiles.row_copies.beside, row_taps = down.count * tiles.row_copies.planes;
  const int32_t row = right.count * beside;  // elements
  const int32_t spans = (right.count + tiles.span - 1) / tiles.span;
  const int32_t quads = tiles.lie ? row_taps * ((row + 3) / 4) : down.count * spans * tiles.quads;
  const int32_t steps = (quads + 3) / 4;
  // Of the steps, those without values to ignore.
  const int32_t full = tiles.lie         ? row_taps * (row / 4) / 4
                       : tiles.span == 1 ? quads / 4
                                         : down.count * (right.count / tiles.span) / 4;
  for (int32_t i = thread; i < 4 * steps; i += threads) {
    int32_t x, y, values, place, channel;  // x, y, channel: of the first value
    if (tiles.lie) {
      const int32_t quad = i / row_taps;
      channel = (i - quad * row_taps) / down.count;
      y = i - quad * row_taps - channel * down.count;
      values = least(4, row - 4 * quad);
      place = channel * tiles.row_copies.plane * 4 + (y * tiles.h.distance * tiles.pitch + quad) * kQuad<T>;
      x = beside == 1 ? 4 * quad : 0;
      channel = beside == 1 ? channel : 4 * quad;
    } else {
      int32_t quad = 0;
      if (tiles.span == 1) {
        const int32_t tap = i / tiles.quads;
        quad = i - tap * tiles.quads;
        y = tap / right.count;
        x = tap - y * right.count;
        values = least(4, p.source_channels - 4 * quad);
      } else {
        x = i / down.count;
        y = i - x * down.count;
        x *= tiles.span;
        values = least(tiles.span, right.count - x) * p.source_channels;
      }
      channel = quad * 4;
      place = (y * tiles.h.distance * tiles.pitch + x * tiles.w.distance) * tiles.position +
              quad / 4 * tiles.plane + quad % 4 * kQuad<T>;
    }
    const bool there = i < quads;
    words[i * kEntry] = there ? 4 * place : 0;
    words[i * kEntry + 1] = there ? values : 0;
    words[i * kEntry + 2] = (down.first + y * down.step) * p.w.kernel + right.first + x * right.step;
    words[i * kEntry + 3] = channel;
  }
  __syncthreads();

  const int32_t taps = p.h.kernel * p.w.kernel, result_width = p.groups * p.result_channels;
  // A warp fills fragments of the same rows, by itself or with others.
  const int32_t fragments_of_step = tiles.units * tiles.groups_of_unit * N;
  const int32_t sharers = warps > fragments_of_step ? warps / fragments_of_step : 1;
  const int32_t weight_tap = kLast ? p.source_channels * result_width : 1;
  const int32_t weight_channel = kLast ? result_width : taps;
  int32_t of_value[4];  // from a quad's first weight
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    of_value[e] = tiles.lie ? e * (beside == 1 ? weight_tap : weight_channel)
                            : (e >> shift) * right.step * weight_tap + (e & low) * weight_channel;
  }
  for (int32_t i = warp / sharers; i < fragments_of_step; i += warps / sharers) {
    const int32_t f = i % N, which = i / N, u = which / tiles.groups_of_unit;
    const int32_t group = tiles.by_groups ? group0 + which : group0;
    const T* rows[2];
    bool there[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Row g + 8 half of the fragment.
      const int32_t within = g * kOwn + 2 * f + half;
      const int32_t m = tiles.by_groups ? within - (which - u * tiles.groups_of_unit) * p.result_channels
                                        : (unit0 + u) * 16 * N + within;
      const int32_t row = group * p.result_channels + m;
      there[half] = m >= 0 && m < p.result_channels && group < p.groups;
      const int32_t start = kLast ? row : row * p.source_channels * taps;
      rows[half] = static_cast<const T*>(p.weight) + (there[half] ? start : 0);
    }
    struct Quads {
      int32_t step;
      T value[2][4];  // of both rows
    };
    const auto load_quads = [&](int32_t step) {
      const auto entry = load_shared<kEntry>(words + (4 * step + t) * kEntry);
      const int32_t values = static_cast<int32_t>(entry.lane[1]);
      const int32_t at = static_cast<int32_t>(entry.lane[2]) * weight_tap +
                         static_cast<int32_t>(entry.lane[3]) * weight_channel;
      Quads quads{step, {}};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* first = computed_once(rows[half] + at);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (there[half] && e < values) quads.value[half][e] = first[of_value[e]];
        }
      }
      return quads;
    };
    load_ahead<4>(warp % sharers, steps, sharers, load_quads, [&](const Quads& quads) {
      Vector<uint32_t, 4> lane_words[kProducts];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto quad = quad_of(quads.value[half]);
#pragma unroll
        for (int n = 0; n < kQuad<T>; ++n) lane_words[n / 2].lane[n % 2 * 2 + half] = quad.lane[n];
      }
      const auto to = weights + (((which * steps + quads.step) * N + f) * kProducts * kFragment + lane * 4);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) store_shared_words(to + m * kFragment, lane_words[m]);
    });
  }

  const int32_t tile_pixels = tiles.images * tiles.rows * tiles.columns;
  const int32_t own_group = tiles.by_groups ? unit * tiles.groups_of_unit : 0;  // of the block
  SharedPointer<uint32_t> mine[kPixelBlocks];
#pragma unroll
  for (int j = 0; j < kPixelBlocks; ++j) {
    const int32_t pixel = warp_pixel + pixel_of(tiles, j, g);
    // Beyond the tile: a pixel that is there, whose result is thrown away.
    int32_t line = pixel < tile_pixels ? pixel : 0;
    const int32_t column = take_remainder(line, tiles.result_columns);
    const int32_t row = take_remainder(line, tiles.result_rows);
    line = line * tiles.source_rows.divisor + row * tiles.h.scale;
    const int32_t place =
        tiles.lie ? tiles.row_copies.place<4, kOfPiece>(column, p.w.stride) : column * tiles.w.scale;
    mine[j] = source + (own_group * tiles.group + (line * tiles.pitch + place) * tiles.position);
  }
  // The unit's first result channel of all, and where its groups end.
  const int32_t first = tiles.by_groups ? (group0 + own_group) * p.result_channels
                                        : group0 * p.result_channels + (unit0 + unit) * 16 * N;
  const int32_t last = tiles.by_groups ? least(result_width, first + tiles.groups_of_unit * p.result_channels)
                                       : least((group0 + 1) * p.result_channels, first + 16 * N);
  const int32_t channel = first + g * kOwn;

  const int32_t source_width = p.groups * p.source_channels, source_pixels = p.h.source * p.w.source;
  for (int32_t tile = slice; tile < tiles.count; tile += tiles.slices) {
    int32_t rest = tile;
    const int32_t column0 = take_remainder(rest, tiles.column_tiles) * tiles.columns;
    const int32_t row0 = take_remainder(rest, tiles.row_tiles) * tiles.rows;
    const int64_t image0 = static_cast<int64_t>(rest) * tiles.images;
    const int32_t top = row0 * tiles.h.scale + down.origin, left = column0 * tiles.w.scale + right.origin;
    const int32_t images_left =
        static_cast<int32_t>(p.batch - image0 < tiles.images ? p.batch - image0 : tiles.images);
    const T* images = static_cast<const T*>(p.source) + image0 * source_width * source_pixels;
    __syncthreads();
    if (tiles.lie) {
      const auto from = rows_in_memory<T>(p, tiles.row_copies, image0, group0 * tiles.row_copies.planes,
                                          images_left, top, left);
      stage_rows<T, 4, 2>(tiles.row_copies, from, threads, [&](int32_t piece, const auto& values) {
        store_shared_words(source + piece * 4, values);
      });
    } else {
      stage_quads<T, kLast>(p, tiles, images, images_left, group0, top, left, threads, source);
    }
    commit_async();
    wait_async<0>();
    __syncthreads();
    if (warp_pixel >= tile_pixels || first >= last) continue;

    Sums<N> sum = {};
    const auto add_group = [&]<int kFrom, int kTo>(int32_t b, int32_t trusted, Sums<N>& part,
                                                   Blocks<kFrom, kTo>) {
      constexpr int kStepFragments = N * kProducts * kFragment;
      const auto fragments =
          weights + ((unit * tiles.groups_of_unit + b) * steps * kStepFragments + lane * 4);
      const auto multiply = [&](int32_t step, bool all) {
        const auto entry = load_shared<2>(words + (4 * step + t) * kEntry);
        const int32_t bytes = static_cast<int32_t>(entry.lane[0]) + b * tiles.group * 4;
        uint32_t factor[N * kProducts][4];
#pragma unroll
        for (int i = 0; i < N * kProducts; ++i) {
          const auto row = load_shared<4>(fragments + step * kStepFragments + i * kFragment);
#pragma unroll
          for (int n = 0; n < 4; ++n) factor[i][n] = row.lane[n];
        }
#pragma unroll
        for (int j = kFrom; j < kTo; ++j) {
          const auto quad = load_shared_at<kQuad<T>>(mine[j], bytes);
          const int32_t values = static_cast<int32_t>(entry.lane[1]);
          uint32_t value[kProducts][2];
#pragma unroll
          for (int n = 0; n < kQuad<T>; ++n) {
            value[n / 2][n % 2] = all ? quad.lane[n] : quad.lane[n] & low_bits<T>(n, values);
          }
#pragma unroll
          for (int i = 0; i < N * kProducts; ++i) {
            multiply_fragments<T>(part[i / kProducts][j], factor[i], value[i % kProducts]);
          }
        }
      };
#pragma unroll 1
      for (int32_t step = 0; step < trusted; ++step) multiply(step, true);
#pragma unroll 1
      for (int32_t step = trusted; step < steps; ++step) multiply(step, false);
    };
    if constexpr (N > 1) {
      add_group(0, full, sum, kAll);
    } else {
#pragma unroll 1
      for (int32_t b = 0; b < tiles.groups_of_unit; ++b) {
        add_group(b, tiles.groups_of_unit > 1 ? steps : full, sum, kAll);
      }
      float probe = 0;
#pragma unroll
      for (int n = 0; n < 32; ++n) probe = fma(sum[0][n / 4][n % 4], 0.0f, probe);
      const auto add_anew = [&]<int kFrom, int kTo>(Blocks<kFrom, kTo> blocks) {
#pragma unroll 1
        for (int32_t b = 0; b < tiles.groups_of_unit; ++b) {
          Sums<N> part = {};
          add_group(b, full, part, blocks);
#pragma unroll
          for (int n = 4 * kFrom; n < 4 * kTo; ++n) {
            const int32_t m = g * kOwn + n % 4 / 2 - b * p.result_channels;
            float& to = sum[0][n / 4][n % 4];
            to = m >= 0 && m < p.result_channels ? part[0][n / 4][n % 4] : to;
          }
        }
      };
      // What is not finite may come from zero weights. In halves, for which there are registers.
      if (tiles.groups_of_unit > 1 && ballot(!(probe == 0)) != 0) {
        add_anew(Blocks<0, kPixelBlocks / 2>{});
        add_anew(Blocks<kPixelBlocks / 2, kPixelBlocks>{});
      }
    }

    const OwnResults own{warp_pixel,   t,           row0,    column0,       row_phase,
                         column_phase, images_left, channel, last - channel};
    const int64_t image_start = image0 * result_width * p.h.result * p.w.result;
    if (p.bias != nullptr) {
#pragma unroll
      for (int v = 0; v < kOwn; ++v) {
        const float bias = v < own.count ? bias_of<T>(p.bias, channel + v) : 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * kPixelBlocks; ++n) sum[v / 2][n / 2][v % 2 * 2 + n % 2] += bias;
      }
    }
    if (p.residual != nullptr) {
      const T* residual = static_cast<const T*>(p.residual) + image_start;
      own.template each_run<N, kLast>(p, tiles, sum, [&](int32_t at, auto&... values) {
        const auto added = load<sizeof...(values)>(residual + at);
        int v = 0;
        ((values += to_compute(added.lane[v++])), ...);
      });
    }
    activate_in_turns<kPixelBlocks * N * 4, 4>(&sum[0][0][0], p.activation);
    T* result = static_cast<T*>(p.result) + image_start;
    own.template each_run<N, kLast>(p, tiles, sum, [&](int32_t at, auto&... values) {
      store(result + at, Vector<T, sizeof...(values)>{from_compute<T>(values)...});
    });
  }
}

template <typename T, int N>
bool launch_units(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  const Conv2dPlanKey key = conv2d_plan_key(p, p.transposed, p.source, p.result, p.residual);
  const ProductPlan plan = kept_plan(key, [&] { return search_plan<T, N>(p); });
  if (plan.blocks == 0) return false;
  const LaunchShape shape{
      {static_cast<unsigned>(plan.blocks)}, plan.threads, static_cast<size_t>(plan.bytes)};
  error = launch(p.channels_last ? tile_products<T, N, true> : tile_products<T, N, false>, shape, stream, p,
                 plan.tiles);
  return true;
}

template <typename T>
bool launch_products(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  return p.result_channels <= 16 ? launch_units<T, 1>(p, stream, error)
                                 : launch_units<T, 2>(p, stream, error);
}

}  // namespace

bool launch_conv2d_tile_products(const Conv2dDirectParams& p, DType dtype, cudaStream_t stream,
                                 cudaError_t& error) {
  if (int64_t{p.groups} * p.result_channels * p.source_channels * p.h.kernel * p.w.kernel > INT32_MAX) {
    return false;
  }
  switch (dtype) {
    case DType::kBFloat16:
      return launch_products<BFloat16>(p, stream, error);
    case DType::kFloat16:
      return launch_products<Float16>(p, stream, error);
    case DType::kFloat32:
      // Channels that fill little of a fragment the float units take sooner.
      if (!p.tf32 || (p.groups == 1 && p.source_channels * p.result_channels <= 8)) return false;
      return launch_products<float>(p, stream, error);
    default:
      return false;
  }
}

}  // namespace d2lfast::cuda
