#pragma once

#include "conv2d.h"

namespace d2lfast::cuda {

// Weight gradients of 16-bit tensors on tensor cores. How many parts the partial sums have; 0: the case is
// not one of theirs.
int32_t conv2d_weight_products_splits(const Conv2dWeightParams& params, DType dtype);

// Whether the case is one of theirs: then it is launched, and `error` says how that went.
bool launch_conv2d_weight_products(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream,
                                   cudaError_t& error);

}  // namespace d2lfast::cuda
