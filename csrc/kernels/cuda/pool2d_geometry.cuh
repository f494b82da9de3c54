#pragma once

#include <algorithm>

#include "device.cuh"
#include "pool2d_element.cuh"

// Host code that the pooling launchers share.
namespace d2lfast::cuda {

// NCHW is one-channel images, N * C of them.
template <typename Params>
int64_t images_of(const Params& p) {
  return p.channels_last ? p.n : p.n * p.c;
}

template <typename Params>
bool offsets_fit(const Params& p) {
  return p.n * p.c * std::max(p.h * p.w, p.oh * p.ow) <= kMaxIndex32;
}

// Whether every coordinate, and every sum that the kernels form of coordinates, fits into int32.
inline bool axis_fits(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return std::max({size, kernel, stride, pad, dilation}) <= kMaxIndex32 &&
         size + 2 * pad + kernel * dilation + stride <= kMaxIndex32;
}

template <typename Params>
bool coordinates_fit(const Params& p) {
  const auto& window = p.window;
  return axis_fits(p.h, window.kernel_h, window.stride_h, window.pad_h, window.dilation_h) &&
         axis_fits(p.w, window.kernel_w, window.stride_w, window.pad_w, window.dilation_w) &&
         window.kernel_h * window.kernel_w <= kMaxIndex32 && p.c <= kMaxIndex32;
}

template <typename Params>
PoolGeometry geometry_of(const Params& p) {
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  const auto& window = p.window;
  return {narrow(p.channels_last ? p.c : 1),
          narrow(p.h),
          narrow(p.w),
          narrow(p.oh),
          narrow(p.ow),
          narrow(window.kernel_h),
          narrow(window.kernel_w),
          narrow(window.stride_h),
          narrow(window.stride_w),
          narrow(window.pad_h),
          narrow(window.pad_w),
          narrow(window.dilation_h),
          narrow(window.dilation_w)};
}

// `g`: what has the fields of a window.
template <typename Window, typename Geometry>
bool matches(const Geometry& g) {
  return g.kernel_h == Window::kernel && g.kernel_w == Window::kernel && g.stride_h == Window::stride &&
         g.stride_w == Window::stride && g.dilation_h == 1 && g.dilation_w == 1;
}

}  // namespace d2lfast::cuda
