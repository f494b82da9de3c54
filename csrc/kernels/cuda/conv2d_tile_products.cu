#include "conv2d_tile_products.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "conv2d_element.cuh"
#include "device.cuh"
#include "device_limits.h"
#include "tensor_core.cuh"

// Few channels per group in 16 bits: products of pixels by result channels on tensor cores. A block keeps the
// weights of some units of result channels in shared memory, in the order of fragments, and goes through
// tiles of source pixels. The products sum over quads, four values that lie side by side in shared memory:
// four channels at a tap, or, of one or two channels, neighbouring taps of a row, staged once for each. A
// lane of a fragment takes a quad by one access. No value meets the zero weight of another group or of a tap
// that does not exist, which would make NaN of an infinity.
//
// A transposed convolution of stride s is s convolutions of stride 1 for each axis, one for the positions of
// each remainder (its phase).
namespace d2lfast::cuda {
namespace {

constexpr int kBlockPixels = 16, kPixelBlocks = 4, kWarpPixels = kPixelBlocks * kBlockPixels;
constexpr int kMaxWarps = kThreads / 32;
constexpr int kEntry = 4;      // words of a quad: place, values, first tap, first channel
constexpr int kFragment = 64;  // words of a fragment of weights

constexpr int kResident = 2;  // blocks of 256 threads that registers allow

struct TileAxis {
  int32_t phases, results;  // results: of a phase
  int32_t scale, distance;  // source positions from a result to the next, and from a tap to the next
  int32_t taps, period;     // taps of a phase at most; from one of its taps to the next
};

struct ProductTiles {
  TileAxis h, w;
  int32_t images, rows, columns;          // results of a block's tile
  int32_t count, slices;                  // tiles, and blocks that share them
  int32_t units, groups_of_unit;          // units of a block
  int32_t span, quads;                    // taps of a quad, quads of a tap
  int32_t position, pitch, plane, group;  // words: of a source position, row, plane of positions, group
  int32_t weights, source;                // where they begin, in words
  Divider<int32_t> unit_tiles, tiles_of_group, row_tiles, column_tiles, result_rows, result_columns;
  Divider<int32_t> source_rows, source_columns, staged,
      quads_of_group;  // staged: quads of a position, or pairs
  bool by_groups;      // each unit is of groups of its own
  bool by_pairs;       // 16 bytes of neighbouring channels are two quads
  bool whole;          // stores: neighbouring channels (channels_last), two pixels of a row (NCHW)
};

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

struct TilePixel {
  int32_t image, row, column;

  __device__ TilePixel(const ProductTiles& tiles, int32_t pixel) {
    column = take_remainder(pixel, tiles.result_columns);
    row = take_remainder(pixel, tiles.result_rows);
    image = pixel;
  }
};

// Of row g + 8 half of a fragment: two rows of a lane are neighbours in a plane, or rows of neighbouring
// lanes in channels_last.
template <bool kLast>
__device__ int32_t pixel_of(int32_t first, int block, int g, int half) {
  return first + block * kBlockPixels + (kLast ? half * 8 + g : 2 * g + half);
}

__device__ inline uint32_t low_bits(int32_t values) {  // of two 16-bit values
  return values >= 2 ? 0xffffffffu : values == 1 ? 0xffffu : 0u;
}

template <typename T>
__device__ uint32_t pair_of(T low, T high) {
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}

template <int N>
using Sums = float[kPixelBlocks][N][4];

// Those beyond ReLU by a loop through which the sums pass, since each copy of their code is long.
template <int N>
__device__ void activate_sums(Sums<N>& sum, Activation activation) {
  constexpr int kCount = kPixelBlocks * N * 4, kAtOnce = 4;
  float* values = &sum[0][0][0];
  if (activation == Activation::kNone) return;
  if (activation == Activation::kReLU) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) values[n] = values[n] <= 0 ? 0.0f : values[n];
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < kCount; turn += kAtOnce) {
    float done[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) done[n] = activate(values[n], activation);
#pragma unroll
    for (int n = 0; n < kCount - kAtOnce; ++n) values[n] = values[n + kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) values[kCount - kAtOnce + n] = done[n];
  }
}

