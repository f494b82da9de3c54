#include "conv2d_tiles.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "conv2d_element.cuh"
#include "device.cuh"

// Few channels per group in blocks that stage what they read: a tile of source pixels, and the weights of
// some units of M result channels, both as accumulators in shared memory. A thread multiplies P results by M
// channels, so that a tap's P + M values from shared memory meet in P * M products.
namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;                      // of a multiprocessor at least: up to 128 registers a thread
constexpr int64_t kMaxSharedBytes = 46 * 1024;  // without opting in, less the taps' offsets
constexpr int kMaxUnits = 8;

struct Tiles {
  int32_t rows, columns;        // results of a block
  int32_t lanes;                // threads of a unit
  int32_t units;                // of a block
  int32_t chunk;                // source channels of a group at a time, which divide all of them
  int32_t phase, pitch, plane;  // in shared memory: columns of one remainder of the stride; a row; a channel
  int32_t weights;              // offset of the weights
  Divider<int32_t> source_columns, source_rows, source_planes, source_vectors, channels, taps, stride,
      result_columns, units_of_block;
  Divider<int32_t> column_tiles, row_tiles, unit_tiles, tiles_of_group;
  bool groups;      // each unit is a group with channels of its own
  bool by_vectors;  // source_vectors of 16 bytes are all channels of a pixel
};

