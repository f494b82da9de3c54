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

template <typename T, int V, typename P = int32_t>
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
  D2LFAST_HOST_DEVICE void take(const Lanes<T, V>& next, int32_t next_position) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (beats(to_compute(next.lane(v)), to_compute(value.lane[v]))) {
        value.lane[v] = next.lane(v);
        position[v] = next_position;
      }
    }
  }

  static D2LFAST_HOST_DEVICE RunningMax of(const Lanes<T, V>& value, int32_t position) {
    RunningMax single;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      single.value.lane[v] = value.lane(v);
      single.position[v] = position;
    }
    return single;
  }

  D2LFAST_HOST_DEVICE void move(int32_t positions) {
#pragma unroll
    for (int v = 0; v < V; ++v) position[v] += positions;
  }

  // What comes after all of this in scanning order.
  D2LFAST_HOST_DEVICE void take(const RunningMax& later) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (beats(to_compute(later.value.lane[v]), to_compute(value.lane[v]))) {
        value.lane[v] = later.value.lane[v];
        position[v] = later.position[v];
      }
    }
  }

  D2LFAST_HOST_DEVICE T lane(int v) const { return value.lane[v]; }
  D2LFAST_HOST_DEVICE int32_t tap(int v) const { return position[v]; }
  D2LFAST_HOST_DEVICE void write(T* output) const { store(output, value); }
  D2LFAST_HOST_DEVICE void write_taps(P* output, int32_t less = 0) const {
    Vector<P, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.lane[v] = static_cast<P>(position[v] - less);
    store(output, result);
  }
};

// All ones in the halves whose `value` beats `best`.
template <typename T>
D2LFAST_HOST_DEVICE uint32_t beats_in_halves(uint32_t value, uint32_t best) {
#ifdef __CUDA_ARCH__
  using Pair = std::conditional_t<std::is_same_v<T, Float16>, __half2, __nv_bfloat162>;
  const Pair next = reinterpret_cast<const Pair&>(value);
  return __hgt2_mask(next, reinterpret_cast<const Pair&>(best)) | __hneu2_mask(next, next);
#else
  const auto half = [&](int shift) {
    return beats(to_compute(T{static_cast<uint16_t>(value >> shift)}),
                 to_compute(T{static_cast<uint16_t>(best >> shift)}));
  };
  return (half(0) ? 0xffffu : 0u) | (half(16) ? 0xffff0000u : 0u);
#endif
}

// Values of 16 bits with positions that fit into 16: two in each register, compared and chosen at once.
template <typename T, int V, typename P>
  requires(sizeof(T) == 2 && V % 2 == 0 && sizeof(P) == 1)
struct RunningMax<T, V, P> {
  Lanes<T, V> value;
  uint32_t position[V / 2];

  D2LFAST_HOST_DEVICE void reset(int32_t first_position) {
    value = Lanes<T, V>::of(from_compute<T>(-INFINITY));
#pragma unroll
    for (int i = 0; i < V / 2; ++i) position[i] = static_cast<uint32_t>(first_position) * 0x10001u;
  }

  D2LFAST_HOST_DEVICE void take(const Lanes<T, V>& next, int32_t next_position) {
    const uint32_t both = static_cast<uint32_t>(next_position) * 0x10001u;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const uint32_t chosen = beats_in_halves<T>(next.word[i], value.word[i]);
      value.word[i] = (next.word[i] & chosen) | (value.word[i] & ~chosen);
      position[i] = (both & chosen) | (position[i] & ~chosen);
    }
  }

  static D2LFAST_HOST_DEVICE RunningMax of(const Lanes<T, V>& value, int32_t position) {
    RunningMax single;
    single.value = value;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) single.position[i] = static_cast<uint32_t>(position) * 0x10001u;
    return single;
  }

  D2LFAST_HOST_DEVICE void move(int32_t positions) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) position[i] += static_cast<uint32_t>(positions) * 0x10001u;
  }

  D2LFAST_HOST_DEVICE void take(const RunningMax& later) {
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const uint32_t chosen = beats_in_halves<T>(later.value.word[i], value.word[i]);
      value.word[i] = (later.value.word[i] & chosen) | (value.word[i] & ~chosen);
      position[i] = (later.position[i] & chosen) | (position[i] & ~chosen);
    }
  }

  D2LFAST_HOST_DEVICE T lane(int v) const { return value.lane(v); }
  D2LFAST_HOST_DEVICE int32_t tap(int v) const { return position[v / 2] >> 16 * (v % 2) & 0xffff; }
  D2LFAST_HOST_DEVICE void write(T* output) const { value.write(output); }
  D2LFAST_HOST_DEVICE void write_taps(P* output, int32_t less = 0) const {
    Vector<P, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.lane[v] = static_cast<P>(tap(v) - less);
    store(output, result);
  }
};

