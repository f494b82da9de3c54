#pragma once

#include "machine.h"

// What a warp's accesses cost a GPU, as far as their addresses decide it: sectors of 32 bytes of global
// memory, wavefronts of shared memory. D2LFAST_EMULATED_COUNTS names a file to which a process appends at its
// end, by kernel and instruction: memory, warps, cost, and what their bytes cost at least.
namespace emulation::ptx {

// Of accesses from now on, if they are counted at all. The program is kept to the end of the process.
void count_for(const Program& program);

// By these of a warp's lanes, `size` bytes each from the addresses in an operand.
void count_global(Warp& w, const Instruction& i, int operand, uint32_t lanes, int size);
void count_shared(Warp& w, const Instruction& i, int operand, uint32_t lanes, int size);

}  // namespace emulation::ptx
