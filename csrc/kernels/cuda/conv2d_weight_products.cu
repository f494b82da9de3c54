#include "conv2d_weight_products.h"

#include <algorithm>
#include <cmath>

#include "conv2d_element.cuh"
#include "conv2d_plan.h"
#include "device.cuh"
#include "device_limits.h"
#include "tensor_core.cuh"

// The weight gradient of few channels per group in 16 bits: products of result channels by (tap, source
// channel), summed over the pixels, on tensor cores. A block goes through tiles of result pixels; of each it
// keeps the gradient and the source in shared memory, in pieces of 8 channels of a pixel, so that a
// fragment's pixels are rows of transposed matrices wherever they lie, and a tap is a distance. Of few source
// channels the taps of a row are channels too. Groups of few channels share a fragment, of which their own
// products are kept. A block adds its tiles up; its parts are added in their order.
namespace d2lfast::cuda {
namespace {

constexpr int kPiece = 8, kStep = 16;  // channels of 16 bytes; pixels of a product
constexpr int kWarps = kThreads / 32;
constexpr int kResident = 2;  // blocks that registers and shared memory allow
constexpr int kEntry = 4;     // words for a channel of a unit: distance, columns of its tap, source channel

// What is staged at once: of 8 channels one pixel that lies so in memory, one or two that are gathered.
enum class Staging : int32_t { kVectors, kPairs, kSingle };

struct WeightTiles {
  int32_t images, rows, columns;         // results of a tile
  int32_t count, slices;                 // tiles, and blocks that share them
  int32_t steps;                         // of a tile
  int32_t units, chunks, parts;          // of a block: units, chunks of a unit's blocks, warps of a chunk
  int32_t unit_results, unit_sources;    // channels of a unit
  int32_t taps;                          // of a row, that are channels: all or 1
  int32_t pieces, blocks, chunk_blocks;  // of a unit: pieces of source, 8 columns each; of a chunk
  int32_t pitch, phase, lead;            // pixels: of a source row, of a remainder by stride, before it
  int32_t gradient_plane, source_plane;  // pixels of a piece
  int32_t buffers, buffer;               // of tiles: two, of which one is filled meanwhile, or one; elements
  int32_t gradient, pixels, entries;     // where they begin, in elements, and words
  Divider<int32_t> chunk_tiles, unit_tiles, tiles_of_group, row_tiles, column_tiles;
  Divider<int32_t> result_rows, result_columns, source_rows, source_columns;
  Divider<int32_t> plane, gradient_threads, source_threads;  // threads of a piece
  Divider<int32_t> gradient_items, gradient_pieces, source_pieces, pieces_of_unit, blocks_of_chunk;
  Divider<int32_t> stride, kernel_h, kernel_w, source_channels, result_channels, results_of_unit;
  Divider<int32_t> sources_of_unit;
  Staging gradient_staging, source_staging;
  bool by_groups;   // units are of groups of their own
  bool whole_rows;  // of results: the pixels that are there are the first
};

// Two neighbouring pixels of 8 channels become two pieces, or one does, in the low halves.
template <typename T>
__device__ __forceinline__ void store_piece(SharedPointer<T> to, const uint32_t (&pair)[kPiece]) {
  Vector<uint32_t, 4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) words.lane[i] = (pair[2 * i] & 0xffffu) | pair[2 * i + 1] << 16;
  store_shared_words(to, words);
}

template <typename T>
__device__ __forceinline__ void store_second_piece(SharedPointer<T> to, const uint32_t (&pair)[kPiece]) {
  Vector<uint32_t, 4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) words.lane[i] = pair[2 * i] >> 16 | (pair[2 * i + 1] & 0xffff0000u);
  store_shared_words(to, words);
}

// The channels and the part of the work that a block has.
struct WeightPlace {
  int32_t slice, first_block, first, last, source;  // of column blocks, result channels, source channels

