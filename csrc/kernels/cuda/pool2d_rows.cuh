#pragma once

#include "pool2d_element.cuh"

// Max pooling in NCHW by 16 bytes of an input row a thread: square windows without dilation whose rows of
// input are as wide as the strides of a row of output, and both begin on the boundary of an access.
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

template <typename Window, typename T>
bool takes_rows(const PoolGeometry& g) {
  return g.kernel_h == Window::kernel && g.kernel_w == Window::kernel && g.stride_h == Window::stride &&
         g.stride_w == Window::stride && g.pad_h == Window::pad && g.pad_w == Window::pad &&
         g.dilation_h == 1 && g.dilation_w == 1 && g.width % kRowInputs<T> == 0 &&
         g.width == g.out_width * Window::stride;
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

// Items: 16 bytes of a row, in the input's order. Sums as gather_gradient, in the same order.
template <typename Window, typename T, typename P, typename Index>
D2LFAST_HOST_DEVICE void pool_rows_backward_item(Index item, const T* grad_output, const P* position,
                                                 T* grad_input, const PoolGeometry& g,
                                                 const PoolItems<Index>& items) {
  constexpr int kIn = kRowInputs<T>, kOut = kRowOutputs<Window, T>;
  constexpr int kBefore = Window::beyond, kWindows = kBefore + kOut + Window::pad;
  const PoolPlace<Index> at = place_of<1, true>(item, items);
  const Index image = at.image * (static_cast<Index>(g.out_width) * g.out_height);
  const int32_t first = at.w * kOut;  // window
  const int32_t y = at.h + Window::pad;
  const int32_t before = y - (Window::kernel - 1);
  const int32_t first_row = before > 0 ? ceil_divide(before, Window::stride) : 0;
  const int32_t last_row = y / Window::stride < g.out_height - 1 ? y / Window::stride : g.out_height - 1;
  Compute<T> sum[kIn] = {};
  for (int32_t oh = first_row; oh <= last_row; ++oh) {
    const int32_t row_tap = (y - oh * Window::stride) * Window::kernel;
    const Index row = image + (static_cast<Index>(oh) * g.out_width + first);
    T given[kWindows];
    P chosen[kWindows];
    const P nothing = static_cast<P>(Window::kernel * Window::kernel);
    if constexpr (kBefore > 0) {
      given[0] = first > 0 ? grad_output[row - 1] : T{};
      chosen[0] = first > 0 ? position[row - 1] : nothing;
    }
    if constexpr (Window::pad > 0) {
      const bool inside = first + kOut < g.out_width;
      given[kWindows - 1] = inside ? grad_output[row + kOut] : T{};
      chosen[kWindows - 1] = inside ? position[row + kOut] : nothing;
    }
    const Vector<T, kOut> gradients = load<kOut>(grad_output + row);
    const Vector<P, kOut> taps = load<kOut>(position + row);
#pragma unroll
    for (int v = 0; v < kOut; ++v) {
      given[kBefore + v] = gradients.lane[v];
      chosen[kBefore + v] = taps.lane[v];
    }
#pragma unroll
    for (int j = 0; j < kWindows; ++j) {
#pragma unroll
      for (int kw = 0; kw < Window::kernel; ++kw) {
        const int x = (j - kBefore) * Window::stride - Window::pad + kw;
        if (x < 0 || x >= kIn) continue;
        if (chosen[j] == static_cast<P>(row_tap + kw)) sum[x] += to_compute(given[j]);
      }
    }
  }
  Vector<T, kIn> result;
#pragma unroll
  for (int i = 0; i < kIn; ++i) result.lane[i] = from_compute<T>(sum[i]);
  store(grad_input + item * kIn, result);
}

}  // namespace d2lfast::cuda