// `image` is the pixel (0, 0) of the thread's channels. `row` and `pixel` are the elements between
// neighbours in height and in width.
template <typename Window, int V, typename P, typename T, typename Index>
D2LFAST_HOST_DEVICE RunningMax<T, V, P> max_of_window(const T* image, const PoolGeometry& g, Index row,
                                                      Index pixel, int32_t oh, int32_t ow) {
  RunningMax<T, V, P> best;
  if constexpr (Window::kernel > 0) {
    constexpr int kSide = Window::kernel;
    const int32_t top = oh * Window::stride - g.pad_h;
    const int32_t left = ow * Window::stride - g.pad_w;
    // The padding of such a window is less than its side, so the first tap inside is at -top, -left.
    best.reset((top < 0 ? -top : 0) * kSide + (left < 0 ? -left : 0));
    const auto outside = Lanes<T, V>::of(from_compute<T>(-INFINITY));  // wins over nothing
    const Index corner = top * row + left * pixel;
    bool inside[kSide];
#pragma unroll
    for (int kw = 0; kw < kSide; ++kw) inside[kw] = left + kw >= 0 && left + kw < g.width;
#pragma unroll
    for (int kh = 0; kh < kSide; ++kh) {
      const int32_t h = top + kh;
      if (h < 0 || h >= g.height) continue;
      // A row's loads are all under way before the first is waited for.
      Lanes<T, V> line[kSide];
#pragma unroll
      for (int kw = 0; kw < kSide; ++kw) {
        line[kw] = outside;
        if (inside[kw]) line[kw] = Lanes<T, V>::read(image + (corner + kh * row + kw * pixel));
      }
#pragma unroll
      for (int kw = 0; kw < kSide; ++kw) best.take(line[kw], kh * kSide + kw);
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
        best.take(Lanes<T, V>::read(line + (left + kw * g.dilation_w) * pixel), kh * g.kernel_w + kw);
      }
    }
  }
  return best;
}