template <typename T, int P, int M, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocks) direct_tiles(const Conv2dDirectParams p, const Tiles t) {
  using A = Compute<T>;
  constexpr bool kAsTheyAre = std::is_same_v<A, T>;  // values are copied, not converted
  constexpr int kWide = 16 / sizeof(A) < M ? 16 / sizeof(A) : M;
  D2LFAST_SHARED(int32_t, offsets, kMaxConv2dTaps);
  const auto values = dynamic_shared<A>();
  const auto weights = values + t.weights;
  const int32_t threads = t.lanes * t.units, thread = threadIdx.x;
  const int32_t unit = kLast ? thread % t.units : thread / t.lanes;
  const int32_t lane = kLast ? thread / t.units : thread % t.lanes;
  int32_t rest = blockIdx.x;
  const int32_t column0 = take_remainder(rest, t.column_tiles) * t.columns;
  const int32_t row0 = take_remainder(rest, t.row_tiles) * t.rows;
  int32_t group0 = take_remainder(rest, t.unit_tiles);
  const int64_t image = rest;
  const int32_t unit0 = take_remainder(group0, t.tiles_of_group) * t.units;
  if (t.groups) group0 *= t.units;
  const int32_t group = t.groups ? group0 + unit : group0;
  const int32_t first = t.groups ? 0 : (unit0 + unit) * M;
  const int32_t taps = p.h.kernel * p.w.kernel;
  const int32_t spread = t.groups ? t.units : 1;

  for (int32_t i = thread; i < taps; i += threads) {
    const int32_t kh = i / p.w.kernel;
    int32_t column = (i - kh * p.w.kernel) * p.w.dilation;
    const int32_t remainder = take_remainder(column, t.stride);
    offsets[i] = (kh * p.h.dilation * t.pitch + remainder * t.phase + column) * spread;
  }
  SharedPointer<A> mine[P];
#pragma unroll
  for (int i = 0; i < P; ++i) {
    int32_t row = lane + i * t.lanes;
    const int32_t column = take_remainder(row, t.result_columns);
    // Beyond the tile: a pixel that is there, whose result is thrown away.
    const int32_t base = row < t.rows ? (row * p.h.stride * t.pitch + column) * spread : 0;
    mine[i] = values + (t.groups ? base + unit : base);
  }

  const int32_t source_pixels = p.h.source * p.w.source, source_width = p.groups * p.source_channels;
  const int32_t top = row0 * p.h.stride - p.h.pad, left = column0 * p.w.stride - p.w.pad;
  const T* source = static_cast<const T*>(p.source) + image * source_width * source_pixels;
  A sum[P][M] = {};
  for (int32_t c0 = 0; c0 < p.source_channels; c0 += t.chunk) {
    __syncthreads();
    const auto stage = [&](auto width) {  // neighbouring channels by one access
      constexpr int V = decltype(width)::value;
      const Divider<int32_t>& planes = V > 1 ? t.source_vectors : t.source_planes;
      const int32_t staged = planes.divisor * t.source_rows.divisor * t.source_columns.divisor;
      struct Staged {
        Lanes<T, V> given;
        int32_t place, which, within;
      };
      const auto place_of = [&](const Staged& item) {
        return item.within * t.plane * spread + item.place + item.which;
      };
      // Calls with the item, where its first value is in memory, and whether it is.
      const auto find = [&](int32_t i, auto&& body) {
        int32_t of = i, which;  // group of the block
        if constexpr (kLast) which = take_remainder(of, planes) * V;
        int32_t x = take_remainder(of, t.source_columns);
        const int32_t y = take_remainder(of, t.source_rows);
        if constexpr (!kLast) which = of;
        const int32_t within = take_remainder(which, t.channels);
        const int32_t h = top + y, w = left + x;
        const int32_t channel = (group0 + which) * p.source_channels + c0 + within;
        const T* from = source + (kLast ? (h * p.w.source + w) * source_width + channel
                                        : channel * source_pixels + h * p.w.source + w);
        const bool inside = is_below(h, p.h.source) && is_below(w, p.w.source) && group0 + which < p.groups;
        const int32_t remainder = take_remainder(x, t.stride);
        const int32_t place = (y * t.pitch + remainder * t.phase + x) * spread;
        return body(Staged{Lanes<T, V>::of(T{}), place, which, within}, from, inside);
      };
      if constexpr (kAsTheyAre && V == 1) {
        for (int32_t i = thread; i < staged; i += threads) {
          find(i, [&](const Staged& item, const T* from, bool inside) {
            copy_async_element(values + place_of(item), from, inside);
          });
        }
      } else {
        const auto load_item = [&](int32_t i) {
          return find(i, [](Staged item, const T* from, bool inside) {
            if (inside) item.given = Lanes<T, V>::read(from);
            return item;
          });
        };
        load_ahead<2>(thread, staged, threads, load_item, [&](Staged& item) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            values[place_of(item)] = to_compute(item.given.lane(v));
            if (++item.within == t.chunk) {
              item.within = 0;
              ++item.which;
            }
          }
        });
      }
    };
    if (kLast && t.by_vectors) {
      stage(std::integral_constant<int, kLast ? kVectorWidth<T> : 1>{});
    } else {
      stage(std::integral_constant<int, 1>{});
    }
    struct Factor {
      const T* from;
      int32_t to;
      bool there;
    };
    const auto find_factor = [&](int32_t i) {
      int32_t step = i / M;
      const int32_t m = i % M, u = take_remainder(step, t.units_of_block);
      int32_t c = step;
      const int32_t tap = take_remainder(c, t.taps);
      const int32_t from = p.transposed ? taps - 1 - tap : tap;
      const int32_t of = t.groups ? group0 + u : group0;
      const int32_t result = t.groups ? m : (unit0 + u) * M + m;
      const int32_t row = of * p.result_channels + result;
      const int32_t at = kLast ? (from * p.source_channels + c0 + c) * p.groups * p.result_channels + row
                               : (row * p.source_channels + c0 + c) * taps + from;
      return Factor{static_cast<const T*>(p.weight) + at,
                    ((step * (M / kWide) + m / kWide) * t.units + u) * kWide + m % kWide,
                    result < p.result_channels && of < p.groups};
    };
    const int32_t all_factors = t.chunk * taps * t.units * M;
    if constexpr (kAsTheyAre) {
      for (int32_t i = thread; i < all_factors; i += threads) {
        const Factor factor = find_factor(i);
        copy_async_element(weights + factor.to, factor.from, factor.there);
      }
    } else {
      struct Value {
        T value;
        int32_t to;
      };
      const auto load_factor = [&](int32_t i) {
        const Factor factor = find_factor(i);
        return Value{factor.there ? *factor.from : T{}, factor.to};
      };
      load_ahead<2>(thread, all_factors, threads, load_factor,
                    [&](const Value& value) { weights[value.to] = to_compute(value.value); });
    }
    commit_async();
    wait_async<0>();
    __syncthreads();
    auto factors = weights + unit * kWide;
    for (int32_t c = 0, plane = 0; c < t.chunk; ++c, plane += t.plane * spread) {
#pragma unroll 2
      for (int32_t tap = 0; tap < taps; ++tap) {
        const int32_t offset = plane + offsets[tap];
        A factor[M];
#pragma unroll
        for (int m = 0; m < M; m += kWide) {
          const auto wide = load_shared<kWide>(factors);
          factors = factors + t.units * kWide;
#pragma unroll
          for (int i = 0; i < kWide; ++i) factor[m + i] = wide.lane[i];
        }
#pragma unroll
        for (int i = 0; i < P; ++i) {
          const A value = mine[i][offset];
#pragma unroll
          for (int m = 0; m < M; ++m) sum[i][m] = fma(value, factor[m], sum[i][m]);
        }
      }
    }
  }

  if (group >= p.groups || first >= p.result_channels) return;
  const int32_t result_width = p.groups * p.result_channels, result_pixels = p.h.result * p.w.result;
  const int32_t channel = group * p.result_channels + first;
  const int32_t count = least(M, p.result_channels - first);
  A bias[M];
