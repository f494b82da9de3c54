#include "conv2d_depthwise.h"

#include <type_traits>

#include "conv2d_element.cuh"
#include "device.cuh"

// One channel a group and as many results. A thread takes a tile of results, some rows of four columns: of a
// plane in NCHW, where neighbouring threads are neighbouring columns; of 8 or 16 bytes of channels in
// channels_last, where they are neighbours along the channels. Each source element that the tile meets is
// read and converted once.
namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;  // of a multiprocessor at least: up to 128 registers a thread
template <typename T>
constexpr int kColumns = sizeof(T) <= 4 ? 4 : 2;

// Item: in NCHW tiles along a row fastest, then tiles down, then planes; in channels_last groups of channels
// fastest, then tiles along a row and down, images.
struct StripItems {
  int32_t count;
  Divider<int32_t> channels, down, across;
  bool wide_source, wide_result;  // NCHW: rows begin on boundaries of four elements
  int32_t part = 0;               // of a block, of a weight's gradient; the last parts may be empty
};

// Whether a tile's columns are read at once.
template <typename T>
constexpr bool kVectors = sizeof(T) <= 4;

// Each is activated in a loop, since the functions are long: rows take turns in the first one's registers.
template <typename A, int kRows, int kCount>
__device__ __forceinline__ void activate_rows(A (&values)[kRows][kCount], Activation activation) {
  if (activation == Activation::kNone) return;
  if (activation == Activation::kReLU) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) activate_all(values[r], Activation::kReLU);
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < kRows; ++turn) {
    A first[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) first[i] = activate(values[0][i], activation);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[r][i] = r + 1 < kRows ? values[(r + 1) % kRows][i] : first[i];
    }
  }
}

// Words of lanes as numbers: a bfloat16 is shifted or masked once, and pairs are rounded together.
template <typename T, int V>
__device__ __forceinline__ Compute<T> number(const Lanes<T, V>& lanes, int v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = lanes.word[v / 2];
    return detail::float_of_bits(v % 2 == 0 ? bits << 16 : bits & 0xffff0000u);
  } else {
    return to_compute(lanes.lane(v));
  }
}

// Two neighbours of 16 bits in a word.
template <typename T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t word;
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  }
#else
  const T pair[] = {from_compute<T>(low), from_compute<T>(high)};
  memcpy(&word, pair, sizeof(word));
#endif
  return word;
}

template <typename T, int V>
__device__ __forceinline__ Lanes<T, V> rounded(const Compute<T> (&numbers)[V]) {
  if constexpr (sizeof(T) == 2) {
    Lanes<T, V> lanes;
#pragma unroll
    for (int v = 0; v < V; v += 2) lanes.word[v / 2] = rounded_pair<T>(numbers[v], numbers[v + 1]);
    return lanes;
  } else {
    return Lanes<T, V>::gather(numbers, 1);
  }
}

// Rows of a tile in NCHW, what 128 registers hold.
template <typename T, int K, int S>
constexpr int kPlaneRows = K == 7           ? 1
                           : sizeof(T) == 8 ? 2
                           : sizeof(T) == 4 ? (K == 3 ? 4 : 2)
                           : S == 1         ? (K == 3 ? 8 : 4)
                           : K == 3         ? 4
                                            : 2;

// A tile of one row of results meets each row of a large window once: a loop, whose taps registers hold a row
// of.
template <int K, int kRows>
constexpr bool kWhole = K == 3 || kRows > 1;
template <int K, int kRows>
constexpr int kUnrolled = kWhole<K, kRows> ? 64 : 1;
template <int K, int kRows>
constexpr int kFactorRows = kWhole<K, kRows> ? K : 1;

// The source elements of a row of results, in NCHW: of four columns' windows, with their neighbours up to a
// boundary of two or four elements.
template <typename T, int K, int S>
struct PlaneRow {
  static constexpr int kBefore = K / 2, kLeft = kBefore > 2 ? 4 : 2, kBody = kColumns<T>;
  static constexpr int kAfter = (kColumns<T> - 1) * S + K - kBefore - kColumns<T> * S;
  static constexpr int kRight = kAfter > 2 ? 4 : 2, kReach = (kColumns<T> - 1) * S + K;
  Lanes<T, kLeft> left;
  Lanes<T, kBody> body[S];
  Lanes<T, kRight> right;

  // Of the window of the first column.
  __device__ __forceinline__ Compute<T> at(int i) const {
    const int place = i - kBefore;
    if (place < 0) return number(left, place + kLeft);
    return place < S * kBody ? number(body[place / kBody], place % kBody) : number(right, place - S * kBody);
  }

