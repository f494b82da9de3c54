#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// Races on global memory within a launch. Kernels are compiled with a call before each access
// (-fsanitize=thread), which global_memory.cpp answers: without these headers' inline functions, which are
// compiled with the kernels and so make such calls themselves.
namespace emulation {

// The memory to watch, one range of addresses.
void watch_global(const void* begin, size_t bytes);

// Threads are numbered over the launch, block by block. Within a block a barrier orders accesses; between
// blocks nothing does but the grid's barrier.
void begin_global(unsigned block_threads);
void end_global();
void run_global(unsigned thread, const int64_t& block_epoch, const int64_t& grid_epoch);

// Accesses of the thread that runs.
void read_global(const void* address, size_t bytes);
void write_global(const void* address, size_t bytes);

// What the first race since the last call was; empty without one.
std::string race_on_global();

}  // namespace emulation