#pragma unroll
  for (int m = 0; m < M; ++m) bias[m] = m < count ? bias_of<T>(p.bias, channel + m) : A(0);
  constexpr int kStore = M * sizeof(T) > 16 ? 16 / sizeof(T) : M;
  const bool whole = kLast && result_width % kStore == 0 && p.result_channels % M == 0 &&
                     reinterpret_cast<uintptr_t>(p.result) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(p.residual) % 16 == 0;
#pragma unroll
  for (int i = 0; i < P; ++i) {
    int32_t row = lane + i * t.lanes;
    const int32_t column = column0 + take_remainder(row, t.result_columns);
    if (row >= t.rows || row0 + row >= p.h.result || column >= p.w.result) continue;
    const int64_t pixel = static_cast<int64_t>(row0 + row) * p.w.result + column;
    const int64_t to = kLast ? (image * result_pixels + pixel) * result_width + channel
                             : (image * result_width + channel) * result_pixels + pixel;
    const int32_t step = kLast ? 1 : result_pixels;
#pragma unroll
    for (int m = 0; m < M; ++m) sum[i][m] += bias[m];
    if (p.residual != nullptr) {
      if (whole) {
#pragma unroll
        for (int m = 0; m < M; m += kStore) {
          const auto added = load<kStore>(static_cast<const T*>(p.residual) + to + m);
#pragma unroll
          for (int v = 0; v < kStore; ++v) sum[i][m + v] += to_compute(added.lane[v]);
        }
      } else {
#pragma unroll
        for (int m = 0; m < M; ++m) {
          if (m < count) {
            sum[i][m] += to_compute(static_cast<const T*>(p.residual)[to + static_cast<int64_t>(m) * step]);
          }
        }
      }
    }
    activate_all(sum[i], p.activation);
    if (whole) {
#pragma unroll
      for (int m = 0; m < M; m += kStore) {
        Vector<T, kStore> done;
#pragma unroll
        for (int v = 0; v < kStore; ++v) done.lane[v] = from_compute<T>(sum[i][m + v]);
        store(static_cast<T*>(p.result) + to + m, done);
      }
    } else {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (m < count) {
          static_cast<T*>(p.result)[to + static_cast<int64_t>(m) * step] = from_compute<T>(sum[i][m]);
        }
      }
    }
  }
}

