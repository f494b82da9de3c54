#pragma once

#include "conv2d.h"

namespace d2lfast::cuda {

// On tensor cores: 16 bits, and float32 where it may be rounded to TF32. Whether the case is one of theirs:
// then it is launched, and `error` says how that went.
bool launch_conv2d_tile_products(const Conv2dDirectParams& params, DType dtype, cudaStream_t stream,
                                 cudaError_t& error);

}  // namespace d2lfast::cuda