  // From `from`, the first column's place in the middle of its window, where `column` of `columns` is.
  template <bool kWide>
  __device__ __forceinline__ void read(const T* from, int32_t column, int32_t columns, bool inside) {
    left = Lanes<T, kLeft>::of(T{});
    right = Lanes<T, kRight>::of(T{});
    if constexpr (kWide) {
      if (inside && column > 0) left = Lanes<T, kLeft>::read(from - kLeft);
#pragma unroll
      for (int i = 0; i < S; ++i) {
        body[i] = Lanes<T, kBody>::of(T{});
        if (inside && (i == 0 || column + i * kBody < columns))
          body[i] = Lanes<T, kBody>::read(from + i * kBody);
      }
      if (kAfter > 0 && inside && column + S * kBody < columns)
        right = Lanes<T, kRight>::read(from + S * kBody);
    } else {
      T value[kLeft + S * kBody + kRight] = {};
#pragma unroll
      for (int i = -kBefore; i < kReach - kBefore; ++i) {
        const bool valid = inside && static_cast<uint32_t>(column + i) < static_cast<uint32_t>(columns);
        if (valid) value[kLeft + i] = from[i];
      }
      left = Lanes<T, kLeft>::gather(value, 1);
#pragma unroll
      for (int i = 0; i < S; ++i) body[i] = Lanes<T, kBody>::gather(value + kLeft + i * kBody, 1);
      right = Lanes<T, kRight>::gather(value + kLeft + S * kBody, 1);
    }
  }
};

// Source rows of a tile whose first result is at a row and column of a plane.
template <typename T, int K, int S>
struct PlaneRows {
  const Conv2dAxis &h, &w;
  const int32_t column;
  int32_t row;
  const T* from;

  __device__ __forceinline__ PlaneRows(const void* source, int64_t plane, const Conv2dAxis& down,
                                       const Conv2dAxis& across, int32_t result_row, int32_t result_column)
      : h(down), w(across), column(result_column * S - w.pad + K / 2), row(result_row * S - h.pad) {
    from = computed_once(static_cast<const T*>(source) + plane * h.source * w.source +
                         (static_cast<int64_t>(row) * w.source + column));
  }
  // The elements of the next row.
  template <bool kWide>
  __device__ __forceinline__ void next(Compute<T> (&x)[PlaneRow<T, K, S>::kReach]) {
    const bool inside = static_cast<uint32_t>(row) < static_cast<uint32_t>(h.source);
    PlaneRow<T, K, S> elements;
    elements.template read<kWide>(from, column, w.source, inside);
    from = computed_once(from + w.source);
    ++row;
#pragma unroll
    for (int j = 0; j < PlaneRow<T, K, S>::kReach; ++j) x[j] = elements.at(j);
  }
};

// Four columns of a row, of which `columns` exist.
template <typename T>
__device__ __forceinline__ Lanes<T, kColumns<T>> read_columns(const T* from, bool wide, int32_t columns) {
  if (kVectors<T> && wide) {
    return columns > 0 ? Lanes<T, kColumns<T>>::read(from) : Lanes<T, kColumns<T>>::of(T{});
  }
  T value[kColumns<T>] = {};
#pragma unroll
  for (int c = 0; c < kColumns<T>; ++c) {
    if (c < columns) value[c] = from[c];
  }
  return Lanes<T, kColumns<T>>::gather(value, 1);
}

template <bool kWide, typename T, int K, int S, int kRows>
__device__ __forceinline__ void convolve_plane(const Conv2dDirectParams& p, int64_t plane, int32_t channel,
                                               int32_t row, int32_t column,
                                               Compute<T> (&sum)[kRows][kColumns<T>]) {
  PlaneRows<T, K, S> source(p.source, plane, p.h, p.w, row, column);
  const T* weight = static_cast<const T*>(p.weight) + channel * (K * K) + (p.transposed ? K * K - 1 : 0);
  const int32_t tap_step = p.transposed ? -1 : 1;
  Compute<T> factor[kFactorRows<K, kRows>][K];
#pragma unroll kUnrolled < K, kRows>
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    if (i < K) {
#pragma unroll
      for (int j = 0; j < K; ++j) {
        factor[i % kFactorRows<K, kRows>][j] = to_compute(weight[(i * K + j) * tap_step]);
      }
    }
    Compute<T> x[PlaneRow<T, K, S>::kReach];
    source.template next<kWide>(x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = i - r * S;
      if (k < 0 || k >= K) continue;
#pragma unroll
      for (int j = 0; j < K; ++j) {
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c)
          sum[r][c] = fma(x[c * S + j], factor[k % kFactorRows<K, kRows>][j], sum[r][c]);
      }
    }
  }
}

