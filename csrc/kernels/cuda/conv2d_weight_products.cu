#include "conv2d_weight_products.h"

#include "conv2d_element.cuh"
#include "conv2d_weight_plan.cuh"
#include "device.cuh"
#include "tensor_core.cuh"

// The weight gradient of few channels per group in 16 bits: products of result channels by (tap, source
// channel), summed over the pixels, on tensor cores. A block goes through tiles of result pixels; of each it
// keeps the gradient and the source in shared memory, in pieces of 8 channels of a pixel, so that a
// fragment's pixels are rows of transposed matrices wherever they lie, and a tap is a distance. Of few source
// channels the taps of a row are channels too. Groups of few channels share a fragment, of which their own
// products are kept. A block adds its tiles up; its parts are added in their order.
namespace d2lfast::cuda {
namespace {

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

  static __device__ WeightPlace of_block(const Conv2dWeightParams& p, const WeightTiles& tiles) {
    WeightPlace place;
    place.slice = static_cast<int32_t>(blockIdx.x);
    place.first_block = take_remainder(place.slice, tiles.chunk_tiles) * tiles.chunks * tiles.chunk_blocks;
    int32_t group = take_remainder(place.slice, tiles.unit_tiles);
    const int32_t width = tiles.units * tiles.unit_results;
    if (tiles.by_groups) {
      place.first = group * width;
      place.last = least(place.first + width, p.groups * p.result_channels);
      place.source = group * tiles.units * tiles.unit_sources;
    } else {
      const int32_t within = take_remainder(group, tiles.tiles_of_group) * width;
      place.first = group * p.result_channels + within;
      place.last = group * p.result_channels + least(within + width, p.result_channels);
      place.source = group * p.source_channels;
    }
    return place;
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
    const int32_t place = tiles.source_staging == Staging::kRows
                              ? tiles.row_copies.place<kPiece, 1>(column, p.w.stride)
                              : column;
    pixels[i] = inside ? (line * tiles.pitch + place) * kPiece : -1;
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
  // In shared memory, which spares registers of the loop over tiles.
  D2LFAST_SHARED(WeightPlace, places, 1);
  if (thread == 0) places[0] = WeightPlace::of_block(p, tiles);
  __syncthreads();

  if (thread < tiles.buffers) store_shared_words(staged + thread * tiles.buffer, Vector<uint32_t, 4>{});
  if (tiles.source_staging == Staging::kSingle) {
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
  const WeightPlace own_place = places[0];
  const int32_t slice = own_place.slice, block0 = own_place.first_block + chunk * tiles.chunk_blocks;
  const int32_t blocks = least(tiles.chunk_blocks, tiles.blocks - block0);
  // From a pixel to a column block's piece of the first unit, in elements.
  for (int32_t i = thread; i < tiles.chunks * tiles.chunk_blocks; i += kThreads) {
    int32_t tap = least(own_place.first_block + i, tiles.blocks - 1);
    int32_t piece = take_remainder(tap, tiles.pieces_of_unit);
    const int32_t within = take_remainder(piece, tiles.row_pieces);
    int32_t kh = tap, column = 0;
    if (tiles.taps == 1) {
      const int32_t kw = take_remainder(kh, tiles.kernel_w);
      column = place_of_column(tiles, kw * p.w.dilation + tiles.lead);
    }
    distances[i] =
        (piece * tiles.source_plane + kh * p.h.dilation * tiles.pitch + column + within + 1) * kPiece;
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
  const auto own_pixels = pixels + lane % 16;
  const auto own_gradient =
      gradient +
      ((unit * 2 * kUnits + lane / 8 % 2) * tiles.gradient_plane + lane / 16 * 8 + lane % 8) * kPiece;

  float sum[kUnits][kBlocks][4] = {};
  const int32_t ahead = tiles.buffers - 1;
  for (int32_t n = -ahead;; ++n) {
    const int32_t next = slice + (n + ahead) * tiles.slices;
    if (next < tiles.count) {
      const WeightTile tile(p, tiles, next);
      const WeightPlace place = places[0];
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
      } else if (tiles.source_staging == Staging::kRows) {
        const auto from =
            rows_in_memory<T>(p, tiles.row_copies, tile.image, place.source, tile.images,
                              tile.row * p.h.stride - p.h.pad, tile.column * p.w.stride - p.w.pad);
        stage_rows<T, kPiece, 1>(tiles.row_copies, from, kThreads, [&](int32_t piece, const auto& values) {
          store_shared_words(to_source + piece * kPiece, values);
        });
      } else {
        stage_source<Staging::kSingle, T>(p, tiles, place, tile, to_source, entries);
      }
    }
    commit_async();
    if (n < 0) continue;
    const int32_t i = slice + n * tiles.slices;
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
  const WeightPlace place = places[0];
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
    const int32_t column = kw * tiles.next_tap + c * tiles.next_channel;
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

template <typename T>
cudaError_t launch_plan(const Conv2dWeightParams& p, const WeightPlan& plan, cudaStream_t stream) {
  const LaunchShape shape{{static_cast<unsigned>(plan.blocks)}, kThreads, static_cast<size_t>(plan.bytes)};
  return launch(plan.narrow ? weight_products<T, 1, 18> : weight_products<T, 2, 8>, shape, stream, p,
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