// Gradient of the input pixel (h, w) from the windows that cover it, added in their order: no atomics, and
// the same sum in every run. `grad` and `positions` are the pixel (0, 0) of the thread's channels in the
// output; `row` and `pixel` are the output's.
template <int V, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE Vector<T, V> gather_gradient(const T* grad, const P* positions, const PoolGeometry& g,
                                                 Index row, Index pixel, int32_t h, int32_t w) {
  Compute<T> sum[V] = {};
  const int32_t y = h + g.pad_h;
  const int32_t x = w + g.pad_w;
  const int32_t before_y = y - (g.kernel_h - 1) * g.dilation_h;
  const int32_t before_x = x - (g.kernel_w - 1) * g.dilation_w;
  const int32_t first_oh = before_y > 0 ? ceil_divide(before_y, g.stride_h) : 0;
  const int32_t first_ow = before_x > 0 ? ceil_divide(before_x, g.stride_w) : 0;
  const int32_t end_oh = y / g.stride_h + 1 < g.out_height ? y / g.stride_h + 1 : g.out_height;
  const int32_t end_ow = x / g.stride_w + 1 < g.out_width ? x / g.stride_w + 1 : g.out_width;
  for (int32_t oh = first_oh; oh < end_oh; ++oh) {
    const int32_t kh = in_taps(y - oh * g.stride_h, g.dilation_h);
    if (kh * g.dilation_h != y - oh * g.stride_h) continue;
    for (int32_t ow = first_ow; ow < end_ow; ++ow) {
      const int32_t kw = in_taps(x - ow * g.stride_w, g.dilation_w);
      if (kw * g.dilation_w != x - ow * g.stride_w) continue;
      const Index at = oh * row + ow * pixel;
      const P tap = static_cast<P>(kh * g.kernel_w + kw);
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
  const auto best = max_of_window<Window, V, P>(image, g, row, pixel, at.h, at.w);
  best.write(output + item * V);
  if constexpr (!std::is_same_v<P, NoPosition>) best.write_taps(position + item * V);
}

// What one thread of the gradient writes along an axis: the stride's pixels between two window starts, which
// the same windows cover; of any window, one pixel.
template <typename Window>
D2LFAST_HOST_DEVICE int32_t gradient_blocks(int32_t size, int32_t pad) {
  if constexpr (Window::kernel == 0) return size;
  constexpr int32_t kStride = Window::kernel > 0 ? Window::stride : 1;
  return (size + pad - 1) / kStride - pad / kStride + 1;
}

// The block (at.h, at.w) of pixels from the windows that cover it: sums as gather_gradient, in its order.
template <typename Window, int V, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void gather_block(const T* grad, const P* positions, T* result, const PoolGeometry& g,
                                      Index pixel, const PoolPlace<Index>& at) {
  constexpr int kSide = Window::kernel, kStride = Window::stride, kCover = (kSide + kStride - 1) / kStride;
  const int32_t last_oh = at.h + g.pad_h / kStride, last_ow = at.w + g.pad_w / kStride;
  const Index row = pixel * g.out_width;
  bool inside[kCover];
#pragma unroll
  for (int j = 0; j < kCover; ++j) {
    const int32_t ow = last_ow - (kCover - 1) + j;
    inside[j] = ow >= 0 && ow < g.out_width;
  }
  Compute<T> sum[kStride][kStride][V] = {};
#pragma unroll
  for (int i = 0; i < kCover; ++i) {
    const int32_t oh = last_oh - (kCover - 1) + i;
    if (oh < 0 || oh >= g.out_height) continue;
    const Index from = oh * row + (last_ow - (kCover - 1)) * pixel;
    Lanes<P, V> chosen[kCover];
    Lanes<T, V> given[kCover];
#pragma unroll
    for (int j = 0; j < kCover; ++j) {
      chosen[j] = Lanes<P, V>::of(static_cast<P>(kSide * kSide));
      given[j] = Lanes<T, V>::of(T{});
      if (inside[j]) {
        chosen[j] = Lanes<P, V>::read(positions + (from + j * pixel));
        given[j] = Lanes<T, V>::read(grad + (from + j * pixel));
      }
    }
#pragma unroll
    for (int j = 0; j < kCover; ++j) {
      Compute<T> gradient[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gradient[v] = to_compute(given[j].lane(v));
#pragma unroll
      for (int y = 0; y < kStride; ++y) {
#pragma unroll
        for (int x = 0; x < kStride; ++x) {
          const int kh = y + (kCover - 1 - i) * kStride, kw = x + (kCover - 1 - j) * kStride;
          if (kh >= kSide || kw >= kSide) continue;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (chosen[j].lane(v) == static_cast<P>(kh * kSide + kw)) sum[y][x][v] += gradient[v];
          }
        }
      }
    }
  }
#pragma unroll
  for (int y = 0; y < kStride; ++y) {
    const int32_t h = last_oh * kStride + y - g.pad_h;
#pragma unroll
    for (int x = 0; x < kStride; ++x) {
      const int32_t w = last_ow * kStride + x - g.pad_w;
      if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
      Vector<T, V> done;
#pragma unroll
      for (int v = 0; v < V; ++v) done.lane[v] = from_compute<T>(sum[y][x][v]);
      store(result + (static_cast<Index>(h) * g.width + w) * pixel, done);
    }
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
  if constexpr (Window::kernel > 0) {
    T* result = grad_input + (at.image * (pixel * g.width * g.height) + at.channel);
    gather_block<Window, V>(grad_output + image, position + image, result, g, pixel, at);
  } else {
    store(grad_input + item * V,
          gather_gradient<V>(grad_output + image, position + image, g, row, pixel, at.h, at.w));
  }
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
