#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>

#include "../kernels/activation.h"
#include "conv2d_algorithm.h"
#include "visible.h"

namespace d2lfast::ops {

// Checks the arguments of a convolution of a batched input as torch does, and names its shape.
D2LFAST_VISIBLE Conv2dShape check_conv2d(const at::Tensor& input, const at::Tensor& weight,
                                         const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// A residual, batched and laid out as `output`, to which it is to be added; undefined without one.
D2LFAST_VISIBLE at::Tensor conv2d_residual(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                                           const at::Tensor& output);

// Residual and activation behind torch's own convolution, which is overwritten.
D2LFAST_VISIBLE at::Tensor conv2d_epilogue(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                                           Activation activation, const at::Tensor& output);

}  // namespace d2lfast::ops