  __device__ WeightPlace(const Conv2dWeightParams& p, const WeightTiles& tiles) {
    slice = static_cast<int32_t>(blockIdx.x);
    first_block = take_remainder(slice, tiles.chunk_tiles) * tiles.chunks * tiles.chunk_blocks;
    int32_t group = take_remainder(slice, tiles.unit_tiles);
    const int32_t width = tiles.units * tiles.unit_results;
    if (tiles.by_groups) {
      first = group * width;
      last = least(first + width, p.groups * p.result_channels);
      source = group * tiles.units * tiles.unit_sources;
    } else {
      const int32_t within = take_remainder(group, tiles.tiles_of_group) * width;
      first = group * p.result_channels + within;
      last = group * p.result_channels + least(within + width, p.result_channels);
      source = group * p.source_channels;
    }
  }
};

// A tile of results: its first, and the images there are.
struct WeightTile {
  int32_t row, column, images;
  int64_t image;

  __device__ WeightTile(const Conv2dWeightParams& p, const WeightTiles& tiles, int32_t tile) {
    column = take_remainder(tile, tiles.column_tiles) * tiles.columns;
    row = take_remainder(tile, tiles.row_tiles) * tiles.rows;
    image = static_cast<int64_t>(tile) * tiles.images;
    images = static_cast<int32_t>(p.batch - image < tiles.images ? p.batch - image : tiles.images);
  }
};

// A thread's own piece, and which pixels it takes of it: neighbouring threads have neighbouring pieces where
// channels are last, neighbouring pixels elsewhere. Threads beyond the last piece rest.
struct OwnPieces {
  int32_t piece, first, step;

  __device__ OwnPieces(const Divider<int32_t>& pieces, const Divider<int32_t>& threads, bool channels_last)
      : piece(threadIdx.x), first(threadIdx.x), step(threads.divisor) {
    if (channels_last) {
      piece = take_remainder(first, pieces);
    } else {
      first = take_remainder(piece, threads);
    }
    if (first >= step || piece >= pieces.divisor) first = 1 << 29;
  }
};

// From 8 channels, of which `count` are there, one pixel or a pair.
template <bool kPair, typename T>
__device__ __forceinline__ void gather(uint32_t (&values)[kPiece], const T* from, int32_t next,
                                       int32_t count) {
#pragma unroll
  for (int e = 0; e < kPiece; ++e) {
    values[e] = 0;
    if (e < count) values[e] = kPair ? *reinterpret_cast<const uint32_t*>(from) : from->bits;
    from += next;
  }
}

// How many pixels of a tile of whole rows there are; the others are in a table.
__device__ inline int32_t pixels_of(const Conv2dWeightParams& p, const WeightTiles& tiles,
                                    const WeightTile& tile) {
  return (tiles.images > 1 ? tile.images * p.h.result : least(tiles.rows, p.h.result - tile.row)) *
         p.w.result;
}

// Where the pixels of a tile are in the staged source, in elements; -1 outside.
__device__ inline void find_pixels(const Conv2dWeightParams& p, const WeightTiles& tiles,
                                   const WeightTile& tile, SharedPointer<int32_t> pixels) {
  for (int32_t i = threadIdx.x; i < tiles.steps * kStep; i += kThreads) {
    int32_t image = i;
    const int32_t column = take_remainder(image, tiles.result_columns);
    const int32_t row = take_remainder(image, tiles.result_rows);
    const bool inside =
        image < tiles.images &&
        (tiles.whole_rows || (tile.row + row < p.h.result && tile.column + column < p.w.result));
    const int32_t line = image * tiles.source_rows.divisor + row * p.h.stride;
    pixels[i] = inside ? (line * tiles.pitch + column) * kPiece : -1;
  }
}