// A transposed convolution of stride 1 comes with the padding of the equal forward one, and takes the taps
// from the last to the first.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise_planes(const Conv2dDirectParams p, const StripItems items) {
  using A = Compute<T>;
  constexpr int kRows = kPlaneRows<T, K, S>;
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    int32_t plane = item;
    const int32_t column = take_remainder(plane, items.across) * kColumns<T>;
    const int32_t row = take_remainder(plane, items.down) * kRows;
    int32_t image = plane;
    const int32_t channel = take_remainder(image, items.channels);
    A sum[kRows][kColumns<T>];
    const A bias = bias_of<T>(p.bias, channel);
#pragma unroll
    for (int i = 0; i < kRows * kColumns<T>; ++i) sum[i / kColumns<T>][i % kColumns<T>] = bias;
    if (items.wide_source) {
      convolve_plane<kVectors<T>, T, K, S, kRows>(p, plane, channel, row, column, sum);
    } else {
      convolve_plane<false, T, K, S, kRows>(p, plane, channel, row, column, sum);
    }
    const int64_t start = (int64_t{plane} * p.h.result + row) * p.w.result + column;
    const int32_t rows = least(p.h.result - row, kRows), columns = least(p.w.result - column, kColumns<T>);
    const bool wide = items.wide_result;
    if (p.residual != nullptr) {
      const T* residual = static_cast<const T*>(p.residual) + start;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto added = read_columns<T>(residual + int64_t{r} * p.w.result, wide, r < rows ? columns : 0);
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) sum[r][c] += number(added, c);
      }
    }
    activate_rows(sum, p.activation);
    T* result = static_cast<T*>(p.result) + start;
#pragma unroll
    for (int r = 0; r < kRows; ++r, result += p.w.result) {
      if (r >= rows) break;
      const auto done = rounded<T>(sum[r]);
      if (kVectors<T> && wide) {
        done.write(result);
      } else {
#pragma unroll
        for (int c = 0; c < kColumns<T>; ++c) {
          if (c < columns) result[c] = done.lane(c);
        }
      }
    }
  }
}

// channels_last: of each tile, channels and rows.
template <typename T>
constexpr int kLaneChannels = sizeof(T) == 8 ? 2 : 4;
template <typename T, int K, int S>
constexpr int kPixelRows = K == 3 && S == 1 ? 2 : 1;

// Neighbours in a row, of which the first is at `left` of `columns`, zeros where there are none.
template <bool kInside, typename T, int V, int kCount>
__device__ __forceinline__ void read_pixels(const T* line, int32_t step, int32_t left, int32_t columns,
                                            bool row_inside, Lanes<T, V> (&value)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    value[j] = Lanes<T, V>::of(T{});
    const bool inside = kInside || static_cast<uint32_t>(left + j) < static_cast<uint32_t>(columns);
    if (row_inside && inside) value[j] = Lanes<T, V>::read(line + j * step);
  }
}

// Of the source rows of a tile the vectors that exist, which are all with kInside.
template <bool kInside, typename T, int K, int S, int kRows>
__device__ __forceinline__ void convolve_pixels(const Conv2dDirectParams& p, const T* source, int32_t row,
                                                int32_t column, int32_t channel,
                                                Compute<T> (&sum)[kRows * kColumns<T>][kLaneChannels<T>]) {
  using A = Compute<T>;
  constexpr int V = kLaneChannels<T>, C = kColumns<T>, kReach = (C - 1) * S + K;
  const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
  const T* line = computed_once(source + static_cast<int64_t>(top * p.w.source + left) * p.groups);
  const int32_t tap_step = p.transposed ? -p.groups : p.groups;
  const T* weight =
      computed_once(static_cast<const T*>(p.weight) + channel + (p.transposed ? (K * K - 1) * p.groups : 0));
  Lanes<T, V> factor[kFactorRows<K, kRows>][K];
#pragma unroll kUnrolled < K, kRows>
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    const bool row_inside = kInside || static_cast<uint32_t>(top + i) < static_cast<uint32_t>(p.h.source);
    if (i < K) {
#pragma unroll
      for (int j = 0; j < K; ++j) {
        factor[i % kFactorRows<K, kRows>][j] = Lanes<T, V>::read(weight + j * tap_step);
      }
      weight = computed_once(weight + K * tap_step);
    }
    Lanes<T, V> value[kReach];
    read_pixels<kInside>(line, p.groups, left, p.w.source, row_inside, value);
    line = computed_once(line + p.w.source * p.groups);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A x[kReach];
#pragma unroll
      for (int j = 0; j < kReach; ++j) x[j] = number(value[j], v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int k = i - r * S;
        if (k < 0 || k >= K) continue;
#pragma unroll
        for (int j = 0; j < K; ++j) {
          const A w = number(factor[k % kFactorRows<K, kRows>][j], v);
#pragma unroll
          for (int c = 0; c < C; ++c) sum[r * C + c][v] = fma(x[c * S + j], w, sum[r * C + c][v]);
        }
      }
    }
  }
}