// Calls with a place in the result and the lane's sums from there on, which are neighbours.
template <int N, bool kLast, typename Body>
__device__ __forceinline__ void each_run(const ProductTiles& tiles, const int32_t (&to)[kPixelBlocks][2],
                                         int32_t own, int32_t result_pixels, Sums<N>& sum, Body&& body) {
#pragma unroll
  for (int i = 0; i < kPixelBlocks; ++i) {
    if (kLast && tiles.whole) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (to[i][half] < 0) continue;
        [&]<size_t... v>(std::index_sequence<v...>) {
          body(to[i][half], sum[i][v / 2][half * 2 + v % 2]...);
        }(std::make_index_sequence<2 * N>{});
      }
      continue;
    }
#pragma unroll
    for (int v = 0; v < 2 * N; ++v) {
      if (v >= own) break;
      float &first = sum[i][v / 2][v % 2], &second = sum[i][v / 2][2 + v % 2];
      const int32_t shift = kLast ? v : v * result_pixels;
      if (!kLast && tiles.whole) {
        if (to[i][0] >= 0) body(to[i][0] + shift, first, second);
        continue;
      }
      if (to[i][0] >= 0) body(to[i][0] + shift, first);
      if (to[i][1] >= 0) body(to[i][1] + shift, second);
    }
  }
}

