#pragma once

#include "conv2d.h"

namespace d2lfast::cuda {

// Whether the case is one of theirs: then it is launched, and `error` says how that went.
bool launch_conv2d_depthwise(Conv2dDirectParams params, DType dtype, cudaStream_t stream, cudaError_t& error);

bool launch_conv2d_depthwise_weight(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream,
                                    cudaError_t& error);

}  // namespace d2lfast::cuda