template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    depthwise_pixels(const Conv2dDirectParams p, const StripItems items) {
  constexpr int V = kLaneChannels<T>, C = kColumns<T>, kRows = kPixelRows<T, K, S>;
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    int32_t image = item;
    const int32_t channel = take_remainder(image, items.channels) * V;
    const int32_t column = take_remainder(image, items.across) * C;
    const int32_t row = take_remainder(image, items.down) * kRows;
    const T* source = static_cast<const T*>(p.source) +
                      static_cast<int64_t>(image) * p.h.source * p.w.source * p.groups + channel;
    Compute<T> sum[kRows * C][V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Compute<T> bias = bias_of<T>(p.bias, channel + v);
#pragma unroll
      for (int i = 0; i < kRows * C; ++i) sum[i][v] = bias;
    }
    const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
    const bool inside = kWhole<K, kRows> && top >= 0 && top + (kRows - 1) * S + K <= p.h.source &&
                        left >= 0 && left + (C - 1) * S + K <= p.w.source;
    if (inside) {
      convolve_pixels<kWhole<K, kRows>, T, K, S, kRows>(p, source, row, column, channel, sum);
    } else {
      convolve_pixels<false, T, K, S, kRows>(p, source, row, column, channel, sum);
    }
    const int64_t start =
        ((static_cast<int64_t>(image) * p.h.result + row) * p.w.result + column) * p.groups + channel;
    const int32_t rows = p.h.result - row, columns = p.w.result - column;
    const auto to = [&](int i) { return static_cast<int64_t>(i / C * p.w.result + i % C) * p.groups; };
    if (p.residual != nullptr) {
      const T* residual = computed_once(static_cast<const T*>(p.residual) + start);
#pragma unroll
      for (int i = 0; i < kRows * C; ++i) {
        if (i / C >= rows || i % C >= columns) continue;
        const auto added = Lanes<T, V>::read(residual + to(i));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[i][v] += number(added, v);
      }
    }
    activate_rows(sum, p.activation);
    T* line = computed_once(static_cast<T*>(p.result) + start);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      T* result = line;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (c < columns) rounded<T>(sum[r * C + c]).write(result);
        result = computed_once(result + p.groups);
      }
      line = computed_once(line + p.w.result * p.groups);
    }
  }
}

// Up to 168 registers a thread: the sums, and all loads of a pixel under way.
constexpr int kWeightThreads = 128, kWeightBlocks = 3;
constexpr int kLanes = 8, kRows = kWeightThreads / kLanes, kWarps = kWeightThreads / 32;

struct PixelItems {
  int32_t count;  // output pixels of all images
  Divider<int32_t> columns, rows;
};

// The sums of `kTaps` taps from tap0 on are a block's: the threads of a channel in a warp, then the warps,
// are added in their order.
template <typename A, int kTaps, int V, int kLaneCount>
__device__ __forceinline__ void add_taps(const Conv2dWeightParams& p, A (&sum)[kTaps][V], int32_t tap0,
                                         const SharedPointer<A> parts) {
  constexpr int kSums = kTaps * V;
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % kLaneCount, taps = p.h.kernel * p.w.kernel;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int mask = 16; mask >= kLaneCount; mask /= 2) sum[i][v] += shuffle_xor(sum[i][v], mask);
      if (threadIdx.x % 32 < kLaneCount) parts[(warp * kSums + i * V + v) * kLaneCount + lane] = sum[i][v];
    }
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < kSums * kLaneCount; i += kWeightThreads) {
    const int32_t tap = tap0 + i / kLaneCount / V;
    const int32_t target =
        (static_cast<int32_t>(blockIdx.x) * kLaneCount + i % kLaneCount) * V + i / kLaneCount % V;
    if (tap >= taps || target >= p.groups) continue;
    A all = parts[i];
    for (int w = 1; w < kWarps; ++w) all += parts[w * kSums * kLaneCount + i];
    static_cast<A*>(p.partial)[(static_cast<int64_t>(blockIdx.y) * p.groups + target) * taps + tap] = all;
  }
}

