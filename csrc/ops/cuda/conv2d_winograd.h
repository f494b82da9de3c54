#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/activation.h"
#include "../conv2d_algorithm.h"

namespace d2lfast::ops {

// A 3x3 convolution of stride 1 in float32, or `transposed` its data gradient, into `result` [N,R,OH,OW],
// contiguous or channels_last. bias: [R] or null.
void run_cuda_winograd(const Conv2dShape& shape, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor* bias, Activation activation, bool transposed,
                       const at::Tensor& result);

}  // namespace d2lfast::ops
