#pragma once

#include "../../guards.h"

namespace c10::cuda {
inline cudaStream_t getCurrentCUDAStream() { return emulation::current_stream(); }
}  // namespace c10::cuda
