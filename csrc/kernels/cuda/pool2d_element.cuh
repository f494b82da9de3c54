#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "launch.cuh"
#include "vector.cuh"

// What one thread of the pooling kernels computes. V neighbouring channels of channels_last tensors share a
// thread; NCHW is the case V = 1. Both differ only in the strides between pixels.
namespace d2lfast::cuda {

// Coordinates are int32, which the launchers check; offsets into tensors are int32 or int64.
struct PoolGeometry {
  int32_t channels;  // from a pixel to the next: C in channels_last, 1 in NCHW
  int32_t height, width, out_height, out_width;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Linear order of the groups of V channels in the tensor that a kernel writes: its memory order.
template <typename Index>
struct PoolItems {
  Index count;
  Divider<Index> groups, width, height;

  static PoolItems of(int64_t images, int64_t channels, int64_t height, int64_t width, int lanes) {
    const int64_t groups = channels / lanes;
    return {static_cast<Index>(images * groups * height * width), Divider<Index>(groups),
            Divider<Index>(width), Divider<Index>(height)};
  }
};

template <typename Index>
struct PoolPlace {
  Index image;
  int32_t h, w, channel;
};

template <int V, bool Planar, typename Index>
D2LFAST_HOST_DEVICE PoolPlace<Index> place_of(Index item, const PoolItems<Index>& items) {
  PoolPlace<Index> place;
  place.channel = 0;
  if constexpr (!Planar) place.channel = static_cast<int32_t>(take_remainder(item, items.groups)) * V;
  place.w = static_cast<int32_t>(take_remainder(item, items.width));
  place.h = static_cast<int32_t>(take_remainder(item, items.height));
  place.image = item;
  return place;
}

// Sizes known at compile time unroll the window; 0 leaves all to the geometry. A fixed window is square and
// has no dilation.
template <int Kernel, int Stride>
struct FixedWindow {
  static constexpr int kernel = Kernel;
  static constexpr int stride = Stride;
};
using AnyWindow = FixedWindow<0, 0>;

// Forward without saved positions.
struct NoPosition {};

template <typename T>
D2LFAST_HOST_DEVICE bool beats(T value, T best) {
  return value > best || value != value;
}

D2LFAST_HOST_DEVICE int32_t ceil_divide(int32_t value, int32_t divisor) {
  return (value + divisor - 1) / divisor;
}

// Dilation is nearly always 1, and the whole grid takes the same side of this branch.
D2LFAST_HOST_DEVICE int32_t in_taps(int32_t distance, int32_t dilation) {
  return dilation == 1 ? distance : distance / dilation;
}

// The taps of a window that lie inside the image: first <= tap < last (empty if last <= first).
D2LFAST_HOST_DEVICE void clip_taps(int32_t start, int32_t dilation, int32_t size, int32_t kernel,
                                   int32_t& first, int32_t& last) {
  first = start < 0 ? in_taps(-start + dilation - 1, dilation) : 0;
  const int32_t inside = start < size ? in_taps(size - start + dilation - 1, dilation) : 0;
  last = inside < kernel ? inside : kernel;
}

template <typename T, int V>
struct RunningMax {
  Vector<T, V> value;
  int32_t position[V];

  // A window wholly in the padding keeps this start.
  D2LFAST_HOST_DEVICE void reset(int32_t first_position) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      value.lane[v] = from_compute<T>(-INFINITY);
      position[v] = first_position;
    }
  }

  // In scanning order: the first of equals wins, and the last NaN.
  D2LFAST_HOST_DEVICE void take(const Vector<T, V>& next, int32_t next_position) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (beats(to_compute(next.lane[v]), to_compute(value.lane[v]))) {
        value.lane[v] = next.lane[v];
        position[v] = next_position;
      }
    }
  }
};

// `image` is the pixel (0, 0) of the thread's channels. `row` and `pixel` are the elements between
// neighbours in height and in width.
template <typename Window, int V, typename T, typename Index>
D2LFAST_HOST_DEVICE RunningMax<T, V> max_of_window(const T* image, const PoolGeometry& g, Index row,
                                                   Index pixel, int32_t oh, int32_t ow) {
  RunningMax<T, V> best;
  if constexpr (Window::kernel > 0) {
    constexpr int kSide = Window::kernel;
    const int32_t top = oh * Window::stride - g.pad_h;
    const int32_t left = ow * Window::stride - g.pad_w;
    // The padding of such a window is less than its side, so the first tap inside is at -top, -left.
    best.reset((top < 0 ? -top : 0) * kSide + (left < 0 ? -left : 0));
#pragma unroll
    for (int kh = 0; kh < kSide; ++kh) {
      const int32_t h = top + kh;
      if (h < 0 || h >= g.height) continue;
#pragma unroll
      for (int kw = 0; kw < kSide; ++kw) {
        const int32_t w = left + kw;
        if (w < 0 || w >= g.width) continue;
        best.take(load<V>(image + (h * row + w * pixel)), kh * kSide + kw);
      }
    }
  } else {
    const int32_t top = oh * g.stride_h - g.pad_h;
    const int32_t left = ow * g.stride_w - g.pad_w;
    int32_t first_h, last_h, first_w, last_w;
    clip_taps(top, g.dilation_h, g.height, g.kernel_h, first_h, last_h);
    clip_taps(left, g.dilation_w, g.width, g.kernel_w, first_w, last_w);
    const bool empty = last_h <= first_h || last_w <= first_w;
    best.reset(empty ? 0 : first_h * g.kernel_w + first_w);
    for (int32_t kh = first_h; kh < last_h; ++kh) {
      const T* line = image + (top + kh * g.dilation_h) * row;
      for (int32_t kw = first_w; kw < last_w; ++kw) {
        best.take(load<V>(line + (left + kw * g.dilation_w) * pixel), kh * g.kernel_w + kw);
      }
    }
  }
  return best;
}

