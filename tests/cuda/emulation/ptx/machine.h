#pragma once

#include <array>
#include <cstring>
#include <stdexcept>

#include "../global_memory.h"
#include "../grid.h"
#include "program.h"

namespace emulation::ptx {

// An address in the shared memory of a cluster's block: its rank, from 1, above these bits.
constexpr int kRankBits = 24;

// Of a byte of shared memory, since the block's last barrier; -2: several threads.
struct Byte {
  uint32_t written_at = 0, read_at = 0;
  int16_t writer = -1, reader = -1;
};

struct Block {
  std::vector<unsigned char> shared;
  std::vector<Byte> bytes;
  int64_t epoch = 1;
};

struct GridState {
  int64_t epoch = 0;
  unsigned arrivals = 0;  // of blocks at the grid's barriers
};

struct Copy {
  uint32_t to;
  uint64_t from;
  int lane, bytes, valid;
};

// Of a product of a warpgroup, this warp's rows.
struct Product {
  const Instruction* instruction;
  uint64_t left, right;
};

struct Warp {
  std::vector<unsigned char> file;
  const unsigned char* parameters = nullptr;
  Block* block = nullptr;
  Block* blocks = nullptr;  // those that run together, of which a cluster is all
  size_t together = 1;
  GridState* grid = nullptr;
  int number = 0;             // in its block
  unsigned first_thread = 0;  // among those that the launch runs
  uint32_t live = 0, waiting = 0;
  std::array<int32_t, kLanes> pc{};
  std::vector<std::vector<Copy>> copies;       // by groups, the open one last
  std::vector<std::vector<Product>> products;  // likewise
  // Of products, by the first register, with the first product into them.
  std::map<int32_t, std::pair<const Instruction*, std::vector<float>>> sums;

  template <typename T>
  T* at(int32_t offset) {
    return reinterpret_cast<T*>(file.data() + offset);
  }
  uint32_t& predicate(int32_t offset) { return *at<uint32_t>(offset); }
  uint64_t integer(const Instruction& i, int operand, int lane) {
    const int32_t offset = i.operands[operand];
    return i.widths[operand] == 8 ? at<uint64_t>(offset)[lane] : at<uint32_t>(offset)[lane];
  }
  uint64_t address(const Instruction& i, int operand, int lane) {
    return integer(i, operand, lane) + i.offset;
  }

  // Memory that the lane accesses, after checks of the access.
  unsigned char* global(uint64_t address, int size, int lane, bool write) {
    if (address % size != 0) throw std::runtime_error("a misaligned access to global memory");
    auto* place = reinterpret_cast<unsigned char*>(address);
    run_global(first_thread + lane, block->epoch, grid->epoch);
    write ? write_global(place, size) : read_global(place, size);
    return place;
  }

  unsigned char* shared(uint64_t address, int size, int lane, bool write) {
    if (address % size != 0) throw std::runtime_error("a misaligned access to shared memory");
    const uint64_t rank = address >> kRankBits;
    if (rank > together) throw std::runtime_error("a block outside the cluster");
    Block& to = rank == 0 ? *block : blocks[rank - 1];
    address &= (uint64_t{1} << kRankBits) - 1;
    if (address + size > to.shared.size()) throw std::runtime_error("an access outside shared memory");
    const int64_t others = &to == block ? 0 : 1 + (block - blocks);
    const auto thread = static_cast<int16_t>(others * 1024 + number * kLanes + lane);
    const auto now = static_cast<uint32_t>(to.epoch);
    for (Byte* byte = &to.bytes[address]; byte < &to.bytes[address] + size; ++byte) {
      const bool after_write = byte->written_at == now && byte->writer != thread;
      const bool after_read = byte->read_at == now && byte->reader != thread;
      if (after_write || (write && after_read)) throw std::runtime_error("a race on shared memory");
      if (write) {
        byte->written_at = now;
        byte->writer = thread;
      } else {
        byte->reader = after_read ? -2 : thread;
        byte->read_at = now;
      }
    }
    return &to.shared[address];
  }
};

template <typename Body>
inline void each_in_turn(uint32_t lanes, Body&& body) {
  for (; lanes != 0; lanes &= lanes - 1) body(__builtin_ctz(lanes));
}

// In any order: the body does not touch what other lanes write.
template <typename Body>
inline void each_lane(uint32_t lanes, Body&& body) {
  if (lanes != kAllLanes) return each_in_turn(lanes, body);
#pragma GCC ivdep
  for (int lane = 0; lane < kLanes; ++lane) body(lane);
}

// Runs the blocks of a launch from `least` on, the last first, those of a cooperative one together. Throws
// std::runtime_error at the first fault.
void run_grid(const Program& program, const Launch& launch, int64_t least, const unsigned char* parameters);

}  // namespace emulation::ptx