template <typename T, int N, bool kLast>
__global__ void __launch_bounds__(kThreads, kResident)
    tile_products(const Conv2dDirectParams p, const ProductTiles tiles) {
  constexpr int kOwn = 2 * N;  // result channels of a lane
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

  const int32_t spans = (right.count + tiles.span - 1) / tiles.span;
  const int32_t quads = down.count * spans * tiles.quads, steps = (quads + 3) / 4;
  // Of the steps, those without values to ignore.
  const int32_t full = tiles.span == 1 ? quads / 4 : down.count * (right.count / tiles.span) / 4;
  for (int32_t i = thread; i < 4 * steps; i += threads) {
    int32_t y, x, quad = 0, values = 4;
    if (tiles.span == 1) {
      const int32_t tap = i / tiles.quads;
      quad = i - tap * tiles.quads;
      y = tap / right.count;
      x = tap - y * right.count;
    } else {
      x = i / down.count;
      y = i - x * down.count;
      x *= tiles.span;
      values = least(tiles.span, right.count - x) * p.source_channels;
    }
    const bool there = i < quads;
    const int32_t place = (y * tiles.h.distance * tiles.pitch + x * tiles.w.distance) * tiles.position +
                          quad / 4 * tiles.plane + quad % 4 * 2;
    words[i * kEntry] = there ? place : 0;
    words[i * kEntry + 1] = there ? values : 0;
    words[i * kEntry + 2] = (down.first + y * down.step) * p.w.kernel + right.first + x * right.step;
    words[i * kEntry + 3] = quad * 4;
  }
  __syncthreads();

  const int32_t taps = p.h.kernel * p.w.kernel, result_width = p.groups * p.result_channels;
  for (int32_t i = warp; i < tiles.units * tiles.groups_of_unit * steps * N; i += warps) {
    const int32_t j = i % N, rest = i / N, which = rest / steps, step = rest - which * steps;
    const int32_t u = which / tiles.groups_of_unit, b = which - u * tiles.groups_of_unit;
    const int32_t group = tiles.by_groups ? group0 + which : group0;
    // Column g of the fragment.
    const int32_t within = g / 2 * kOwn + 2 * j + g % 2;
    const int32_t m = tiles.by_groups ? within - b * p.result_channels : (unit0 + u) * 8 * N + within;
    const auto entry = load_shared<kEntry>(words + (4 * step + t) * kEntry);
    T value[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int32_t s = tiles.span == 1 ? 0 : e / p.source_channels;
      const int32_t c = tiles.span == 1 ? static_cast<int32_t>(entry.lane[3]) + e : e % p.source_channels;
      value[e] = T{};
      if (e >= static_cast<int32_t>(entry.lane[1]) || c >= p.source_channels || m < 0 ||
          m >= p.result_channels || group >= p.groups) {
        continue;
      }
      const int32_t tap = static_cast<int32_t>(entry.lane[2]) + s * right.step;
      const int32_t row = group * p.result_channels + m;
      const int32_t at = kLast ? (tap * p.source_channels + c) * result_width + row
                               : (row * p.source_channels + c) * taps + tap;
      value[e] = static_cast<const T*>(p.weight)[at];
    }
    weights[i * kFragment + lane * 2] = pair_of(value[0], value[1]);
    weights[i * kFragment + lane * 2 + 1] = pair_of(value[2], value[3]);
  }

  const int32_t tile_pixels = tiles.images * tiles.rows * tiles.columns;
  const int32_t own_group = tiles.by_groups ? unit * tiles.groups_of_unit : 0;  // of the block
  SharedPointer<uint32_t> mine[kPixelBlocks][2];
#pragma unroll
  for (int i = 0; i < 2 * kPixelBlocks; ++i) {
    const int32_t pixel = pixel_of<kLast>(warp_pixel, i / 2, g, i % 2);
    // Beyond the tile: a pixel that is there, whose result is thrown away.
    const TilePixel at(tiles, pixel < tile_pixels ? pixel : 0);
    const int32_t row = at.image * tiles.source_rows.divisor + at.row * tiles.h.scale;
    mine[i / 2][i % 2] =
        source + own_group * tiles.group + (row * tiles.pitch + at.column * tiles.w.scale) * tiles.position;
  }
  // The unit's first result channel of all, and where its groups end.
  const int32_t first = tiles.by_groups ? (group0 + own_group) * p.result_channels
                                        : group0 * p.result_channels + (unit0 + unit) * 8 * N;
  const int32_t last = tiles.by_groups ? least(result_width, first + tiles.groups_of_unit * p.result_channels)
                                       : least((group0 + 1) * p.result_channels, first + 8 * N);
  const int32_t channel = first + t * kOwn, own = least(kOwn, last - channel);

  const int32_t source_width = p.groups * p.source_channels, source_pixels = p.h.source * p.w.source;
  const int32_t result_pixels = p.h.result * p.w.result;
  for (int32_t tile = slice; tile < tiles.count; tile += tiles.slices) {
    int32_t rest = tile;
    const int32_t column0 = take_remainder(rest, tiles.column_tiles) * tiles.columns;
    const int32_t row0 = take_remainder(rest, tiles.row_tiles) * tiles.rows;
    const int64_t image0 = static_cast<int64_t>(rest) * tiles.images;
    const int32_t top = row0 * tiles.h.scale + down.origin, left = column0 * tiles.w.scale + right.origin;
    const int32_t images_left =
        static_cast<int32_t>(p.batch - image0 < tiles.images ? p.batch - image0 : tiles.images);
    const T* images = static_cast<const T*>(p.source) + image0 * source_width * source_pixels;
    const int32_t staged =
        tiles.images * tiles.source_rows.divisor * tiles.source_columns.divisor * tiles.staged.divisor;
    const auto place_of = [&](int32_t quad, int32_t position) {  // of the block
      const int32_t of_group = take_remainder(quad, tiles.quads_of_group);
      return quad * tiles.group + of_group / 4 * tiles.plane + position * tiles.position + of_group % 4 * 2;
    };
    __syncthreads();
    for (int32_t i = thread; i < staged; i += threads) {
      int32_t of = i, quad;
      if constexpr (kLast) quad = take_remainder(of, tiles.staged);
      int32_t x = take_remainder(of, tiles.source_columns);
      int32_t line = of, y = take_remainder(of, tiles.source_rows);
      if constexpr (!kLast) {
        line = of;
        quad = take_remainder(line, tiles.staged);
        of = line;
        line = of * tiles.source_rows.divisor + y;
      }
      const int32_t position = line * tiles.pitch + x;
      const int32_t h = top + y, w = left + x;
      const bool row_inside = h >= 0 && h < p.h.source && of < images_left;
      const int64_t image = static_cast<int64_t>(of) * source_width * source_pixels;
      if (kLast && tiles.by_pairs) {
        const int32_t c = group0 * p.source_channels + quad * 8;
        const bool inside = row_inside && w >= 0 && w < p.w.source && c < source_width;
        const T* from = inside ? images + image + static_cast<int64_t>(h * p.w.source + w) * source_width + c
                               : static_cast<const T*>(p.source);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          copy_async_8(source + place_of(2 * quad + half, position),
                       reinterpret_cast<const uint32_t*>(from + 4 * half), inside);
        }
        continue;
      }
      int32_t group = quad;
      const int32_t c0 = take_remainder(group, tiles.quads_of_group) * 4;
      const int32_t of_source = (group0 + group) * p.source_channels;
      T value[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int32_t s = tiles.span == 1 ? 0 : e / p.source_channels;
        const int32_t c = tiles.span == 1 ? c0 + e : e % p.source_channels;
        const int32_t column = w + s * tiles.w.distance;
        value[e] = T{};
        if (row_inside && column >= 0 && column < p.w.source && c < p.source_channels &&
            group0 + group < p.groups) {
          const int32_t at = h * p.w.source + column;
          value[e] = images[image + (kLast ? at * source_width + of_source + c
                                           : (of_source + c) * source_pixels + at)];
        }
      }
      store_shared<2>(source + place_of(quad, position),
                      Vector<uint32_t, 2>{pair_of(value[0], value[1]), pair_of(value[2], value[3])});
    }
    commit_async();
    wait_async<0>();
    __syncthreads();
    if (warp_pixel >= tile_pixels || first >= last) continue;

    float sum[kPixelBlocks][N][4] = {};
    for (int32_t b = 0; b < (N == 1 ? tiles.groups_of_unit : 1); ++b) {
      float part[kPixelBlocks][N][4] = {};
      const auto fragments = weights + (unit * tiles.groups_of_unit + b) * steps * N * kFragment + lane * 2;
      const auto multiply = [&](int32_t step, bool all) {
        const auto entry = load_shared<2>(words + (4 * step + t) * kEntry);
        const int32_t place = static_cast<int32_t>(entry.lane[0]) + b * tiles.group;
        uint32_t factor[N][2];
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const auto pair = load_shared<2>(fragments + (step * N + j) * kFragment);
          factor[j][0] = pair.lane[0];
          factor[j][1] = pair.lane[1];
        }
#pragma unroll
        for (int i = 0; i < kPixelBlocks; ++i) {
          uint32_t value[4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const auto quad = load_shared<2>(mine[i][half] + place);
            const int32_t values = static_cast<int32_t>(entry.lane[1]);
            value[half] = all ? quad.lane[0] : quad.lane[0] & low_bits(values);
            value[half + 2] = all ? quad.lane[1] : quad.lane[1] & low_bits(values - 2);
          }
#pragma unroll
          for (int j = 0; j < N; ++j) multiply_fragments<T>(part[i][j], value, factor[j]);
        }
      };
#pragma unroll 1
      for (int32_t step = 0; step < full; ++step) multiply(step, true);
#pragma unroll 1
      for (int32_t step = full; step < steps; ++step) multiply(step, false);
#pragma unroll
      for (int n = 0; n < kPixelBlocks * N * 4; ++n) {
        const int32_t column = N == 1 ? 2 * t + n % 2 - b * p.result_channels : 0;
        const bool of_group = N > 1 || (column >= 0 && column < p.result_channels);
        float& to = sum[n / (4 * N)][n / 4 % N][n % 4];
        to = of_group ? part[n / (4 * N)][n / 4 % N][n % 4] : to;
      }
    }

    int32_t to[kPixelBlocks][2];  // of the lane's first channel in the result of these images, -1 outside
