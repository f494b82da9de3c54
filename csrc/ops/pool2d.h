#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../kernels/pool2d.h"
#include "visible.h"

namespace d2lfast::ops {

struct Pool2dShape {
  int64_t n, c, h, w, oh, ow;
  Window2d window;
};

// Checks the arguments of windowed pooling of a batched image [N,C,H,W] as torch does. An empty `stride`
// means the window's size.
D2LFAST_VISIBLE Pool2dShape check_pool2d(const char* op, const at::Tensor& input, at::IntArrayRef kernel_size,
                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                         at::IntArrayRef dilation, bool ceil_mode);

// The same from the input's size, for backward operators, whose output size is known.
D2LFAST_VISIBLE Pool2dShape pool2d_shape(const at::Tensor& output, at::IntArrayRef input_size,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation);

// Bytes of a window position: one, unless the window has more than 256 elements.
inline int position_bytes(const Window2d& window) { return window.kernel_h * window.kernel_w <= 256 ? 1 : 4; }

// Of average pooling: 0 where the window's size divides.
inline int64_t divisor_of(std::optional<int64_t> divisor_override) {
  TORCH_CHECK(!divisor_override.has_value() || *divisor_override != 0, "divisor must be not zero");
  return divisor_override.value_or(0);
}

// Dense tensors of the given layout: an image and its means, or backward the means' gradient and the image's.
inline AvgPool2dParams average_params(const at::Tensor& source, const at::Tensor& result,
                                      const Pool2dShape& s, bool count_include_pad, int64_t divisor,
                                      bool channels_last) {
  return {source.const_data_ptr(),
          result.mutable_data_ptr(),
          s.n,
          s.c,
          s.h,
          s.w,
          s.oh,
          s.ow,
          s.window,
          count_include_pad,
          divisor,
          channels_last};
}

}  // namespace d2lfast::ops
