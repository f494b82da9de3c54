#pragma once

#include <cuda_runtime_api.h>

#include <optional>

#include "../dtype.h"
#include "../pool2d.h"

namespace d2lfast::cuda {

// By whole planes in shared memory (pool2d_planes.cuh). Nothing where that does not serve the case.
std::optional<cudaError_t> launch_max_pool2d_planes(const MaxPool2dParams& params, DType dtype,
                                                    cudaStream_t stream);
std::optional<cudaError_t> launch_max_pool2d_planes_backward(const MaxPool2dBackwardParams& params,
                                                             DType dtype, cudaStream_t stream);

}  // namespace d2lfast::cuda