// Gradient of the input pixel (h, w) from the windows that cover it, added in their order: no atomics, and
// the same sum in every run. `grad` and `positions` are the pixel (0, 0) of the thread's channels in the
// output; `row` and `pixel` are the output's.
template <typename Window, int V, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE Vector<T, V> gather_gradient(const T* grad, const P* positions, const PoolGeometry& g,
                                                 Index row, Index pixel, int32_t h, int32_t w) {
  constexpr bool kFixed = Window::kernel > 0;
  const int32_t kernel_h = kFixed ? Window::kernel : g.kernel_h;
  const int32_t kernel_w = kFixed ? Window::kernel : g.kernel_w;
  const int32_t stride_h = kFixed ? Window::stride : g.stride_h;
  const int32_t stride_w = kFixed ? Window::stride : g.stride_w;
  const int32_t dilation_h = kFixed ? 1 : g.dilation_h;
  const int32_t dilation_w = kFixed ? 1 : g.dilation_w;

  Compute<T> sum[V] = {};
  const int32_t y = h + g.pad_h;
  const int32_t x = w + g.pad_w;
  const int32_t before_y = y - (kernel_h - 1) * dilation_h;
  const int32_t before_x = x - (kernel_w - 1) * dilation_w;
  const int32_t first_oh = before_y > 0 ? ceil_divide(before_y, stride_h) : 0;
  const int32_t first_ow = before_x > 0 ? ceil_divide(before_x, stride_w) : 0;
  const int32_t end_oh = y / stride_h + 1 < g.out_height ? y / stride_h + 1 : g.out_height;
  const int32_t end_ow = x / stride_w + 1 < g.out_width ? x / stride_w + 1 : g.out_width;
  for (int32_t oh = first_oh; oh < end_oh; ++oh) {
    const int32_t kh = in_taps(y - oh * stride_h, dilation_h);
    if (kh * dilation_h != y - oh * stride_h) continue;
    for (int32_t ow = first_ow; ow < end_ow; ++ow) {
      const int32_t kw = in_taps(x - ow * stride_w, dilation_w);
      if (kw * dilation_w != x - ow * stride_w) continue;
      const Index at = oh * row + ow * pixel;
      const P tap = static_cast<P>(kh * kernel_w + kw);
      const Vector<P, V> chosen = load<V>(positions + at);
      const Vector<T, V> given = load<V>(grad + at);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (chosen.lane[v] == tap) sum[v] += to_compute(given.lane[v]);
      }
    }
  }
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.lane[v] = from_compute<T>(sum[v]);
  return result;
}

// One thread's items of the three kernels. `input`, `output`, `grad` and `position` are whole tensors, dense
// in the layout of the geometry.
template <typename Window, int V, bool Planar, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_item(Index item, const T* input, T* output, P* position, const PoolGeometry& g,
                                   const PoolItems<Index>& items) {
  const PoolPlace<Index> at = place_of<V, Planar>(item, items);
  const Index pixel = Planar ? 1 : g.channels;
  const Index row = pixel * g.width;
  const T* image = input + (at.image * (row * g.height) + at.channel);
  const RunningMax<T, V> best = max_of_window<Window, V>(image, g, row, pixel, at.h, at.w);
  store(output + item * V, best.value);
  if constexpr (!std::is_same_v<P, NoPosition>) {
    Vector<P, V> tap;
#pragma unroll
    for (int v = 0; v < V; ++v) tap.lane[v] = static_cast<P>(best.position[v]);
    store(position + item * V, tap);
  }
}

template <typename Window, int V, bool Planar, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_backward_item(Index item, const T* grad_output, const P* position,
                                            T* grad_input, const PoolGeometry& g,
                                            const PoolItems<Index>& items) {
  const PoolPlace<Index> at = place_of<V, Planar>(item, items);
  const Index pixel = Planar ? 1 : g.channels;
  const Index row = pixel * g.out_width;
  const Index image = at.image * (row * g.out_height) + at.channel;
  store(grad_input + item * V,
        gather_gradient<Window, V>(grad_output + image, position + image, g, row, pixel, at.h, at.w));
}

// The flat index into H * W that torch returns, of the window position at an output element.
template <typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_index_item(Index item, const P* position, int64_t* index, const PoolGeometry& g,
                                         const PoolItems<Index>& items) {
  const PoolPlace<Index> at = place_of<1, false>(item, items);
  const int64_t tap = position[item];
  const int64_t kh = tap / g.kernel_w;
  const int64_t kw = tap - kh * g.kernel_w;
  const int64_t h = static_cast<int64_t>(at.h) * g.stride_h - g.pad_h + kh * g.dilation_h;
  const int64_t w = static_cast<int64_t>(at.w) * g.stride_w - g.pad_w + kw * g.dilation_w;
  index[item] = h * g.width + w;
}

}  // namespace d2lfast::cuda
