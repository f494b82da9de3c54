#pragma once

#include "machine.h"

namespace emulation::ptx {

// What the lanes of a warp do together, and asynchronous copies; null for other operations.
Instruction::Run warp_instruction(const std::vector<std::string>& operation);

}  // namespace emulation::ptx