#pragma unroll
    for (int i = 0; i < 2 * kPixelBlocks; ++i) {
      const int32_t pixel = pixel_of<kLast>(warp_pixel, i / 2, g, i % 2);
      const TilePixel at(tiles, pixel);
      const int32_t h = (row0 + at.row) * tiles.h.phases + row_phase;
      const int32_t w = (column0 + at.column) * tiles.w.phases + column_phase;
      const bool inside =
          pixel < tile_pixels && at.image < images_left && h < p.h.result && w < p.w.result && own > 0;
      const int32_t place = h * p.w.result + w;
      to[i / 2][i % 2] = !inside ? -1
                         : kLast ? (at.image * result_pixels + place) * result_width + channel
                                 : (at.image * result_width + channel) * result_pixels + place;
    }
    const int64_t image_start = image0 * result_width * result_pixels;
    if (p.bias != nullptr) {
#pragma unroll
      for (int v = 0; v < kOwn; ++v) {
        const float bias = v < own ? bias_of<T>(p.bias, channel + v) : 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * kPixelBlocks; ++i) sum[i / 2][v / 2][i % 2 * 2 + v % 2] += bias;
      }
    }
    if (p.residual != nullptr) {
      const T* residual = static_cast<const T*>(p.residual) + image_start;
      each_run<N, kLast>(tiles, to, own, result_pixels, sum, [&](int32_t at, auto&... values) {
        const auto added = load<sizeof...(values)>(residual + at);
        int v = 0;
        ((values += to_compute(added.lane[v++])), ...);
      });
    }
    activate_sums(sum, p.activation);
    T* result = static_cast<T*>(p.result) + image_start;
    each_run<N, kLast>(tiles, to, own, result_pixels, sum, [&](int32_t at, auto&... values) {
      store(result + at, Vector<T, sizeof...(values)>{from_compute<T>(values)...});
    });
  }
}

