#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

// The dispatch key of the operators' CUDA side. Tests of the kernels on an emulated GPU register it for the
// CPU instead.
#ifndef D2LFAST_CUDA_KEY
#define D2LFAST_CUDA_KEY CUDA
#endif

namespace d2lfast::ops {

using DeviceGuard = c10::cuda::CUDAGuard;

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

}  // namespace d2lfast::ops
