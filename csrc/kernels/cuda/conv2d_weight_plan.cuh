#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "conv2d_element.cuh"
#include "conv2d_plan.h"
#include "conv2d_staged_rows.cuh"
#include "device.cuh"
#include "device_limits.h"

// How a weight gradient is cut into the tiles, units and blocks of conv2d_weight_products.cu.
namespace d2lfast::cuda {

constexpr int kStep = 16;  // pixels of a product
constexpr int kPiece = 8;  // elements of 16 bytes
constexpr int kWarps = kThreads / 32;
constexpr int kResident = 2;  // blocks that registers and shared memory allow
constexpr int kEntry = 4;     // words for a channel of a unit: distance, columns of its tap, source channel

// What is staged at once: of 8 channels one pixel that lies so in memory, one or two that are gathered; or 8
// neighbours of a row.
enum class Staging : int32_t { kVectors, kPairs, kSingle, kRows };

// What 8 columns are: channels of a tap; of the taps of a row, gathered from them; or elements of a row that
// its taps meet.
enum class Columns { kChannels, kTaps, kRows };

struct WeightTiles {
  int32_t images, rows, columns;         // results of a tile
  int32_t count, slices;                 // tiles, and blocks that share them
  int32_t steps;                         // of a tile
  int32_t units, chunks, parts;          // of a block: units, chunks of a unit's blocks, warps of a chunk
  int32_t unit_results, unit_sources;    // channels of a unit
  int32_t taps;                          // of a row, that are columns: all or 1
  int32_t next_tap, next_channel;        // columns to them; of rows, elements of a pixel
  int32_t pieces, blocks, chunk_blocks;  // of a unit: pieces of source, 8 columns each; of a chunk
  int32_t pitch, phase, lead;            // pixels: of a source row, of a remainder by stride, before it
  int32_t gradient_plane, source_plane;  // pixels of a piece, or pieces of all copies of rows
  int32_t buffers, buffer;               // of tiles: two, of which one is filled meanwhile, or one; elements
  int32_t gradient, pixels, entries;     // where they begin, in elements, and words
  Divider<int32_t> chunk_tiles, unit_tiles, tiles_of_group, row_tiles, column_tiles;
  Divider<int32_t> result_rows, result_columns, source_rows, source_columns;
  Divider<int32_t> plane, gradient_threads, source_threads;  // threads of a piece
  Divider<int32_t> gradient_items, gradient_pieces, source_pieces, pieces_of_unit, blocks_of_chunk;
  Divider<int32_t> row_pieces;  // of the taps of a row; 1 of other columns
  Divider<int32_t> stride, kernel_h, kernel_w, source_channels, result_channels, results_of_unit;
  Divider<int32_t> sources_of_unit;
  StagedRows row_copies;
  Staging gradient_staging, source_staging;
  bool by_groups;   // units are of groups of their own
  bool whole_rows;  // of results: the pixels that are there are the first
};

// Of planes of 16-byte pieces that threads store side by side: in different banks.
inline int64_t plane_of(int64_t pixels, int64_t planes) {
  return up(pixels, 8) + (planes % 8 == 0 ? 1 : planes % 4 == 0 ? 2 : planes % 2 == 0 ? 4 : 1);
}

// Of pieces to a copy: so that 8 neighbouring pixels meet few banks twice.
inline int64_t copy_of(int64_t pieces, int64_t step, int64_t shift) {
  int64_t best = 0;
  int most = 0;
  for (int64_t copy = pieces; copy < pieces + 8; ++copy) {
    unsigned banks = 0;
    for (int64_t x = 0; x < 8; ++x) banks |= 1u << (x * step / kPiece + x * step % kPiece / shift * copy) % 8;
    if (std::popcount(banks) > most) {
      most = std::popcount(banks);
      best = copy;
    }
  }
  return best;
}

struct WeightPlan {
  WeightTiles tiles{};
  int64_t blocks = 0, bytes = 0;
  double cost = INFINITY;
  bool narrow = false;  // 16 result channels by 18 column blocks a warp, or 32 by 8
};

// The tiles of the fewest cycles, computed from sm_90's instructions; no blocks: none fits.
template <int kUnits, int kBlocks>
WeightPlan search_plan(const Conv2dWeightParams& p) {
  constexpr int kRows = 16 * kUnits;
  constexpr int64_t kSums = int64_t{kRows} * (kBlocks * 8 + 8) * kWarps * 4;
  const DeviceLimits limits = device_limits();
  // Of dynamic memory: the table of distances is beside it.
  const int64_t most_bytes = std::min<int64_t>(limits.shared_bytes - 1024, 110 * 1024);
  const int64_t all_results = int64_t{p.groups} * p.result_channels;
  const int64_t all_sources = int64_t{p.groups} * p.source_channels;
  WeightTiles t{};
  t.by_groups = p.groups > 1 && p.result_channels <= kRows;
  const int32_t groups_of_unit = t.by_groups ? kRows / p.result_channels : 1;
  t.unit_results = t.by_groups ? groups_of_unit * p.result_channels : kRows;
  t.unit_sources = groups_of_unit * p.source_channels;
  const int32_t units_of_group = (p.result_channels + kRows - 1) / kRows;
  const int32_t units_there = t.by_groups ? (p.groups - 1) / groups_of_unit + 1 : units_of_group;
  const bool vector_gradient = p.channels_last && all_results % kPiece == 0 && aligned(p.gradient, 16) &&
                               t.unit_results % kPiece == 0 &&
                               p.result_channels * groups_of_unit % kPiece == 0;
  const bool vector_source =
      p.channels_last && all_sources % kPiece == 0 && aligned(p.source, 16) && t.unit_sources % kPiece == 0;
  const RowUnits in_rows(p, kPiece, 2);
  const int64_t image =
      std::max(all_sources * p.h.source * p.w.source, all_results * p.h.result * p.w.result);
  WeightPlan best;
  const auto consider = [&](Columns of_columns, int64_t columns, int64_t most_rows) {
    const int64_t row_tiles = (p.h.result + most_rows - 1) / most_rows;
    const int64_t rows = (p.h.result + row_tiles - 1) / row_tiles;
    const int64_t column_tiles = (p.w.result + columns - 1) / columns;
    const bool whole = row_tiles * column_tiles == 1;
    const int64_t images =
        whole ? std::clamp<int64_t>(std::min(most_rows * columns / (rows * columns), INT32_MAX / image), 1,
                                    p.batch)
              : 1;
    const bool expand = of_columns == Columns::kTaps, lie = of_columns == Columns::kRows;
    const bool even =
        p.w.result % 2 == 0 ? columns % 2 == 0 : column_tiles == 1 && p.h.result % 2 == 0 && rows % 2 == 0;
    const bool pair_gradient = !p.channels_last && aligned(p.gradient, 4) && even;
    const bool pair_source = !p.channels_last && aligned(p.source, 4) && of_columns == Columns::kChannels &&
                             p.w.source % 2 == 0 && (column_tiles == 1 || columns * p.w.stride % 2 == 0);
    const int64_t lead = pair_source ? p.w.pad % 2 : 0;
    const int64_t source_rows = (rows - 1) * p.h.stride + int64_t{p.h.kernel - 1} * p.h.dilation + 1;
    const int64_t reach = (columns - 1) * p.w.stride + int64_t{p.w.kernel - 1} * p.w.dilation + 1 + lead;
    const int64_t stride = t.taps > 1 ? 1 : p.w.stride;
    const int64_t row_pieces = lie ? up(p.w.kernel * in_rows.beside, kPiece) / kPiece : 1;
    const int64_t source_columns = expand ? columns
                                   : lie  ? (columns - 1) * in_rows.step / kPiece + row_pieces
                                          : up(reach, pair_source ? 2 : 1);
    const int64_t phase = (source_columns + stride - 1) / stride, pitch = phase * stride;
    const int64_t pixels = up(images * rows * columns, kStep), steps = pixels / kStep;
    const int64_t gradient_pieces = int64_t{t.units} * 2 * kUnits;
    const int64_t source_pieces = int64_t{t.by_groups ? t.units : 1} * t.pieces / row_pieces;
    const int64_t gradient_plane = plane_of(pixels, gradient_pieces);
    const int64_t copies = lie ? in_rows.copies : 1, lines = images * source_rows * pitch;
    const int64_t copy = lie ? copy_of(lines, in_rows.step, in_rows.shift) : 0;
    const int64_t source_plane = lie ? copies * copy : plane_of(lines, source_pieces);
    const bool gathered = !lie && (expand || !vector_source);
    const int64_t staged = (1 + source_pieces * source_plane + gradient_pieces * gradient_plane) * 16;
    const int64_t numbers_of_staging = (gathered && !pair_source ? kEntry * kPiece * t.pieces : 0);
    const int64_t tables = (column_tiles == 1 ? 1 : t.buffers) * pixels;
    const int64_t bytes = std::max(t.buffers * staged + 4 * (tables + numbers_of_staging), kSums);
    const int64_t count = (p.batch + images - 1) / images * row_tiles * column_tiles;
    const int64_t sharers_of_unit = t.by_groups ? 1 : (units_of_group + t.units - 1) / t.units;
    const int64_t unit_tiles =
        t.by_groups ? (units_there + t.units - 1) / t.units : p.groups * sharers_of_unit;
    const int64_t all_chunks = (t.blocks + t.chunk_blocks - 1) / t.chunk_blocks;
    const int64_t chunk_tiles = (all_chunks + t.chunks - 1) / t.chunks;
    const int64_t sharers = unit_tiles * chunk_tiles;  // blocks of a slice
    if (bytes > most_bytes || source_pieces > kThreads || count > INT32_MAX / 2 ||
        sharers > INT32_MAX / count)
      return;

    const int64_t most_slices = std::clamp<int64_t>(limits.processors * kResident / sharers, 1, count);
    const int64_t turns = (count + most_slices - 1) / most_slices, slices = (count + turns - 1) / turns;
    // Cycles of a multiprocessor for a tile.
    const double pairs = t.chunk_blocks / 2.0;
    const double step = std::max(
        {4.0 * kUnits * pairs, 4 * (kUnits + pairs), (8 + 2 * kUnits + pairs * (5 + 2 * kUnits)) / 2.8});
    const double main = double(steps) * t.units * t.chunks * step;
    const double gradient_cost = vector_gradient ? 30 : pair_gradient ? 35 : 60;
    const double source_cost = lie ? 70.0 / copies + 6 : !gathered ? 45 : pair_source ? 60 : 100;
    const double staging =
        (double(pixels) * gradient_pieces * gradient_cost +
         double(images * source_rows * source_columns) * copies * source_pieces * source_cost) /
        90;
    // Runs in memory begin and end in sectors of 32 bytes.
    const int64_t width = t.units * std::min(t.unit_results, t.unit_sources);
    const int64_t run = p.channels_last    ? (p.groups == 1 ? 1024 : width)
                        : column_tiles > 1 ? columns
                                           : rows * columns;
    const double memory =
        (double(images * rows * columns) * t.units * t.unit_results * 2 +
         double(images * source_rows) * reach * (t.by_groups ? t.units : 1) * t.unit_sources * 2) *
        (p.channels_last && run % 16 == 0 ? 1 + 10.0 / run : 1 + 14.0 / run) / 18.6;
    const double computed = main + staging;
    // One of two blocks computes while the other waits, or each does both.
    const double of_tile = std::max(memory, computed) +
                           (t.buffers == 2 ? 0.1
                            : turns > 2    ? 0.4
                                           : 0.7) *
                               std::min(memory, computed) +
                           200;
    const double first = t.buffers == 2 ? 0.7 * memory : 0;
    const double numbers = double(all_results) * p.source_channels * p.h.kernel * p.w.kernel;
    const double blocks = double(sharers) * slices;
    const double cost = std::ceil(blocks / limits.processors) * (turns * of_tile + first + 1500) +
                        slices * numbers * 8 / (18.6 * limits.processors);
    if (cost >= best.cost) return;
    best.cost = cost;
    best.tiles = t;
    WeightTiles& b = best.tiles;
    b.images = static_cast<int32_t>(images);
    b.rows = static_cast<int32_t>(rows);
    b.columns = static_cast<int32_t>(columns);
    b.count = static_cast<int32_t>(count);
    b.slices = static_cast<int32_t>(slices);
    b.steps = static_cast<int32_t>(steps);
    b.pitch = static_cast<int32_t>(pitch);
    b.phase = static_cast<int32_t>(phase);
    b.lead = static_cast<int32_t>(lead);
    if (lie) b.row_copies = in_rows.staged(copy, pitch, images, source_rows);
    b.gradient_plane = static_cast<int32_t>(gradient_plane);
    b.source_plane = static_cast<int32_t>(source_plane);
    b.gradient = static_cast<int32_t>((1 + source_pieces * source_plane) * kPiece);
    b.buffer = static_cast<int32_t>(staged / 2);
    b.entries = static_cast<int32_t>(t.buffers * staged / 4);
    b.pixels = static_cast<int32_t>(b.entries + numbers_of_staging);
    b.whole_rows = column_tiles == 1;
    b.gradient_staging = vector_gradient ? Staging::kVectors
                         : pair_gradient ? Staging::kPairs
                                         : Staging::kSingle;
    b.source_staging = lie           ? Staging::kRows
                       : !gathered   ? Staging::kVectors
                       : pair_source ? Staging::kPairs
                                     : Staging::kSingle;
    b.chunk_tiles = Divider<int32_t>(chunk_tiles);
    b.unit_tiles = Divider<int32_t>(unit_tiles);
    b.tiles_of_group = Divider<int32_t>(sharers_of_unit);
    b.row_tiles = Divider<int32_t>(row_tiles);
    b.column_tiles = Divider<int32_t>(column_tiles);
    b.result_rows = Divider<int32_t>(rows);
    b.result_columns = Divider<int32_t>(columns);
    b.source_rows = Divider<int32_t>(source_rows);
    b.source_columns = Divider<int32_t>(pair_source ? source_columns / 2 : source_columns);
    b.gradient_items = Divider<int32_t>(pair_gradient ? pixels / 2 : pixels);
    b.plane = Divider<int32_t>(int64_t{p.h.result} * p.w.result);
    b.gradient_threads = Divider<int32_t>(kThreads / gradient_pieces);
    b.source_threads = Divider<int32_t>(kThreads / source_pieces);
    b.gradient_pieces = Divider<int32_t>(gradient_pieces);
    b.source_pieces = Divider<int32_t>(source_pieces);
    b.pieces_of_unit = Divider<int32_t>(t.pieces);
    b.blocks_of_chunk = Divider<int32_t>(t.chunk_blocks);
    b.row_pieces = Divider<int32_t>(row_pieces);
    b.stride = Divider<int32_t>(stride);
    b.kernel_h = Divider<int32_t>(p.h.kernel);
    b.kernel_w = Divider<int32_t>(p.w.kernel);
    b.source_channels = Divider<int32_t>(p.source_channels);
    b.result_channels = Divider<int32_t>(p.result_channels);
    b.results_of_unit = Divider<int32_t>(t.unit_results);
    b.sources_of_unit = Divider<int32_t>(t.unit_sources);
    best.blocks = sharers * slices;
    best.bytes = bytes;
  };
  for (const Columns of_columns : {Columns::kChannels, Columns::kTaps, Columns::kRows}) {
    if ((of_columns != Columns::kChannels && p.w.kernel == 1) ||
        (of_columns == Columns::kRows && (t.by_groups || in_rows.shift == kPiece || !in_rows.lie))) {
      continue;
    }
    t.taps = of_columns == Columns::kChannels ? 1 : p.w.kernel;
    const bool lie = of_columns == Columns::kRows;
    t.next_tap = lie ? in_rows.beside : of_columns == Columns::kTaps ? t.unit_sources : 0;
    t.next_channel = lie && in_rows.beside == 1 ? static_cast<int32_t>(up(p.w.kernel, kPiece)) : 1;
    const int64_t row = int64_t{t.taps} * (lie ? in_rows.beside : t.unit_sources);
    t.pieces = static_cast<int32_t>(up(row, kPiece) / kPiece * (lie ? in_rows.planes : 1));
    t.blocks = t.pieces * p.h.kernel * (p.w.kernel / t.taps);
    const int32_t chunks = (t.blocks + kBlocks - 1) / kBlocks;
    t.chunk_blocks = static_cast<int32_t>(up((t.blocks + chunks - 1) / chunks, 2));
    for (t.units = 1; t.units <= kWarps && (t.units == 1 || t.units / 2 < units_there); t.units *= 2) {
      const int32_t sharers = (chunks - 1) / (kWarps / t.units) + 1;
      t.chunks = (chunks - 1) / sharers + 1;
      t.parts = kWarps / (t.units * t.chunks);
      for (t.buffers = 1; t.buffers <= 2; ++t.buffers) {
        for (int64_t across = 1; across == 1 || p.w.result / across >= 8; across *= 2) {
          const int64_t columns = up((p.w.result + across - 1) / across, across > 1 ? 2 : 1);
          for (int64_t pixels = 64; pixels <= 1024; pixels += pixels / 2) {
            if (columns <= pixels) consider(of_columns, columns, pixels / columns);
          }
        }
      }
    }
  }
  return best;
}

inline WeightPlan plan_of(const Conv2dWeightParams& p, DType dtype) {
  if ((dtype != DType::kFloat16 && dtype != DType::kBFloat16) ||
      (p.source_channels == 1 && p.result_channels == 1) ||
      int64_t{p.groups} * p.result_channels * p.source_channels * p.h.kernel * p.w.kernel > INT32_MAX) {
    return {};
  }
  return kept_plan(conv2d_plan_key(p, false, p.gradient, p.source), [&] {
    WeightPlan narrow = search_plan<1, 18>(p);
    narrow.narrow = true;
    const WeightPlan wide = search_plan<2, 8>(p);
    return wide.cost < narrow.cost ? wide : narrow;
  });
}

}  // namespace d2lfast::cuda
