#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "conv2d_element.cuh"
#include "conv2d_plan.h"
#include "conv2d_staged_rows.cuh"
#include "conv2d_wavefronts.h"
#include "device.cuh"
#include "device_limits.h"

// How a convolution of few channels is cut into the tiles, units and blocks of conv2d_tile_products.cu.
namespace d2lfast::cuda {

constexpr int kPixelBlocks = 8, kWarpPixels = kPixelBlocks * 8;
constexpr int kMaxWarps = kThreads / 32;
constexpr int kResident = 2;    // blocks of 256 threads that registers allow
constexpr int kEntry = 4;       // words of a quad: place in bytes, values, first tap, first channel
constexpr int kFragment = 128;  // words of a fragment of weights

// A quad, four values of 16 bits or floats rounded to TF32: its words, and the quads of 16 bytes. A step of
// four quads is so many products.
template <typename T>
constexpr int kQuad = sizeof(T);
template <typename T>
constexpr int kQuadsAtOnce = 4 / kQuad<T>;
template <typename T>
constexpr int kStepProducts = sizeof(T) / 2;
template <typename T>
constexpr int kBanks = 32 / kQuad<T>;  // in which quads begin

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
  int32_t tap_bits;                       // value v of a quad is of tap v >> tap_bits, a channel by the rest
  int32_t position, pitch, plane, group;  // words of a source position, plane, group; positions of a row
  int32_t weights, source;                // where they begin, in words
  int32_t second;                         // words from the first quad of a pair to the second
  int32_t neighbours;                     // pixels of a row of results that a lane has: 4, 2 or 1
  Divider<int32_t> unit_tiles, tiles_of_group, row_tiles, column_tiles, result_rows, result_columns;
  Divider<int32_t> source_rows, source_columns, quads_of_group;
  Divider<int32_t> staged;  // quads of a position, or pieces
  StagedRows row_copies;
  bool lie;        // quads are elements of a row as it is in memory, positions are quads
  bool by_groups;  // each unit is of groups of its own
  bool by_pieces;  // of neighbouring channels: 16 bytes are a quad or two
  bool whole;      // a lane stores its channels at once (channels_last), or its neighbours (NCHW)
};

inline TileAxis tile_axis(const Conv2dAxis& axis, bool transposed) {
  if (!transposed) return {1, axis.result, axis.stride, axis.dilation, axis.kernel, 1};
  const int32_t common = std::gcd(axis.stride, axis.dilation), period = axis.stride / common;
  const int32_t results = (axis.result - 1) / axis.stride + 1;
  return {axis.stride, results, 1, axis.dilation / common, (axis.kernel - 1) / period + 1, period};
}

inline int64_t extent(const TileAxis& axis, int64_t results, int64_t taps) {
  return (results - 1) * axis.scale + (taps - 1) * axis.distance + 1;
}

struct ProductPlan {
  ProductTiles tiles{};
  int64_t blocks = 0, bytes = 0;
  unsigned threads = 0;
};