template <Staging kHow, typename T, int kUnits>
__device__ __forceinline__ void stage_gradient(const Conv2dWeightParams& p, const WeightTiles& tiles,
                                               const WeightPlace& place, const WeightTile& tile,
                                               SharedPointer<T> to) {
  constexpr bool kPair = kHow == Staging::kPairs;
  const OwnPieces own(tiles.gradient_pieces, tiles.gradient_threads, p.channels_last);
  const int32_t width = p.groups * p.result_channels, plane = p.h.result * p.w.result;
  const int32_t unit = own.piece / (2 * kUnits), within = own.piece % (2 * kUnits) * kPiece;
  const int32_t channel = place.first + unit * tiles.unit_results + within;
  const int32_t there = least(tiles.unit_results - within, place.last - channel);
  const int32_t next_pixel = p.channels_last ? width : 1, next_channel = p.channels_last ? 1 : plane;
  const T* base = static_cast<const T*>(p.gradient) + tile.image * width * plane +
                  static_cast<int64_t>(tile.row * p.w.result + tile.column) * next_pixel +
                  static_cast<int64_t>(channel) * next_channel;
  const int32_t rows = least(tiles.rows, p.h.result - tile.row), columns = p.w.result - tile.column;
  const int32_t count = pixels_of(p, tiles, tile);
  const auto own_to = to + own.piece * tiles.gradient_plane * kPiece;
  for (int32_t i = own.first; i < tiles.gradient_items.divisor; i += own.step) {
    const int32_t pixel = kPair ? 2 * i : i;
    int32_t image = 0, at = pixel;
    bool inside = pixel < count;
    if (!tiles.whole_rows) {
      const int32_t column = take_remainder(at, tiles.result_columns);
      inside = at < rows && column < columns;
      at = at * p.w.result + column;
    } else if (tiles.images > 1 && !p.channels_last) {
      image = at;
      at = take_remainder(image, tiles.plane);
    }
    const T* from = base + (image * width * plane + at * next_pixel);
    const auto target = own_to + pixel * kPiece;
    if constexpr (kHow == Staging::kVectors) {
      inside = inside && there > 0;
      copy_async_16(target, inside ? from : static_cast<const T*>(p.gradient), inside);
    } else {
      uint32_t values[kPiece];
      gather<kPair>(values, from, next_channel, inside ? there : 0);
      store_piece(target, values);
      if (kPair) store_second_piece(target + kPiece, values);
    }
  }
}

// Where a column of the staged source lies in its row: columns apart by the stride lie side by side.
__device__ inline int32_t place_of_column(const WeightTiles& tiles, int32_t x) {
  if (tiles.stride.divisor == 1) return x;
  const int32_t remainder = take_remainder(x, tiles.stride);
  return remainder * tiles.phase + x;
}

template <Staging kHow, typename T>
__device__ __forceinline__ void stage_source(const Conv2dWeightParams& p, const WeightTiles& tiles,
                                             const WeightPlace& place, const WeightTile& tile,
                                             SharedPointer<T> to, SharedPointer<int32_t> entries) {
  constexpr bool kPair = kHow == Staging::kPairs;
  const OwnPieces own(tiles.source_pieces, tiles.source_threads, p.channels_last);
  const int32_t width = p.groups * p.source_channels, plane = p.h.source * p.w.source;
  int32_t unit = own.piece;
  const int32_t first = take_remainder(unit, tiles.pieces_of_unit) * kPiece;
  const int32_t channel = place.source + unit * tiles.unit_sources;
  const int32_t there = least(tiles.unit_sources, width - channel);
  const int32_t next_pixel = p.channels_last ? width : 1, next_channel = p.channels_last ? 1 : plane;
  const T* images = static_cast<const T*>(p.source) + tile.image * width * plane +
                    static_cast<int64_t>(channel + (kHow == Staging::kSingle ? 0 : first)) * next_channel;
  const int32_t top = tile.row * p.h.stride - p.h.pad;
  const int32_t left = tile.column * p.w.stride - p.w.pad - tiles.lead;
  const int32_t step = tiles.taps > 1 ? p.w.stride : kPair ? 2 : 1;
  const int32_t positions = tiles.images * tiles.source_rows.divisor * tiles.source_columns.divisor;
  const auto own_to = to + own.piece * tiles.source_plane * kPiece;
  for (int32_t i = own.first; i < positions; i += own.step) {
    int32_t line = i;
    const int32_t x = take_remainder(line, tiles.source_columns);
    int32_t image = 0, y = line;
    if (tiles.images > 1) {
      image = line;
      y = take_remainder(image, tiles.source_rows);
    }
    const int32_t h = top + y, w = left + x * step;
    const bool row_inside = is_below(h, p.h.source) && image < tile.images;
    const bool inside = row_inside && is_below(w, p.w.source);
    const T* from = images + (image * width * plane + (h * p.w.source + w) * next_pixel);
    const auto target = own_to + line * tiles.pitch * kPiece;
    if constexpr (kHow == Staging::kVectors) {
      const bool valid = inside && first < there;
      copy_async_16(target + place_of_column(tiles, x) * kPiece,
                    valid ? from : static_cast<const T*>(p.source), valid);
    } else if constexpr (kPair) {
      uint32_t values[kPiece];
      gather<true>(values, from, next_channel, inside ? there - first : 0);
      store_piece(target + place_of_column(tiles, 2 * x) * kPiece, values);
      store_second_piece(target + place_of_column(tiles, 2 * x + 1) * kPiece, values);
    } else {
      const int32_t channels = row_inside ? there : 0;
      uint32_t values[kPiece];
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        const auto entry = load_shared<kEntry>(entries + (first + e) * kEntry);
        values[e] = 0;
        if (is_below(w + entry.lane[1], p.w.source) && entry.lane[2] < channels) {
          values[e] = from[entry.lane[0]].bits;
        }
      }
      store_piece(target + place_of_column(tiles, x) * kPiece, values);
    }
  }
}

