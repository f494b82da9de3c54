#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace d2lfast::cuda {

struct DeviceLimits {
  int64_t processors, shared_bytes, registers;  // of a block, the last two
  bool clusters;                                // whether blocks reach into each other's shared memory
};

// Of the current device; of an H200 where there is none, for questions about the algorithm.
inline DeviceLimits device_limits() {
  int device = 0, processors = 0, shared = 0, registers = 0, major = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&registers, cudaDevAttrMaxRegistersPerBlock, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess) {
    return {processors, shared, registers, major >= 9};
  }
  return {132, 227 * 1024, 65536, true};
}

}  // namespace d2lfast::cuda