TileAxis tile_axis(const Conv2dAxis& axis, bool transposed) {
  if (!transposed) return {1, axis.result, axis.stride, axis.dilation, axis.kernel, 1};
  const int32_t common = std::gcd(axis.stride, axis.dilation), period = axis.stride / common;
  const int32_t results = (axis.result - 1) / axis.stride + 1;
  return {axis.stride, results, 1, axis.dilation / common, (axis.kernel - 1) / period + 1, period};
}

int64_t extent(const TileAxis& axis, int64_t results, int64_t taps) {
  return (results - 1) * axis.scale + (taps - 1) * axis.distance + 1;
}

int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Plan {
  ProductTiles tiles{};
  int64_t blocks = 0, bytes = 0;
  unsigned threads = 0;
};

// The tile of the fewest cycles, computed from sm_90's instructions; no blocks: none fits.
template <int N>
Plan plan_of(const Conv2dDirectParams& p) {
  const DeviceLimits limits = device_limits();
  // Two blocks of a multiprocessor at least.
  const int64_t most_bytes = std::min<int64_t>(limits.shared_bytes, 110 * 1024);
  ProductTiles t{};
  t.h = tile_axis(p.h, p.transposed);
  t.w = tile_axis(p.w, p.transposed);
  t.span = p.source_channels == 1 ? 4 : p.source_channels == 2 ? 2 : 1;
  t.quads = (p.source_channels + 3) / 4;
  t.position = 2 * std::min(t.quads, 4);
  t.by_groups = p.result_channels <= 8 * N && p.groups > 1;
  t.groups_of_unit = N == 1 && t.by_groups ? 8 / p.result_channels : 1;
  const int32_t units_of_group = (p.result_channels + 8 * N - 1) / (8 * N);
  const int32_t units_there = t.by_groups ? (p.groups - 1) / t.groups_of_unit + 1 : units_of_group;
  const int64_t spans = (t.w.taps + t.span - 1) / t.span;
  const int64_t steps = (t.h.taps * spans * t.quads + 3) / 4;
  const int64_t planes = (t.quads + 3) / 4;
  const bool vectors = p.channels_last && p.source_channels % 4 == 0 && aligned(p.source, 8) &&
                       int64_t{p.groups} * p.source_channels % 8 == 0;
  const int64_t image = int64_t{p.groups} * p.result_channels * p.h.result * p.w.result;
  Plan best;
  double least_cost = INFINITY;
  const auto consider = [&](int32_t warps, int64_t columns, int64_t rows) {
    const int64_t pixels = int64_t{warps} / t.units * kWarpPixels;
    const bool whole_image = rows == t.h.results && columns == t.w.results;
    const int64_t images =
        whole_image ? std::clamp<int64_t>(std::min(pixels / (rows * columns), INT32_MAX / image), 1, p.batch)
                    : 1;
    const int64_t groups = t.by_groups ? int64_t{t.units} * t.groups_of_unit : 1;
    const int64_t source_rows = extent(t.h, rows, t.h.taps);
    const int64_t source_columns = extent(t.w, columns, (spans - 1) * t.span + 1);
    // Rows of neighbouring taps begin in different banks.
    const int64_t pitch = t.span > 1 ? up(source_columns + 12, 16) - 12 : source_columns;
    const int64_t plane = images * source_rows * pitch * t.position;
    const int64_t fragments = int64_t{t.units} * t.groups_of_unit * steps * N;
    const int64_t bytes = (steps * 4 * kEntry + fragments * kFragment + groups * planes * plane) * 4;
    if (bytes > most_bytes) return;
    const int64_t row_tiles = (t.h.results + rows - 1) / rows,
                  column_tiles = (t.w.results + columns - 1) / columns;
    const int64_t count = (p.batch + images - 1) / images * row_tiles * column_tiles;
    const int64_t tiles_of_group = t.by_groups ? 1 : (units_of_group + t.units - 1) / t.units;
    const int64_t unit_tiles =
        t.by_groups ? (units_there + t.units - 1) / t.units : p.groups * tiles_of_group;
    const int64_t sharers = unit_tiles * t.h.phases * t.w.phases;  // blocks of a slice
    const int64_t resident =
        std::min<int64_t>({228 * 1024 / (bytes + 1024), 2048 / (32 * warps), kResident * kMaxWarps / warps});
    const int64_t most_slices = std::clamp<int64_t>(limits.processors * resident / sharers, 1, count);
    const int64_t turns = (count + most_slices - 1) / most_slices, slices = (count + turns - 1) / turns;
    if (sharers > INT32_MAX / slices || count > INT32_MAX / 2) return;
    const bool by_pairs = vectors && groups * p.source_channels % 8 == 0;
    const double step = std::max({8.0 * N, 2.0 * (8 + N) + 1, (5 * N + 16) / 2.8});
    const double main = warps * (t.groups_of_unit * steps * step + 60 + 20 * N);
    // Pieces of a pixel shorter than a sector of 32 bytes are read in vain.
    const int64_t piece = p.channels_last && p.groups > 1 ? groups * p.source_channels * 2 : 64;
    const double staging = double(images * source_rows * source_columns) * groups * t.quads *
                           (by_pairs ? 20 : 50) *
                           (piece < 32   ? 2.5
                            : piece < 64 ? 1.3
                                         : 1.0) /
                           90;
    const double weights = double(fragments) * 25 + 400;
    const double of_block = weights + turns * (main + staging + 300);
    const double blocks = double(sharers) * slices;
    const double cost = std::ceil(blocks / limits.processors) * of_block * (1 + 4.0 / (resident * warps));
    if (cost >= least_cost) return;
    least_cost = cost;
    best.tiles = t;
    ProductTiles& b = best.tiles;
    b.images = static_cast<int32_t>(images);
    b.rows = static_cast<int32_t>(rows);
    b.columns = static_cast<int32_t>(columns);
    b.count = static_cast<int32_t>(count);
    b.slices = static_cast<int32_t>(slices);
    b.pitch = static_cast<int32_t>(pitch);
    b.plane = static_cast<int32_t>(plane);
    b.group = static_cast<int32_t>(planes * plane);
    b.weights = static_cast<int32_t>(steps * 4 * kEntry);
    b.source = static_cast<int32_t>(b.weights + fragments * kFragment);
    b.unit_tiles = Divider<int32_t>(unit_tiles);
    b.tiles_of_group = Divider<int32_t>(tiles_of_group);
    b.row_tiles = Divider<int32_t>(row_tiles);
    b.column_tiles = Divider<int32_t>(column_tiles);
    b.result_rows = Divider<int32_t>(rows);
    b.result_columns = Divider<int32_t>(columns);
    b.source_rows = Divider<int32_t>(source_rows);
    b.source_columns = Divider<int32_t>(source_columns);
    b.staged = Divider<int32_t>(groups * t.quads / (by_pairs ? 2 : 1));
    b.quads_of_group = Divider<int32_t>(t.quads);
    b.by_pairs = by_pairs;
    const int64_t size = int64_t{p.groups} * p.result_channels;
    const int64_t run = t.by_groups ? int64_t{t.groups_of_unit} * p.result_channels : p.result_channels;
    b.whole = p.channels_last ? size % (2 * N) == 0 && run % (2 * N) == 0
                              : columns % 2 == 0 && p.w.result % 2 == 0 && t.w.phases == 1;
    const size_t boundary = p.channels_last ? 4 * N : 4;
    b.whole = b.whole && aligned(p.result, boundary) && aligned(p.residual, boundary);
    best.blocks = sharers * slices;
    best.bytes = bytes;
    best.threads = static_cast<unsigned>(32 * warps);
  };
  for (t.units = 1; t.units <= kMaxWarps && (t.units == 1 || t.units / 2 < units_there); t.units *= 2) {
    for (int32_t warps = std::max(t.units, 2); warps <= kMaxWarps; warps *= 2) {
      const int64_t pixels = int64_t{warps} / t.units * kWarpPixels;
      for (int64_t across = 1; across <= 8; ++across) {
        const int64_t columns = (t.w.results + across - 1) / across;
        if (columns > pixels) continue;
        const int64_t most = std::min<int64_t>(pixels / columns, t.h.results);
        const int64_t turns = (t.h.results + most - 1) / most;
        consider(warps, columns, (t.h.results + turns - 1) / turns);
      }
    }
  }
  return best;
}

template <typename T, int N>
bool launch_units(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  const Plan plan = plan_of<N>(p);
  if (plan.blocks == 0) return false;
  const LaunchShape shape{
      {static_cast<unsigned>(plan.blocks)}, plan.threads, static_cast<size_t>(plan.bytes)};
  error = launch(p.channels_last ? tile_products<T, N, true> : tile_products<T, N, false>, shape, stream, p,
                 plan.tiles);
  return true;
}

template <typename T>
bool launch_products(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  return p.result_channels <= 8    ? launch_units<T, 1>(p, stream, error)
         : p.result_channels <= 16 ? launch_units<T, 2>(p, stream, error)
                                   : launch_units<T, 4>(p, stream, error);
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
    default:
      return false;
  }
}

}  // namespace d2lfast::cuda