// A warp has 16 kUnits result channels by 8 kBlocks columns: taps and source channels.
template <typename T, int kUnits, int kBlocks>
__global__ void __launch_bounds__(kThreads, kResident)
    weight_products(const Conv2dWeightParams p, const WeightTiles tiles) {
  constexpr int kPairs = kBlocks / 2, kPitch = kBlocks * 8 + 8, kSums = 16 * kUnits * kPitch;
  const auto staged = dynamic_shared<T>();  // of each buffer zeros, the source, the gradient
  const auto source = staged + kPiece;
  const auto gradient = staged + tiles.gradient;
  const auto pixels = dynamic_shared<int32_t>() + tiles.pixels;
  const auto entries = dynamic_shared<int32_t>() + tiles.entries;
  D2LFAST_SHARED(int32_t, distances, kWarps* kBlocks);
  const int32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const WeightPlace place(p, tiles);

  if (thread < tiles.buffers) store_shared_words(staged + thread * tiles.buffer, Vector<uint32_t, 4>{});
  if (tiles.source_staging != Staging::kVectors) {
    for (int32_t v = thread; v < tiles.pieces * kPiece; v += kThreads) {
      int32_t tap = v;
      const int32_t c = take_remainder(tap, tiles.sources_of_unit);
      const bool there = tap < tiles.taps;
      const int32_t columns = tap * p.w.dilation;
      entries[v * kEntry] = p.channels_last ? columns * p.groups * p.source_channels + c
                                            : c * p.h.source * p.w.source + columns;
      entries[v * kEntry + 1] = columns;
      entries[v * kEntry + 2] = there ? c : INT32_MAX;
      entries[v * kEntry + 3] = 0;
    }
  }

  const int32_t jobs = tiles.units * tiles.chunks, part = warp / jobs, job = warp - part * jobs;
  const int32_t chunk = job / tiles.units, unit = job - chunk * tiles.units;
  const int32_t block0 = place.first_block + chunk * tiles.chunk_blocks;
  const int32_t blocks = least(tiles.chunk_blocks, tiles.blocks - block0);
  // From a pixel to a column block's piece of the first unit, in elements.
  for (int32_t i = thread; i < tiles.chunks * tiles.chunk_blocks; i += kThreads) {
    int32_t tap = least(place.first_block + i, tiles.blocks - 1);
    const int32_t piece = take_remainder(tap, tiles.pieces_of_unit);
    int32_t kh = tap, column = 0;
    if (tiles.taps == 1) {
      const int32_t kw = take_remainder(kh, tiles.kernel_w);
      column = place_of_column(tiles, kw * p.w.dilation + tiles.lead);
    }
    distances[i] = (piece * tiles.source_plane + kh * p.h.dilation * tiles.pitch + column + 1) * kPiece;
  }
  __syncthreads();
  int32_t distance[kPairs];  // of the lane's blocks
#pragma unroll
  for (int q = 0; q < kPairs; ++q) {
    const int32_t block =
        least(chunk * tiles.chunk_blocks + 2 * q + lane / 16, tiles.chunks * tiles.chunk_blocks - 1);
    distance[q] =
        distances[block] + (tiles.by_groups ? unit : 0) * tiles.pieces * tiles.source_plane * kPiece;
  }
  const auto own_gradient =
      gradient +
      ((unit * 2 * kUnits + lane / 8 % 2) * tiles.gradient_plane + lane / 16 * 8 + lane % 8) * kPiece;
  const auto own_pixels = pixels + lane % 16;

  float sum[kUnits][kBlocks][4] = {};
  const int32_t ahead = tiles.buffers - 1;
  for (int32_t n = -ahead;; ++n) {
    const int32_t next = place.slice + (n + ahead) * tiles.slices;
    if (next < tiles.count) {
      const WeightTile tile(p, tiles, next);
      const int32_t buffer = (n + ahead) & ahead;
      if (n + ahead == 0 || !tiles.whole_rows) {
        find_pixels(p, tiles, tile, pixels + (tiles.whole_rows ? 0 : buffer * tiles.steps * kStep));
      }
      const auto to = gradient + buffer * tiles.buffer, to_source = source + buffer * tiles.buffer;
      if (tiles.gradient_staging == Staging::kVectors) {
        stage_gradient<Staging::kVectors, T, kUnits>(p, tiles, place, tile, to);
      } else if (tiles.gradient_staging == Staging::kPairs) {
        stage_gradient<Staging::kPairs, T, kUnits>(p, tiles, place, tile, to);
      } else {
        stage_gradient<Staging::kSingle, T, kUnits>(p, tiles, place, tile, to);
      }
      if (tiles.source_staging == Staging::kVectors) {
        stage_source<Staging::kVectors, T>(p, tiles, place, tile, to_source, entries);
      } else if (tiles.source_staging == Staging::kPairs) {
        stage_source<Staging::kPairs, T>(p, tiles, place, tile, to_source, entries);
      } else {
        stage_source<Staging::kSingle, T>(p, tiles, place, tile, to_source, entries);
      }
    }
    commit_async();
    if (n < 0) continue;
    const int32_t i = place.slice + n * tiles.slices;
    if (i >= tiles.count) break;
    if (ahead > 0) {
      wait_async<1>();
    } else {
      wait_async<0>();
    }
    __syncthreads();
    const int32_t buffer = n & ahead;
    const int32_t last = tiles.whole_rows ? pixels_of(p, tiles, WeightTile(p, tiles, i)) - 1 : INT32_MAX;
    const auto its_source = staged + buffer * tiles.buffer;
    const auto its_gradient = own_gradient + buffer * tiles.buffer;
    const auto its_pixels = own_pixels + (tiles.whole_rows ? 0 : buffer * tiles.steps * kStep);
    const auto multiply = [&](int32_t step, int32_t count) {
      const int32_t base = its_pixels[step * kStep];
      // A pixel that is not there meets zeros: what is beside it may be infinite.
      const int32_t keep = ~((base | (last - step * kStep - lane % 16)) >> 31);
      uint32_t rows[kUnits][4], columns[2][4];
      load_matrices_transposed(columns[0], its_source + ((base + distance[0]) & keep));
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        load_matrices_transposed(rows[u],
                                 its_gradient + (u * 2 * tiles.gradient_plane + step * kStep) * kPiece);
      }
#pragma unroll
      for (int q = 0; q < kPairs; ++q) {
        if (2 * q >= count) break;
        if (q + 1 < kPairs) {
          load_matrices_transposed(columns[(q + 1) % 2], its_source + ((base + distance[q + 1]) & keep));
        }
        const uint32_t (&pair)[4] = columns[q % 2];
        const uint32_t first[2] = {pair[0], pair[1]}, second[2] = {pair[2], pair[3]};
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          multiply_fragments<T>(sum[u][2 * q], rows[u], first);
          multiply_fragments<T>(sum[u][2 * q + 1], rows[u], second);
        }
      }
    };
    const int32_t from = part < tiles.parts ? part : tiles.steps;
    if (blocks > kBlocks - 2) {
#pragma unroll 1
      for (int32_t step = from; step < tiles.steps; step += tiles.parts) multiply(step, kBlocks);
    } else {
#pragma unroll 1
      for (int32_t step = from; step < tiles.steps; step += tiles.parts) multiply(step, blocks);
    }
    __syncthreads();
  }

  wait_async<0>();
  const auto sums = dynamic_shared<float>();
  if (part < tiles.parts) {
    const int32_t g = lane / 4, t = lane % 4;
    const auto own = sums + (warp * kSums + g * kPitch + 2 * t);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        if (j >= blocks) break;
        store_shared(own + (16 * u * kPitch + 8 * j), Vector<float, 2>{sum[u][j][0], sum[u][j][1]});
        store_shared(own + ((16 * u + 8) * kPitch + 8 * j), Vector<float, 2>{sum[u][j][2], sum[u][j][3]});
      }
    }
  }
  __syncthreads();
  const int32_t of_row = p.source_channels * p.h.kernel * p.w.kernel,
                count = (place.last - place.first) * of_row;
  float* partial = static_cast<float*>(p.partial) +
                   (static_cast<int64_t>(place.slice) * p.groups * p.result_channels + place.first) * of_row;
  for (int32_t i = thread; i < count; i += kThreads) {
    int32_t which = i;
    const int32_t kw = take_remainder(which, tiles.kernel_w);
    const int32_t kh = take_remainder(which, tiles.kernel_h);
    int32_t c = take_remainder(which, tiles.source_channels);
    const int32_t row = take_remainder(which, tiles.results_of_unit);
    if (tiles.by_groups) c += tiles.result_channels.divide(row) * p.source_channels;
    const int32_t column = tiles.taps == 1 ? c : kw * tiles.unit_sources + c;
    const int32_t tap = tiles.taps == 1 ? kh * p.w.kernel + kw : kh;
    int32_t block = tap * tiles.pieces + column / kPiece - place.first_block;
    if (block < 0 || block >= tiles.chunks * tiles.chunk_blocks) continue;
    int32_t own = block;
    block = take_remainder(own, tiles.blocks_of_chunk);
    own = own * tiles.units + which;
    const auto from = sums + (own * kSums + row * kPitch + block * 8 + column % kPiece);
    float all = from[0];
    for (int32_t n = 1; n < tiles.parts; ++n) all += from[n * jobs * kSums];
    partial[i] = all;
  }
}

