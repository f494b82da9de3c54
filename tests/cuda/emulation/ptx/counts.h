#pragma once

#include <cstdint>

#include "program.h"

// What a warp's accesses cost a GPU, as far as their addresses decide it: sectors of 32 bytes of global
// memory, wavefronts of shared memory. D2LFAST_EMULATED_COUNTS names a file to which a process appends at its
// end, by kernel and instruction: memory, warps, cost, and what their bytes cost at least.
namespace emulation::ptx {

bool counting();

// For accesses from now on. The program is kept until the process ends.
void count_for(const Program& program);

// By these of a warp's lanes, `size` bytes each from these addresses.
using Addresses = uint64_t[kLanes];
void count_global(const Instruction& instruction, const Addresses& address, uint32_t lanes, int size);
void count_shared(const Instruction& instruction, const Addresses& address, uint32_t lanes, int size);

}  // namespace emulation::ptx
