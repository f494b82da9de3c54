#pragma once

#include "conv2d.h"

namespace d2lfast::cuda {

// Of bfloat16 and float16 on a device of compute capability 9.0, in a build with code for sm_90a.
bool conv2d_implicit_takes_warpgroups(DType dtype);
// As launch_conv2d_implicit and launch_conv2d_implicit_weight, which check their arguments, by products of
// warpgroups. The first says whether it takes the case: then it is launched, and `error` says how that went.
bool launch_conv2d_implicit_warpgroup(const Conv2dImplicitParams& params, DType dtype, cudaStream_t stream,
                                      cudaError_t& error);
cudaError_t launch_conv2d_implicit_weight_warpgroup(const Conv2dImplicitWeightParams& params, DType dtype,
                                                    cudaStream_t stream);

}  // namespace d2lfast::cuda
