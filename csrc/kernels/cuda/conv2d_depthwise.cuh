#pragma once

#include <type_traits>

#include "conv2d_element.cuh"
#include "device.cuh"

// One channel a group and as many results. A thread takes a tile of results, some rows of four columns: of a
// plane in NCHW, where neighbouring threads are neighbouring columns; of 8 or 16 bytes of channels in
// channels_last, where they are neighbours along the channels. Each source element that the tile meets is
// read and converted once.
namespace d2lfast::cuda {

template <typename T>
constexpr int kColumns = sizeof(T) <= 4 ? 4 : 2;

// Item: in NCHW tiles along a row fastest, then tiles down, then planes; in channels_last groups of channels
// fastest, then tiles along a row and down, images.
struct DepthwiseTiles {
  int32_t count;
  Divider<int32_t> channels, down, across;
  bool wide_source = false, wide_result = false;  // NCHW: rows begin on boundaries of four elements
  int32_t part = 0;                               // of a block, of a weight's gradient; the last may be empty
};

// Whether a tile's columns are read at once.
template <typename T>
constexpr bool kVectors = sizeof(T) <= 4;

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

// Rows of a tile in NCHW, what 128 registers hold.
template <typename T, int K, int S>
constexpr int kPlaneRows = K == 7           ? 1
                           : sizeof(T) == 8 ? 2
                           : sizeof(T) == 4 ? (K == 3 ? 4 : 2)
                           : S == 1         ? (K == 3 ? 8 : 4)
                           : K == 3         ? 4
                                            : 2;

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
        const bool valid = inside && is_below(column + i, columns);
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
    const bool inside = is_below(row, h.source);
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

// channels_last: of each tile, channels and rows.
template <typename T>
constexpr int kLaneChannels = sizeof(T) == 8 ? 2 : 4;
template <typename T, int K, int S>
constexpr int kPixelRows = K == 3 && S == 1 ? 2 : 1;

// In channels_last, the source rows of a tile whose first result is at a row and column of an image that
// begins at `source`, from the thread's channels on.
template <typename T, int K, int S>
struct PixelRows {
  static constexpr int kReach = (kColumns<T> - 1) * S + K;
  const Conv2dAxis &h, &w;
  const int32_t channels, left;
  int32_t row;
  const T* from;

  __device__ __forceinline__ PixelRows(const T* source, int32_t all_channels, const Conv2dAxis& down,
                                       const Conv2dAxis& across, int32_t result_row, int32_t result_column)
      : h(down),
        w(across),
        channels(all_channels),
        left(result_column * S - w.pad),
        row(result_row * S - h.pad),
        from(computed_once(source + static_cast<int64_t>(row * w.source + left) * channels)) {}

  // The next row's vectors that exist, which are all with kInside, and zeros.
  template <bool kInside>
  __device__ __forceinline__ void next(Lanes<T, kLaneChannels<T>> (&value)[kReach]) {
    const bool row_inside = kInside || is_below(row, h.source);
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
      value[j] = Lanes<T, kLaneChannels<T>>::of(T{});
      const bool inside = kInside || is_below(left + j, w.source);
      if (row_inside && inside) value[j] = Lanes<T, kLaneChannels<T>>::read(from + j * channels);
    }
    from = computed_once(from + w.source * channels);
    ++row;
  }
};

template <typename T, int K>
bool wide_source(const void* source, const Conv2dAxis& w) {
  return kVectors<T> && w.pad == K / 2 && w.source % kColumns<T> == 0 &&
         aligned(source, kColumns<T> * sizeof(T));
}
template <typename T>
bool wide_result(const void* result, const Conv2dAxis& w) {
  return kVectors<T> && w.result % kColumns<T> == 0 && aligned(result, kColumns<T> * sizeof(T));
}

// The tiles of `rows` rows, unless 32 bits cannot count them.
template <typename T>
bool tiles_of(int64_t batch, int64_t channels, const Conv2dAxis& h, const Conv2dAxis& w, int rows,
              DepthwiseTiles& tiles) {
  const int64_t down = (h.result - 1) / rows + 1, across = (w.result - 1) / kColumns<T> + 1;
  const int64_t count = batch * channels * down * across;
  if (count > kMaxIndex32) return false;
  tiles = {static_cast<int32_t>(count), Divider<int32_t>(channels), Divider<int32_t>(down),
           Divider<int32_t>(across)};
  return true;
}

}  // namespace d2lfast::cuda
