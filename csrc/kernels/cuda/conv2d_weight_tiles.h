#pragma once

#include "conv2d.h"

namespace d2lfast::cuda {

// Weight gradients of float32 with few channels per group, exact. How many parts the partial sums have; 0:
// the case is not one of theirs.
int32_t conv2d_weight_tiles_splits(const Conv2dWeightParams& params, DType dtype);

// Whether the case is one of theirs: then it is launched, and `error` says how that went.
bool launch_conv2d_weight_tiles(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream,
                                cudaError_t& error);

}  // namespace d2lfast::cuda
