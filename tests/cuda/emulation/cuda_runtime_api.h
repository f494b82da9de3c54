#pragma once

#include <cstddef>
#include <cstdlib>

// The part of CUDA's runtime that d2lfast's host code uses, for kernels that run on a CPU.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid launch or argument";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Few multiprocessors, so that small tensors make several turns of a persistent grid. The environment may ask
// for other limits: less shared memory, so that small layers need several blocks.
inline int emulated_limit(const char* name, int standard) {
  const char* wanted = std::getenv(name);
  return wanted != nullptr ? std::atoi(wanted) : standard;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? emulated_limit("D2LFAST_EMULATED_PROCESSORS", 3)
               : emulated_limit("D2LFAST_EMULATED_SHARED_BYTES", 227 * 1024);
  return cudaSuccess;
}
