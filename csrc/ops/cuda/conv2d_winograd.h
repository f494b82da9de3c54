#pragma once

#include <ATen/core/Tensor.h>

#include "../conv2d_algorithm.h"
#include "conv2d_epilogue.h"

namespace d2lfast::ops {

// A 3x3 convolution of stride 1 in float32, or `transposed` its data gradient, into `result` [N,R,OH,OW],
// contiguous or channels_last.
void run_cuda_winograd(const Conv2dShape& shape, const at::Tensor& input, const at::Tensor& weight,
                       const Conv2dEpilogue& epilogue, bool transposed, const at::Tensor& result);

// The gradient of its weight, of the weight's layout; `format`: of the images.
at::Tensor cuda_winograd_weight_gradient(const Conv2dShape& shape, const at::Tensor& gradient,
                                         const at::Tensor& input, const at::Tensor& weight,
                                         at::MemoryFormat format);

}  // namespace d2lfast::ops