// channels_last. Block (x, s): the taps of kLanes times 16 bytes of channels, over part s of the output
// pixels of all images.
template <typename T, int V>
__global__ void __launch_bounds__(kWeightThreads, kWeightBlocks)
    depthwise_weight(const Conv2dWeightParams p, const PixelItems items) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, parts, kWarps * kTapTile * V * kLanes);
  const int32_t taps = p.h.kernel * p.w.kernel, lane = threadIdx.x % kLanes;
  const int32_t channel = (static_cast<int32_t>(blockIdx.x) * kLanes + lane) * V;
  const bool inside = channel < p.groups;
  const int32_t begin = static_cast<int32_t>(int64_t{items.count} * blockIdx.y / p.splits);
  const int32_t end = static_cast<int32_t>(int64_t{items.count} * (blockIdx.y + 1) / p.splits);
  for (int32_t tap0 = 0; tap0 < taps; tap0 += kTapTile) {
    A sum[kTapTile][V] = {};
    const TapTile tap(p, tap0);
    for (int32_t at = begin + static_cast<int32_t>(threadIdx.x) / kLanes; at < (inside ? end : 0);
         at += kRows) {
      int32_t rest = at;
      const int32_t column = take_remainder(rest, items.columns) * p.w.stride;
      const int32_t row = take_remainder(rest, items.rows) * p.h.stride;
      const auto gradient = Lanes<T, V>::read(static_cast<const T*>(p.gradient) +
                                              static_cast<int64_t>(at) * p.groups + channel);
      const T* source = static_cast<const T*>(p.source) +
                        static_cast<int64_t>(rest) * p.h.source * p.w.source * p.groups + channel;
      Lanes<T, V> value[kTapTile];
#pragma unroll
      for (int i = 0; i < kTapTile; ++i) {
        const int32_t h = row + tap.down[i], w = column + tap.right[i];
        value[i] = Lanes<T, V>::of(T{});
        if (h >= 0 && h < p.h.source && w >= 0 && w < p.w.source) {
          value[i] = Lanes<T, V>::read(source + (h * p.w.source + w) * p.groups);
        }
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A g = to_compute(gradient.lane(v));
#pragma unroll
        for (int i = 0; i < kTapTile; ++i) sum[i][v] = fma(g, to_compute(value[i].lane(v)), sum[i][v]);
      }
    }
    add_taps<A, kTapTile, V, kLanes>(p, sum, tap0, parts);
  }
}

template <int S>
constexpr int kGradientRows = S == 1 ? 2 : 1;

template <bool kInside, typename T, int S, int kRows>
__device__ __forceinline__ void correlate_pixels(const Conv2dWeightParams& p, const T* source,
                                                 const T* gradient, int32_t row, int32_t column,
                                                 Compute<T> (&sum)[9][kLaneChannels<T>]) {
  constexpr int K = 3, V = kLaneChannels<T>, C = kColumns<T>, kReach = (C - 1) * S + K;
  const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
  gradient = computed_once(gradient);
  const T* line = computed_once(source + static_cast<int64_t>(top * p.w.source + left) * p.groups);
  Lanes<T, V> grad[kRows][C];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      grad[r][c] = Lanes<T, V>::of(T{});
      if (kInside || (row + r < p.h.result && column + c < p.w.result)) {
        grad[r][c] = Lanes<T, V>::read(gradient + c * p.groups);
      }
    }
    gradient = computed_once(gradient + p.w.result * p.groups);
  }
#pragma unroll
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    const bool row_inside = kInside || static_cast<uint32_t>(top + i) < static_cast<uint32_t>(p.h.source);
    Lanes<T, V> value[kReach];
    read_pixels<kInside>(line, p.groups, left, p.w.source, row_inside, value);
    line = computed_once(line + p.w.source * p.groups);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Compute<T> x[kReach];
#pragma unroll
      for (int j = 0; j < kReach; ++j) x[j] = number(value[j], v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int k = i - r * S;
        if (k < 0 || k >= K) continue;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const Compute<T> g = number(grad[r][c], v);
#pragma unroll
          for (int j = 0; j < K; ++j) sum[k * K + j][v] = fma(g, x[c * S + j], sum[k * K + j][v]);
        }
      }
    }
  }
}

// channels_last, 3x3. Block (x, s): kTileLanes times 8 or 16 bytes of channels, over part s of the tiles of
// all images.
constexpr int kTileLanes = 16;