int32_t extent(const Conv2dAxis& axis, int32_t results) {
  return (results - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
}

// The tile that needs the fewest instructions, as counted on sm_90's code; rows == 0: none fits.
Tiles tiles_of(const Conv2dDirectParams& p, int pixels, int channels_of_unit, int32_t lanes_of_vector,
               int64_t accumulator, double& least_cost) {
  Tiles best{};
  const int32_t units_of_group = (p.result_channels + channels_of_unit - 1) / channels_of_unit;
  const bool groups = units_of_group == 1 && p.groups > 1;
  const int32_t units_there = groups ? p.groups : units_of_group;
  const int64_t taps = int64_t{p.h.kernel} * p.w.kernel;
  least_cost = INFINITY;
  for (int32_t units = 1; units <= kMaxUnits && (units == 1 || units / 2 < units_there); units *= 2) {
    // Of channels_last, neighbouring channels; of NCHW, a unit is whole warps.
    if (p.channels_last && units < kMaxUnits && units < units_there) continue;
    const int32_t whole = p.channels_last ? 32 / units : 32, most = kThreads / units * pixels;
    const int32_t spread = groups ? units : 1;
    const int64_t unit_tiles =
        groups ? (units_there + units - 1) / units : int64_t{p.groups} * ((units_there + units - 1) / units);
    for (int32_t across = 1; across <= 8; ++across) {
      const int32_t columns = (p.w.result + across - 1) / across;
      if (columns > most) continue;
      const int64_t phase = (extent(p.w, columns) + p.w.stride - 1) / p.w.stride;
      int32_t tried = 0;
      for (int64_t down = (p.h.result + most / columns - 1) / (most / columns);
           down <= p.h.result && tried < 3; down *= 2) {
        const int32_t rows = static_cast<int32_t>((p.h.result + down - 1) / down);
        const int32_t lanes = ((rows * columns + pixels - 1) / pixels + whole - 1) / whole * whole;
        const int64_t plane = phase * p.w.stride * extent(p.h, rows);
        const int64_t a_channel = (plane * spread + taps * units * channels_of_unit) * accumulator;
        if (lanes * units > kThreads || a_channel + 32 > kMaxSharedBytes) continue;
        ++tried;
        int32_t chunk =
            static_cast<int32_t>(std::min<int64_t>(p.source_channels, (kMaxSharedBytes - 32) / a_channel));
        while (p.source_channels % chunk != 0) --chunk;
        const bool by_vectors =
            p.channels_last && chunk == p.source_channels && chunk * spread % lanes_of_vector == 0;
        const double threads = lanes * units, blocks = double(p.batch) * unit_tiles * down * across;
        const double products = pixels * channels_of_unit;
        const double staged = double(plane) * spread * p.source_channels * (by_vectors ? 20 : 60) +
                              double(taps) * p.source_channels * units * channels_of_unit * 48;
        const double instructions =
            420 + 4 * products + staged / threads + taps * p.source_channels * (products + 3 * pixels + 8);
        constexpr double kFill = 1 << 14;  // threads: a warp for each scheduler of a GPU
        const double cost = instructions * std::max(threads * blocks, kFill);
        if (cost >= least_cost) continue;
        least_cost = cost;
        best.rows = rows;
        best.columns = columns;
        best.lanes = lanes;
        best.units = units;
        best.chunk = chunk;
        best.by_vectors = by_vectors;
      }
    }
  }
  if (best.rows == 0) return best;
  const int32_t spread = groups ? best.units : 1;
  best.phase = (extent(p.w, best.columns) + p.w.stride - 1) / p.w.stride;
  best.pitch = best.phase * p.w.stride;
  best.plane = best.pitch * extent(p.h, best.rows);
  best.weights = (best.chunk * best.plane * spread + 3) / 4 * 4;
  best.source_columns = Divider<int32_t>(extent(p.w, best.columns));
  best.source_rows = Divider<int32_t>(extent(p.h, best.rows));
  best.source_planes = Divider<int32_t>(best.chunk * spread);
  if (best.by_vectors) best.source_vectors = Divider<int32_t>(best.chunk * spread / lanes_of_vector);
  best.channels = Divider<int32_t>(best.chunk);
  best.units_of_block = Divider<int32_t>(best.units);
  best.taps = Divider<int32_t>(taps);
  const int32_t tiles_of_group = groups ? 1 : (units_of_group + best.units - 1) / best.units;
  best.tiles_of_group = Divider<int32_t>(tiles_of_group);
  best.stride = Divider<int32_t>(p.w.stride);
  best.result_columns = Divider<int32_t>(best.columns);
  best.column_tiles = Divider<int32_t>((p.w.result + best.columns - 1) / best.columns);
  best.row_tiles = Divider<int32_t>((p.h.result + best.rows - 1) / best.rows);
  best.unit_tiles = Divider<int32_t>(groups ? (p.groups + best.units - 1) / best.units
                                            : int64_t{p.groups} * tiles_of_group);
  best.groups = groups;
  return best;
}

template <typename T, int P, int M>
cudaError_t launch_tiles(const Conv2dDirectParams& p, const Tiles& t, int64_t blocks, cudaStream_t stream) {
  const int64_t taps = int64_t{p.h.kernel} * p.w.kernel;
  const size_t bytes = (t.weights + t.chunk * taps * t.units * M) * sizeof(Compute<T>);
  const LaunchShape shape{{static_cast<unsigned>(blocks)}, static_cast<unsigned>(t.lanes * t.units), bytes};
  return launch(p.channels_last ? direct_tiles<T, P, M, true> : direct_tiles<T, P, M, false>, shape, stream,
                p, t);
}

template <typename T, int M>
bool launch_units(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  constexpr int P = sizeof(Compute<T>) == 4 ? 4 : 2;
  // Where 16-byte accesses to the source are not possible, a vector is longer than any pixel.
  const bool whole = p.groups * p.source_channels % kVectorWidth<T> == 0 && aligned(p.source, 16);
  const int32_t vector = whole ? kVectorWidth<T> : INT32_MAX;
  const auto run = [&](auto pixels, const Tiles& t) {
    const int64_t blocks = p.batch * t.unit_tiles.divisor * t.row_tiles.divisor * t.column_tiles.divisor;
    if (t.rows == 0 || blocks > INT32_MAX) return false;
    error = launch_tiles<T, decltype(pixels)::value, M>(p, t, blocks, stream);
    return true;
  };
  double cost, wide_cost;
  const Tiles t = tiles_of(p, P, M, vector, sizeof(Compute<T>), cost);
  const Tiles wide = tiles_of(p, 2 * P, M, vector, sizeof(Compute<T>), wide_cost);
  if constexpr (P == 4) {
    if (wide_cost < cost) return run(std::integral_constant<int, 2 * P>{}, wide);
  }
  return run(std::integral_constant<int, P>{}, t);
}

}  // namespace

bool launch_conv2d_tiles(Conv2dDirectParams p, DType dtype, cudaStream_t stream, cudaError_t& error) {
  if (p.transposed && (p.h.stride != 1 || p.w.stride != 1)) return false;
  if (int64_t{p.groups} * p.result_channels * p.source_channels * p.h.kernel * p.w.kernel > INT32_MAX) {
    return false;
  }
  if (p.transposed) {
    p.h.pad = (p.h.kernel - 1) * p.h.dilation - p.h.pad;
    p.w.pad = (p.w.kernel - 1) * p.w.dilation - p.w.pad;
  }
  bool taken = false;
  const cudaError_t failure = with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    taken =
        p.result_channels <= 4 ? launch_units<T, 4>(p, stream, error) : launch_units<T, 8>(p, stream, error);
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

}  // namespace d2lfast::cuda
