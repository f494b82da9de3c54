#pragma once

#include <c10/core/Device.h>

#include "../../guards.h"

namespace c10::cuda {
// The emulated GPU is the CPU.
struct CUDAGuard {
  explicit CUDAGuard(c10::Device) { ++emulation::guards; }
  ~CUDAGuard() { --emulation::guards; }
  CUDAGuard(const CUDAGuard&) = delete;
};
}  // namespace c10::cuda