template <typename T, int S>
__global__ void __launch_bounds__(kWeightThreads, S == 1 ? kWeightBlocks : 2)
    depthwise_weight_pixels(const Conv2dWeightParams p, const StripItems items) {
  using A = Compute<T>;
  constexpr int K = 3, V = kLaneChannels<T>, kRows = kGradientRows<S>;
  D2LFAST_SHARED(A, parts, kWarps * K * K * V * kTileLanes);
  const int32_t lane = threadIdx.x % kTileLanes;
  const int32_t channel = (static_cast<int32_t>(blockIdx.x) * kTileLanes + lane) * V;
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * items.part;
  const int32_t end = least(begin + items.part, items.count);
  A sum[K * K][V] = {};
  for (int32_t item = begin + static_cast<int32_t>(threadIdx.x) / kTileLanes;
       item < (channel < p.groups ? end : 0); item += kWeightThreads / kTileLanes) {
    int32_t image = item;
    const int32_t column = take_remainder(image, items.across) * kColumns<T>;
    const int32_t row = take_remainder(image, items.down) * kRows;
    const T* source = static_cast<const T*>(p.source) +
                      static_cast<int64_t>(image) * p.h.source * p.w.source * p.groups + channel;
    const T* gradient = static_cast<const T*>(p.gradient) +
                        ((static_cast<int64_t>(image) * p.h.result + row) * p.w.result + column) * p.groups +
                        channel;
    const int32_t top = row * S - p.h.pad, left = column * S - p.w.pad;
    const bool inside = row + kRows <= p.h.result && column + kColumns<T> <= p.w.result && top >= 0 &&
                        top + (kRows - 1) * S + K <= p.h.source && left >= 0 &&
                        left + (kColumns<T> - 1) * S + K <= p.w.source;
    if (inside) {
      correlate_pixels<true, T, S, kRows>(p, source, gradient, row, column, sum);
    } else {
      correlate_pixels<false, T, S, kRows>(p, source, gradient, row, column, sum);
    }
  }
  add_taps<A, K * K, V, kTileLanes>(p, sum, 0, parts);
}

constexpr int kPlaneThreads = 64, kPlaneBlocks = 8;
// Rows of a tile, beside the sums of the taps.
template <typename T, int K, int S>
constexpr int kWeightRows = K == 7   ? 1
                            : K == 5 ? kPlaneRows<T, K, S> / 2
                                     : kPlaneRows<T, K, S>;

template <bool kWide, typename T, int K, int S, int kRows>
__device__ __forceinline__ void correlate_plane(const Conv2dWeightParams& p, int64_t plane, int32_t row,
                                                int32_t column, Compute<T> (&sum)[K][K]) {
  PlaneRows<T, K, S> source(p.source, plane, p.h, p.w, row, column);
  const T* gradient = static_cast<const T*>(p.gradient) + (plane * p.h.result + row) * p.w.result + column;
  const int32_t rows = p.h.result - row, columns = least(p.w.result - column, kColumns<T>);
  Lanes<T, kColumns<T>> grad[kRows];
#pragma unroll
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    Compute<T> x[PlaneRow<T, K, S>::kReach];
    source.template next<kWide>(x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int k = i - r * S;
      if (k < 0 || k >= K) continue;
      if (k == 0)
        grad[r] = read_columns<T>(gradient + int64_t{r} * p.w.result, kWide, r < rows ? columns : 0);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) {
        const Compute<T> g = number(grad[r], c);
#pragma unroll
        for (int j = 0; j < K; ++j) sum[k][j] = fma(x[c * S + j], g, sum[k][j]);
      }
    }
  }
}