// Of planes of 16-byte pieces that threads store side by side: in different banks.
int64_t plane_of(int64_t pixels, int64_t planes) {
  return up(pixels, 8) + (planes % 8 == 0 ? 1 : planes % 4 == 0 ? 2 : planes % 2 == 0 ? 4 : 1);
}

struct WeightPlan {
  WeightTiles tiles{};
  int64_t blocks = 0, bytes = 0;
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
  const int64_t image =
      std::max(all_sources * p.h.source * p.w.source, all_results * p.h.result * p.w.result);
  WeightPlan best;
  double least_cost = INFINITY;
  const auto consider = [&](int64_t columns, int64_t most_rows) {
    const int64_t row_tiles = (p.h.result + most_rows - 1) / most_rows;
    const int64_t rows = (p.h.result + row_tiles - 1) / row_tiles;
    const int64_t column_tiles = (p.w.result + columns - 1) / columns;
    const bool whole = row_tiles * column_tiles == 1;
    const int64_t images =
        whole ? std::clamp<int64_t>(std::min(most_rows * columns / (rows * columns), INT32_MAX / image), 1,
                                    p.batch)
              : 1;
    const bool expand = t.taps > 1;
    const bool even =
        p.w.result % 2 == 0 ? columns % 2 == 0 : column_tiles == 1 && p.h.result % 2 == 0 && rows % 2 == 0;
    const bool pair_gradient = !p.channels_last && aligned(p.gradient, 4) && even;
    const bool pair_source = !p.channels_last && aligned(p.source, 4) && !expand && p.w.source % 2 == 0 &&
                             (column_tiles == 1 || columns * p.w.stride % 2 == 0);
    const int64_t lead = pair_source ? p.w.pad % 2 : 0;
    const int64_t source_rows = (rows - 1) * p.h.stride + int64_t{p.h.kernel - 1} * p.h.dilation + 1;
    const int64_t reach = (columns - 1) * p.w.stride + int64_t{p.w.kernel - 1} * p.w.dilation + 1 + lead;
    const int64_t stride = expand ? 1 : p.w.stride;
    const int64_t source_columns = expand ? columns : up(reach, pair_source ? 2 : 1);
    const int64_t phase = (source_columns + stride - 1) / stride, pitch = phase * stride;
    const int64_t pixels = up(images * rows * columns, kStep), steps = pixels / kStep;
    const int64_t gradient_pieces = int64_t{t.units} * 2 * kUnits;
    const int64_t source_pieces = int64_t{t.by_groups ? t.units : 1} * t.pieces;
    const int64_t gradient_plane = plane_of(pixels, gradient_pieces);
    const int64_t source_plane = plane_of(images * source_rows * pitch, source_pieces);
    const bool gathered = expand || !vector_source;
    const int64_t staged = (1 + source_pieces * source_plane + gradient_pieces * gradient_plane) * 16;
    const int64_t numbers_of_staging = (gathered ? kEntry * kPiece * t.pieces : 0);
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
    const double source_cost = !gathered ? 45 : pair_source ? 60 : 100;
    const double staging = (double(pixels) * gradient_pieces * gradient_cost +
                            double(images * source_rows * source_columns) * source_pieces * source_cost) /
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
    if (cost >= least_cost) return;
    least_cost = cost;
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
    b.source_staging = !gathered ? Staging::kVectors : pair_source ? Staging::kPairs : Staging::kSingle;
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
  for (const int32_t taps : {1, p.w.kernel}) {
    t.taps = taps;
    t.pieces = (t.unit_sources * taps + kPiece - 1) / kPiece;
    t.blocks = t.pieces * p.h.kernel * (p.w.kernel / taps);
    const int32_t chunks = (t.blocks + kBlocks - 1) / kBlocks;
    t.chunk_blocks = static_cast<int32_t>(up((t.blocks + chunks - 1) / chunks, 2));
    for (t.units = 1; t.units <= kWarps && (t.units == 1 || t.units / 2 < units_there); t.units *= 2) {
      t.chunks = std::min(chunks, kWarps / t.units);
      t.parts = kWarps / (t.units * t.chunks);
      for (t.buffers = 1; t.buffers <= 2; ++t.buffers) {
        for (int64_t across = 1; across == 1 || p.w.result / across >= 8; across *= 2) {
          const int64_t columns = up((p.w.result + across - 1) / across, across > 1 ? 2 : 1);
          for (int64_t pixels = 64; pixels <= 1024; pixels += pixels / 2) {
            if (columns <= pixels) consider(columns, pixels / columns);
          }
        }
      }
    }
    if (p.w.kernel == 1) break;
  }
  return best;
}

// Of the result channels of a unit 16 or 32, by the tiles that registers allow.
bool is_narrow(const Conv2dWeightParams& p) { return p.result_channels <= 16; }

WeightPlan plan_of(const Conv2dWeightParams& p, DType dtype) {
  if ((dtype != DType::kFloat16 && dtype != DType::kBFloat16) ||
      (p.source_channels == 1 && p.result_channels == 1) ||
      int64_t{p.groups} * p.result_channels * p.source_channels * p.h.kernel * p.w.kernel > INT32_MAX) {
    return {};
  }
  return kept_plan(conv2d_plan_key(p, false, p.gradient, p.source),
                   [&] { return is_narrow(p) ? search_plan<1, 18>(p) : search_plan<2, 8>(p); });
}

template <typename T>
cudaError_t launch_plan(const Conv2dWeightParams& p, const WeightPlan& plan, cudaStream_t stream) {
  const LaunchShape shape{{static_cast<unsigned>(plan.blocks)}, kThreads, static_cast<size_t>(plan.bytes)};
  return launch(is_narrow(p) ? weight_products<T, 1, 18> : weight_products<T, 2, 8>, shape, stream, p,
                plan.tiles);
}

}  // namespace

int32_t conv2d_weight_products_splits(const Conv2dWeightParams& p, DType dtype) {
  return plan_of(p, dtype).tiles.slices;
}

bool launch_conv2d_weight_products(const Conv2dWeightParams& p, DType dtype, cudaStream_t stream,
                                   cudaError_t& error) {
  const WeightPlan plan = plan_of(p, dtype);
  if (plan.blocks == 0) return false;
  error = p.splits != plan.tiles.slices ? cudaErrorInvalidValue
          : dtype == DType::kBFloat16   ? launch_plan<BFloat16>(p, plan, stream)
                                        : launch_plan<Float16>(p, plan, stream);
  return true;
}

}  // namespace d2lfast::cuda
