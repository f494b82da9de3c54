#pragma once

#include "cuda_runtime_api.h"

// The device guards that are alive, and the current stream: null where there is none, so that a stream which
// was taken before the guard is told from the device's.
namespace emulation {

inline int guards = 0;

inline cudaStream_t current_stream() {
  return reinterpret_cast<cudaStream_t>(guards > 0 ? &guards : nullptr);
}

}  // namespace emulation