// NCHW. Block (c, s): the taps of channel c, over part s of the tiles of all images.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kPlaneThreads, K == 7 ? 4 : kPlaneBlocks)
    depthwise_weight_planes(const Conv2dWeightParams p, const StripItems items) {
  using A = Compute<T>;
  constexpr int kRows = kWeightRows<T, K, S>, kBlockWarps = kPlaneThreads / 32;
  D2LFAST_SHARED(A, parts, kBlockWarps * K * K);
  const int32_t channel = blockIdx.x;
  const int32_t begin = static_cast<int32_t>(blockIdx.y) * items.part;
  const int32_t end = least(begin + items.part, items.count);
  A sum[K][K] = {};
  for (int32_t item = begin + static_cast<int32_t>(threadIdx.x); item < end; item += kPlaneThreads) {
    int32_t image = item;
    const int32_t column = take_remainder(image, items.across) * kColumns<T>;
    const int32_t row = take_remainder(image, items.down) * kRows;
    const int64_t plane = static_cast<int64_t>(image) * p.groups + channel;
    if (items.wide_source) {
      correlate_plane<kVectors<T>, T, K, S, kRows>(p, plane, row, column, sum);
    } else {
      correlate_plane<false, T, K, S, kRows>(p, plane, row, column, sum);
    }
  }
  // The lanes of a warp, then the warps, are added in their order.
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) sum[k][j] += shuffle_xor(sum[k][j], mask);
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32 * (K * K) + k * K + j] = sum[k][j];
    }
  }
  __syncthreads();
  if (threadIdx.x >= K * K) return;
  A all = parts[threadIdx.x];
  for (int w = 1; w < kBlockWarps; ++w) all += parts[w * (K * K) + static_cast<int>(threadIdx.x)];
  static_cast<A*>(
      p.partial)[(static_cast<int64_t>(blockIdx.y) * p.groups + channel) * (K * K) + threadIdx.x] = all;
}

template <typename T, int K>
bool wide_source(const void* source, const Conv2dAxis& w) {
  return kVectors<T> && w.pad == K / 2 && w.source % kColumns<T> == 0 &&
         aligned(source, kColumns<T> * sizeof(T));
}
template <typename T>
bool wide_result(const void* result, const Conv2dAxis& w) {
  return kVectors<T> && w.result % kColumns<T> == 0 && aligned(result, kColumns<T> * sizeof(T));
}

template <typename T, bool kPlanar, int K, int S>
bool launch_strips(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || (p.transposed ? 1 : p.h.stride) != S) return false;
  constexpr int kRows = kPlanar ? kPlaneRows<T, K, S> : kPixelRows<T, K, S>;
  const int64_t down = (p.h.result - 1) / kRows + 1, across = (p.w.result - 1) / kColumns<T> + 1;
  const int64_t channels = kPlanar ? p.groups : p.groups / kLaneChannels<T>;
  const int64_t count = p.batch * channels * down * across;
  if (count > kMaxIndex32) return false;
  const StripItems items{static_cast<int32_t>(count),
                         Divider<int32_t>(channels),
                         Divider<int32_t>(down),
                         Divider<int32_t>(across),
                         wide_source<T, K>(p.source, p.w),
                         wide_result<T>(p.result, p.w) && aligned(p.residual, kColumns<T> * sizeof(T))};
  const LaunchShape shape{blocks_for(count), kThreads};
  if constexpr (kPlanar) {
    error = launch(depthwise_planes<T, K, S>, shape, stream, p, items);
  } else {
    error = launch(depthwise_pixels<T, K, S>, shape, stream, p, items);
  }
  return true;
}

template <typename T, bool kPlanar>
bool launch_windows(const Conv2dDirectParams& p, cudaStream_t stream, cudaError_t& error) {
  return launch_strips<T, kPlanar, 3, 1>(p, stream, error) ||
         launch_strips<T, kPlanar, 3, 2>(p, stream, error) ||
         launch_strips<T, kPlanar, 5, 1>(p, stream, error) ||
         launch_strips<T, kPlanar, 5, 2>(p, stream, error) ||
         launch_strips<T, kPlanar, 7, 1>(p, stream, error);
}

}  // namespace

