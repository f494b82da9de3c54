#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace d2lfast::cuda {

struct DeviceLimits {
  int64_t processors, shared_bytes;  // shared_bytes: of a block
};

// Of the current device; of an H200 where there is none, for questions about the algorithm.
inline DeviceLimits device_limits() {
  int device = 0, processors = 0, shared = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess) {
    return {processors, shared};
  }
  return {132, 227 * 1024};
}

}  // namespace d2lfast::cuda
