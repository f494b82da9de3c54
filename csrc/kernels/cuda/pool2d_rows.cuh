#pragma once

#include "pool2d_element.cuh"

// Max pooling in NCHW by several neighbours of a row a thread, for square windows without dilation: "rows" by
// 16 bytes, where rows of input are as wide as the strides of a row of output and both begin on the boundary
// of an access; "runs" by pairs, where rows are even; "bands" of gradients, by either or singly.
namespace d2lfast::cuda {

template <int Kernel, int Stride, int Pad>
struct RowWindow {
  static constexpr int kernel = Kernel, stride = Stride, pad = Pad;
  // Pixels that the last window of an access reaches beyond it; also the windows of the access before that
  // reach into this one.
  static constexpr int beyond = Kernel - Stride - Pad;
  static_assert(Pad < 2 && beyond >= 0 && beyond < 2);
};

template <typename T>
constexpr int kRowInputs = kVectorWidth<T>;
template <typename Window, typename T>
constexpr int kRowOutputs = kRowInputs<T> / Window::stride;

template <typename Window>
bool is_window(const PoolGeometry& g) {
  return g.kernel_h == Window::kernel && g.kernel_w == Window::kernel && g.stride_h == Window::stride &&
         g.stride_w == Window::stride && g.pad_h == Window::pad && g.pad_w == Window::pad &&
         g.dilation_h == 1 && g.dilation_w == 1;
}

// `multiple`: what a row is cut into.
template <typename Window>
bool takes_rows(const PoolGeometry& g, int multiple) {
  return is_window<Window>(g) && g.width % multiple == 0 && g.width == g.out_width * Window::stride;
}

// Items: groups of kRowOutputs neighbours of a row, in the output's order.
template <typename Window, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_rows_item(Index item, const T* input, T* output, P* position,
                                        const PoolGeometry& g, const PoolItems<Index>& items) {
  constexpr int kIn = kRowInputs<T>, kOut = kRowOutputs<Window, T>;
  constexpr int kLine = Window::pad + kIn + Window::beyond;
  const PoolPlace<Index> at = place_of<1, true>(item, items);
  const T* image = input + at.image * (static_cast<Index>(g.width) * g.height);
  const int32_t column = at.w * kIn, top = at.h * Window::stride - Window::pad;
  RunningMax<T, kOut, P> best;
  best.reset((top < 0 ? -top : 0) * Window::kernel);
  if (column == 0) best.position[0] += Window::pad;
  const T outside = from_compute<T>(-INFINITY);  // wins over nothing
#pragma unroll
  for (int kh = 0; kh < Window::kernel; ++kh) {
    const int32_t h = top + kh;
    if (h < 0 || h >= g.height) continue;
    const T* row = image + (static_cast<Index>(h) * g.width + column);
    T line[kLine];
    if constexpr (Window::pad > 0) line[0] = column > 0 ? row[-1] : outside;
    if constexpr (Window::beyond > 0) line[kLine - 1] = column + kIn < g.width ? row[kIn] : outside;
    const Vector<T, kIn> whole = load<kIn>(row);
#pragma unroll
    for (int i = 0; i < kIn; ++i) line[Window::pad + i] = whole.lane[i];
#pragma unroll
    for (int kw = 0; kw < Window::kernel; ++kw) {
      best.take(Lanes<T, kOut>::gather(line + kw, Window::stride), kh * Window::kernel + kw);
    }
  }
  best.write(output + item * kOut);
  if constexpr (!std::is_same_v<P, NoPosition>) best.write_taps(position + item * kOut);
}

constexpr int kBandInputs = 8;

// Items: kBandInputs pixels, or what is left of them, of the `stride` rows that the same windows cover. Sums
// as gather_gradient, in the same order. Wide: rows as takes_rows; `pairs`: of the input.
template <typename Window, bool kWide, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_band_item(Index item, const T* grad_output, const P* position, T* grad_input,
                                        const PoolGeometry& g, const PoolItems<Index>& items, bool pairs) {
  constexpr int kIn = kBandInputs, kStride = Window::stride, kSide = Window::kernel, kOut = kIn / kStride;
  constexpr int kCover = (kSide + kStride - 1) / kStride;
  constexpr int kBefore = Window::beyond, kWindows = kBefore + kOut + Window::pad;
  const PoolPlace<Index> at = place_of<1, true>(item, items);
  const Index image = at.image * (static_cast<Index>(g.out_width) * g.out_height);
  const int32_t first = at.w * kOut, last_oh = at.h + Window::pad / kStride;
  const P nothing = static_cast<P>(kSide * kSide);
  T given[kCover][kWindows];
  P chosen[kCover][kWindows];
#pragma unroll
  for (int i = 0; i < kCover; ++i) {
    const int32_t oh = last_oh - (kCover - 1) + i;
    const bool row_inside = oh >= 0 && oh < g.out_height;
    const uint32_t limit = row_inside ? g.out_width : 0;
    const Index row = image + (static_cast<Index>(oh) * g.out_width + first);
    const T* row_gradients = computed_once(grad_output + row);
    const P* row_taps = computed_once(position + row);
#pragma unroll
    for (int j = 0; j < kWindows; ++j) {
      if (kWide && j >= kBefore && j < kBefore + kOut) continue;
      const bool inside = static_cast<uint32_t>(first - kBefore + j) < limit;
      given[i][j] = inside ? row_gradients[j - kBefore] : T{};
      chosen[i][j] = inside ? row_taps[j - kBefore] : nothing;
    }
    if constexpr (kWide) {
      constexpr int V = kOut < kVectorWidth<T> ? kOut : kVectorWidth<T>;
      Lanes<P, kOut> taps = Lanes<P, kOut>::of(nothing);
      if (row_inside) taps = Lanes<P, kOut>::read(row_taps);
#pragma unroll
      for (int v = 0; v < kOut; v += V) {
        Lanes<T, V> gradients = Lanes<T, V>::of(T{});
        if (row_inside) gradients = Lanes<T, V>::read(row_gradients + v);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          given[i][kBefore + v + k] = gradients.lane(k);
          chosen[i][kBefore + v + k] = taps.lane(v + k);
        }
      }
    }
  }
  Compute<T> sum[kStride][kIn] = {};
#pragma unroll
  for (int i = 0; i < kCover; ++i) {
#pragma unroll
    for (int j = 0; j < kWindows; ++j) {
      const Compute<T> gradient = to_compute(given[i][j]);
#pragma unroll
      for (int tap = 0; tap < kStride * kSide; ++tap) {
        const int y = tap / kSide, kw = tap % kSide;
        const int kh = y + (kCover - 1 - i) * kStride, x = (j - kBefore) * kStride - Window::pad + kw;
        if (kh >= kSide || x < 0 || x >= kIn) continue;
        if (chosen[i][j] == static_cast<P>(kh * kSide + kw)) sum[y][x] += gradient;
      }
    }
  }
  const int32_t column = at.w * kIn;
#pragma unroll
  for (int y = 0; y < kStride; ++y) {
    const int32_t h = last_oh * kStride + y - Window::pad;
    if (h < 0 || h >= g.height) continue;
    T* row = grad_input + ((at.image * g.height + h) * static_cast<Index>(g.width) + column);
    const auto write = [&](auto access) {
      constexpr int V = decltype(access)::value;
#pragma unroll
      for (int k = 0; k < kIn; k += V) {
        if (!kWide && column + k >= g.width) return;
        Vector<T, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) result.lane[v] = from_compute<T>(sum[y][k + v]);
        store(row + k, result);
      }
    };
    if constexpr (kWide) {
      write(std::integral_constant<int, kVectorWidth<T>>{});
    } else if (pairs) {
      write(std::integral_constant<int, 2>{});
    } else {
      write(std::integral_constant<int, 1>{});
    }
  }
}

}  // namespace d2lfast::cuda