bool launch_conv2d_depthwise(Conv2dDirectParams p, DType dtype, cudaStream_t stream, cudaError_t& error) {
  if (p.source_channels != 1 || p.result_channels != 1 || p.h.stride != p.w.stride || p.h.dilation != 1 ||
      p.w.dilation != 1 || (p.transposed && p.h.stride != 1)) {
    return false;
  }
  if (p.transposed) {
    p.h.pad = p.h.kernel - 1 - p.h.pad;
    p.w.pad = p.w.kernel - 1 - p.w.pad;
  }
  bool taken = false;
  const cudaError_t failure = with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr size_t kBytes = kLaneChannels<T> * sizeof(T);
    if (!p.channels_last) {
      taken = launch_windows<T, true>(p, stream, error);
    } else if (p.groups % kLaneChannels<T> == 0 && aligned(p.source, kBytes) && aligned(p.weight, kBytes) &&
               aligned(p.result, kBytes) && aligned(p.residual, kBytes)) {
      taken = launch_windows<T, false>(p, stream, error);
    }
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

namespace {

// Whole rounds of a block's threads, or of a warp.
int32_t part_of(int64_t count, int32_t parts, int32_t round) {
  const int64_t rounds = (count + round - 1) / round;
  return static_cast<int32_t>((rounds + parts - 1) / parts * round);
}

template <typename T, int S>
bool launch_weight_pixels(const Conv2dWeightParams& p, cudaStream_t stream, cudaError_t& error) {
  constexpr int V = kLaneChannels<T>;
  const bool fits = p.h.kernel == 3 && p.w.kernel == 3 && p.h.stride == S && p.w.stride == S &&
                    p.h.dilation == 1 && p.w.dilation == 1 && p.groups % V == 0 &&
                    aligned(p.source, V * sizeof(T)) && aligned(p.gradient, V * sizeof(T));
  const int64_t down = (p.h.result - 1) / kGradientRows<S> + 1, across = (p.w.result - 1) / kColumns<T> + 1;
  const int64_t count = p.batch * down * across;
  if (!fits || count > kMaxIndex32) return false;
  const StripItems items{static_cast<int32_t>(count),
                         {},
                         Divider<int32_t>(down),
                         Divider<int32_t>(across),
                         {},
                         {},
                         part_of(count, p.splits, kWeightThreads / kTileLanes)};
  const auto tiles = static_cast<unsigned>((p.groups / V - 1) / kTileLanes + 1);
  error = launch(depthwise_weight_pixels<T, S>, {{tiles, static_cast<unsigned>(p.splits)}, kWeightThreads},
                 stream, p, items);
  return true;
}

template <typename T, int K, int S>
bool launch_weight_planes(const Conv2dWeightParams& p, cudaStream_t stream, cudaError_t& error) {
  if (p.h.kernel != K || p.w.kernel != K || p.h.stride != S) return false;
  constexpr int kRows = kWeightRows<T, K, S>;
  const int64_t down = (p.h.result - 1) / kRows + 1, across = (p.w.result - 1) / kColumns<T> + 1;
  const int64_t count = p.batch * down * across;
  if (count > kMaxIndex32) return false;
  const bool wide = wide_source<T, K>(p.source, p.w) && wide_result<T>(p.gradient, p.w);
  const StripItems items{static_cast<int32_t>(count),
                         Divider<int32_t>(1),
                         Divider<int32_t>(down),
                         Divider<int32_t>(across),
                         wide,
                         wide,
                         part_of(count, p.splits, 32)};
  const LaunchShape shape{{static_cast<unsigned>(p.groups), static_cast<unsigned>(p.splits)}, kPlaneThreads};
  error = launch(depthwise_weight_planes<T, K, S>, shape, stream, p, items);
  return true;
}

}  // namespace

bool launch_conv2d_depthwise_weight(const Conv2dWeightParams& p, DType dtype, cudaStream_t stream,
                                    cudaError_t& error) {
  if (p.source_channels != 1 || p.result_channels != 1) return false;
  bool taken = false;
  const cudaError_t failure = with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = kVectorWidth<T>;
    if (!p.channels_last) {
      const bool square = p.h.stride == p.w.stride && p.h.dilation == 1 && p.w.dilation == 1;
      taken = square && (launch_weight_planes<T, 3, 1>(p, stream, error) ||
                         launch_weight_planes<T, 3, 2>(p, stream, error) ||
                         launch_weight_planes<T, 5, 1>(p, stream, error));
      if constexpr (!std::is_same_v<T, double>) {  // which does not fit into the registers
        taken = taken || (square && (launch_weight_planes<T, 5, 2>(p, stream, error) ||
                                     launch_weight_planes<T, 7, 1>(p, stream, error)));
      }
    } else if (launch_weight_pixels<T, 1>(p, stream, error) || launch_weight_pixels<T, 2>(p, stream, error)) {
      taken = true;
    } else if (p.groups % V == 0 && aligned(p.source, 16) && aligned(p.gradient, 16) &&
               p.batch * p.h.result * p.w.result <= kMaxIndex32) {
      const PixelItems items{static_cast<int32_t>(p.batch * p.h.result * p.w.result),
                             Divider<int32_t>(p.w.result), Divider<int32_t>(p.h.result)};
      const int32_t tiles = (p.groups / V + kLanes - 1) / kLanes;
      const LaunchShape shape{{static_cast<unsigned>(tiles), static_cast<unsigned>(p.splits)},
                              kWeightThreads};
      error = launch(depthwise_weight<T, V>, shape, stream, p, items);
      taken = true;
    }
    return cudaSuccess;
  });
  if (failure != cudaSuccess) error = failure;
  return taken || failure != cudaSuccess;
}

}  // namespace d2lfast::cuda