// The tile of the fewest cycles, computed from sm_90's instructions; no blocks: none fits.
template <typename T, int N>
ProductPlan search_plan(const Conv2dDirectParams& p) {
  constexpr int kOfPiece = kQuadsAtOnce<T>;
  constexpr bool kFloats = kOfPiece == 1;
  const DeviceLimits limits = device_limits();
  // Two blocks of a multiprocessor at least.
  const int64_t most_bytes = std::min<int64_t>(limits.shared_bytes, 110 * 1024);
  ProductTiles t{};
  t.h = tile_axis(p.h, p.transposed);
  t.w = tile_axis(p.w, p.transposed);
  t.by_groups = p.result_channels <= 16 * N && p.groups > 1;
  t.groups_of_unit = N == 1 && t.by_groups ? 16 / p.result_channels : 1;
  const int32_t units_of_group = (p.result_channels + 16 * N - 1) / (16 * N);
  const int32_t units_there = t.by_groups ? (p.groups - 1) / t.groups_of_unit + 1 : units_of_group;
  const RowUnits in_rows(p, 4, sizeof(T));
  // Of neighbouring channels, whose quads belong to a group, or to a group each.
  const int32_t quads = (p.source_channels + 3) / 4;
  const bool vectors = p.channels_last && p.source_channels % 4 == 0 &&
                       (quads % kOfPiece == 0 || quads == 1) && aligned(p.source, 16) &&
                       int64_t{p.groups} * p.source_channels % kVectorWidth<T> == 0;
  int64_t spans = 0, steps = 0;  // spans: quads of a row's taps
  WavefrontTable<kBanks<T>> table;
  const int64_t image = p.groups * std::max(int64_t{p.source_channels} * p.h.source * p.w.source,
                                            int64_t{p.result_channels} * p.h.result * p.w.result);
  ProductPlan best;
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
    const int64_t common = t.w.phases > 1 ? 1 : std::gcd(columns, int64_t{p.w.result});
    // Fours of pixels of more channels would meet in the same banks.
    const bool fours = !p.channels_last || kFloats || t.position <= 4;
    const int32_t neighbours = common % 4 == 0 && fours ? 4 : common % 2 == 0 ? 2 : 1;
    const int64_t planes = t.lie ? in_rows.planes : (t.quads + 3) / 4;
    const int64_t fragments = int64_t{t.units} * t.groups_of_unit * steps * N;
    const int64_t row_tiles = (t.h.results + rows - 1) / rows,
                  column_tiles = (t.w.results + columns - 1) / columns;
    const int64_t count = (p.batch + images - 1) / images * row_tiles * column_tiles;
    const int64_t tiles_of_group = t.by_groups ? 1 : (units_of_group + t.units - 1) / t.units;
    const int64_t unit_tiles =
        t.by_groups ? (units_there + t.units - 1) / t.units : p.groups * tiles_of_group;
    const int64_t sharers = unit_tiles * t.h.phases * t.w.phases;  // blocks of a slice
    const bool by_pieces = !t.lie && vectors && groups * p.source_channels % kVectorWidth<T> == 0;
    // Pieces of a pixel shorter than a sector of 32 bytes are read in vain.
    const int64_t piece =
        p.channels_last && p.groups > 1 ? groups * p.source_channels * int64_t{sizeof(T)} : 64;
    const double in_vain = piece < 32 ? 2.5 : piece < 64 ? 1.3 : 1.0;
    // Instructions of a quad; floats are rounded.
    const double of_quad = by_pieces ? (kFloats ? 50 : 20) : (kFloats ? 65 : 50);
    const double of_row = kFloats ? 52 + 12 * in_rows.copies : 60 + 6 * in_rows.copies;
    const double lines = double(images * source_rows);
    const double weights = double(fragments) * ((kFloats ? 40 : 24) + 32.0 / steps) + 400;
    // For rows and copies so far apart, of whose quads lanes meet in a bank so often.
    const auto weigh = [&](int64_t pitch, int64_t row, int64_t copy, double met) {
      const int64_t plane = t.lie ? in_rows.copies * copy * 4 : images * source_rows * pitch * t.position;
      // A pixel's groups, then its neighbours', are staged side by side: into different banks.
      const int64_t apart = std::max<int64_t>(t.position, 32 / groups / t.position * t.position);
      const int64_t group = planes * plane + (t.by_groups ? (apart - planes * plane) & 31 : 0);
      const int64_t bytes =
          (steps * 4 * kEntry + fragments * kStepProducts<T> * kFragment + groups * group) * 4;
      if (bytes > most_bytes) return;
      const int64_t resident = std::min<int64_t>(
          {228 * 1024 / (bytes + 1024), 2048 / (32 * warps), kResident * kMaxWarps / warps});
      const int64_t most_slices = std::clamp<int64_t>(limits.processors * resident / sharers, 1, count);
      const int64_t turns = (count + most_slices - 1) / most_slices, slices = (count + turns - 1) / turns;
      if (sharers > INT32_MAX / slices || count > INT32_MAX / 2) return;
      // Cycles of the products, at half of the rate in TF32, of shared memory, and to issue instructions.
      const double step = kFloats ? std::max({32.0 * N, 8.0 * (4 * met + N) + 1, (18 * N + 20) / 2.8})
                                  : std::max({16.0 * N, 4.0 * (4 * met + N) + 1, (9 * N + 20) / 2.8});
      const double main = warps * (t.groups_of_unit * steps * step + 60 + 40 * N);
      const double staging = t.lie ? lines * row * in_rows.planes * of_row / 90
                                   : lines * source_columns * groups * t.quads * of_quad * in_vain / 90;
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
      b.group = static_cast<int32_t>(group);
      b.weights = static_cast<int32_t>(steps * 4 * kEntry);
      b.source = static_cast<int32_t>(b.weights + fragments * kStepProducts<T> * kFragment);
      b.unit_tiles = Divider<int32_t>(unit_tiles);
      b.tiles_of_group = Divider<int32_t>(tiles_of_group);
      b.row_tiles = Divider<int32_t>(row_tiles);
      b.column_tiles = Divider<int32_t>(column_tiles);
      b.result_rows = Divider<int32_t>(rows);
      b.result_columns = Divider<int32_t>(columns);
      b.source_rows = Divider<int32_t>(source_rows);
      b.source_columns = Divider<int32_t>(source_columns);
      b.staged = Divider<int32_t>(groups * t.quads / (by_pieces ? kOfPiece : 1));
      b.quads_of_group = Divider<int32_t>(t.quads);
      if (t.lie) b.row_copies = in_rows.staged(copy, row, images, source_rows);
      b.by_pieces = by_pieces;
      const int64_t size = int64_t{p.groups} * p.result_channels;
      const int64_t run = t.by_groups ? int64_t{t.groups_of_unit} * p.result_channels : p.result_channels;
      b.neighbours = neighbours;
      b.second = t.quads == 1 ? b.group : kQuad<T>;
      const int32_t stored = p.channels_last ? 2 * N : b.neighbours;
      b.whole = (p.channels_last ? size % stored == 0 && run % stored == 0 : stored > 1) &&
                aligned(p.result, sizeof(T) * stored) && aligned(p.residual, sizeof(T) * stored);
      best.blocks = sharers * slices;
      best.bytes = bytes;
      best.threads = static_cast<unsigned>(32 * warps);
    };
    // Rows, and copies of them, of more elements than they need, as long as fewer lanes meet in a bank.
    const auto& conflicts = table.of[neighbours == 4 ? 1 : 0];
    double met = INFINITY;
    if (!t.lie) {
      for (int64_t pitch = source_columns; pitch < source_columns + kBanks<T>; ++pitch) {
        const double meet = conflicts[pitch % kBanks<T>][0];
        if (meet < met) weigh(pitch, 0, 0, met = meet);
      }
      return;
    }
    const int64_t least_row = ((columns - 1) * in_rows.step / 4 + spans + kOfPiece - 1) / kOfPiece;
    for (int64_t row = least_row; row < least_row + 8; ++row) {
      int64_t copy = images * source_rows * row;
      for (int64_t other = copy + 1; other < images * source_rows * row + 8; ++other) {
        if (conflicts[row % 8][other % 8] < conflicts[row % 8][copy % 8]) copy = other;
      }
      const double meet = conflicts[row % 8][copy % 8];
      if (meet < met) weigh(kOfPiece * row, row, copy, met = meet);
    }
  };
  for (const bool lie : {false, true}) {
    if (lie && (p.transposed || t.by_groups || !in_rows.lie)) continue;
    t.lie = lie;
    t.span = lie || p.source_channels > 2 ? 1 : 4 / p.source_channels;
    t.tap_bits = t.span == 1 ? 2 : p.source_channels - 1;
    t.quads = lie ? 1 : quads;
    t.position = kQuad<T> * std::min(t.quads, 4);
    spans = lie ? (p.w.kernel * in_rows.beside + 3) / 4 : (t.w.taps + t.span - 1) / t.span;
    const int64_t all = t.h.taps * spans * (lie ? in_rows.planes : t.quads);
    steps = (all + 3) / 4;
    if (lie) {
      const int64_t row_taps = t.h.taps * in_rows.planes;
      const auto quad = [&](int64_t i, int64_t row, int64_t copy) {
        const int64_t plane = i % row_taps / t.h.taps, y = i % t.h.taps;
        return (plane * in_rows.copies * copy + y * t.h.distance * row) * kOfPiece + i / row_taps;
      };
      table.fill(all, 8, 8, quad, [&](int64_t column, int64_t copy) {
        const int64_t element = column * in_rows.step;
        return element / 4 + element % 4 / in_rows.shift * copy * kOfPiece;
      });
    } else {
      const int64_t words = t.position / kQuad<T>;
      const auto quad = [&](int64_t i, int64_t row, int64_t) {
        const int64_t tap = i / t.quads, y = t.span == 1 ? tap / t.w.taps : tap % t.h.taps;
        const int64_t x = t.span == 1 ? tap % t.w.taps : tap / t.h.taps * t.span;
        return (y * t.h.distance * row + x * t.w.distance) * words + i % t.quads % 4;
      };
      table.fill(all, kBanks<T>, 1, quad,
                 [&](int64_t column, int64_t) { return column * t.w.scale * words; });
    }
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
  }
  return best;
}

}  // namespace d2lfast::cuda
