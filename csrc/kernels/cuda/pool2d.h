#pragma once

#include <cuda_runtime_api.h>

#include "../dtype.h"
#include "../pool2d.h"

namespace d2lfast::cuda {

struct MaxPool2dIndexParams {
  const void* position;  // [N,C,OH,OW]
  int64_t* index;        // [N,C,OH,OW], written once: flat index into H * W
  int position_bytes;
  int64_t n, c, h, w, oh, ow;
  Window2d window;
  bool channels_last;
};

// Each launches on `stream`, waits for nothing and allocates nothing. The pointers are of the current device.
// Empty results launch nothing. A height, width, channel count or window beyond int32 is
// cudaErrorInvalidValue; the number of elements has no limit.
cudaError_t launch_max_pool2d(const MaxPool2dParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_max_pool2d_backward(const MaxPool2dBackwardParams& params, DType dtype,
                                       cudaStream_t stream);
cudaError_t launch_max_pool2d_position_to_index(const MaxPool2dIndexParams& params, cudaStream_t stream);

// The means and the adaptive maximum, of pool2d_average.cu.
cudaError_t launch_avg_pool2d(const AvgPool2dParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_avg_pool2d_backward(const AvgPool2dParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_adaptive_avg_pool2d(const AdaptivePool2dParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_adaptive_avg_pool2d_backward(const AdaptivePool2dParams& params, DType dtype,
                                                cudaStream_t stream);
cudaError_t launch_adaptive_max_pool2d(const AdaptivePool2dParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_adaptive_max_pool2d_backward(const AdaptivePool2dParams& params, DType dtype,
                                                cudaStream_t stream);

}  // namespace d2lfast::cuda
