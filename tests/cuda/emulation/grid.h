#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <typeindex>
#include <vector>

#include "cuda_runtime_api.h"
#include "fibers.h"
#include "global_memory.h"

// Blocks and threads of a grid on one CPU thread. Barriers, warp collectives and shared memory are checked:
// a barrier that some thread does not reach, an access to shared memory that races with another thread's
// since the last barrier, a read of shared memory that nobody wrote, an access to where an asynchronous
// copy is under way, and a race on global memory are exceptions of the launch.
namespace emulation {

struct Index3 {
  unsigned x, y, z;
};

// Of the element, since the last barrier. A reader of -2: several threads. copies: asynchronous ones into it
// that no thread has waited for.
struct Shadow {
  int64_t written_at = -1, read_at = -1;
  int writer = -1, reader = -1;
  bool initialised = false;
  int copies = 0;
};

// An array, or dynamic memory as elements of one type: of all types it has the same bytes.
struct SharedMemory {
  struct Block* block = nullptr;
  unsigned char* data = nullptr;
  std::vector<unsigned char> bytes;  // of an array
  std::vector<Shadow> shadow;        // by elements
};

struct Rendezvous {
  int64_t epoch = 0;
  unsigned arrived = 0;
};

constexpr int kWarp = 32;
constexpr int64_t kFarBlocks = 256;

struct Warp {
  Rendezvous barrier;
  unsigned live = 0;
  alignas(16) unsigned char slot[2][kWarp][64];
};

struct Block {
  Index3 index;
  Rendezvous barrier;
  unsigned live = 0;
  std::vector<Warp> warps;
  std::map<std::tuple<std::string, int, std::type_index>, SharedMemory> shared;
  std::vector<unsigned char> dynamic;
};

struct Thread {
  Index3 index;
  int linear;
  Block* block;
  std::vector<std::vector<std::function<void()>>> copies;  // asynchronous ones by groups, the open one last
  Fiber fiber;
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;

  int64_t blocks() const { return int64_t{1} * grid.x * grid.y * grid.z; }
  int64_t blocks_together() const { return cooperative ? blocks() : cluster; }
};

struct Argument {
  const void* value;
  size_t size;
};

// Runs the blocks from `least` on by what nvcc made of the kernel.
using Compiled = void (*)(const void* kernel, const Launch& launch, int64_t least,
                          const std::vector<Argument>& arguments);

// A launch and its kernel's parameter types.
struct Record {
  Launch launch;
  std::string parameters;
};

class Grid {
 public:
  static Grid& get() {
    static Grid grid;
    return grid;
  }

  void run(const Launch& launch, const std::string& parameters, const std::function<void()>& body,
           const void* kernel, const std::vector<Argument>& arguments) {
    check(launch);
    if (recording) records.push_back({launch, parameters});
    if (dry) return;
    if (running_) throw std::logic_error("a launch within a launch");
    running_ = true;
    shape = launch;
    begin_global(launch.block.x * launch.block.y * launch.block.z);
    const int64_t blocks = launch.blocks(), together = launch.blocks_together();
    const int64_t least = far && blocks > kFarBlocks ? blocks - together : 0;
    try {
      if (compiled != nullptr) {
        compiled(kernel, launch, least, arguments);
      } else {
        // From the last block to the first: no result may depend on the order.
        for (int64_t end = blocks; end > least; end -= together) {
          run_blocks(end - together, end, static_cast<unsigned>(end - together - least), body);
        }
      }
    } catch (...) {
      running_ = false;
      current = nullptr;
      threads_.clear();
      end_global();
      throw;
    }
    running_ = false;
    end_global();
  }

  void sync_block() { wait(current->block->barrier, current->block->live); }
  void sync_grid() {
    if (!shape.cooperative) fail("a grid barrier in a launch that is not cooperative");
    sync_block();
    wait(grid_barrier_, live_);
  }
  void sync_cluster(int64_t blocks) {
    const std::span<Block> all = cluster(blocks);
    if (all.size() == 1) return sync_block();
    if (cluster_barrier_.arrived + 1 == live_) {
      for (Block& block : all) ++block.barrier.epoch;
    }
    wait(cluster_barrier_, live_);
  }
  std::span<Block> cluster(int64_t blocks) {
    if (blocks != shape.cluster) fail("a cluster of another size");
    return shape.cluster == 1 ? std::span<Block>(current->block, 1) : std::span<Block>(blocks_);
  }
  Warp& warp() { return current->block->warps[current->linear / kWarp]; }
  void sync_warp() { wait(warp().barrier, warp().live); }
  // What every lane of the warp passes, by lane. The next collective may overwrite it.
  const unsigned char (*exchange(const void* value, size_t size))[64] {
    Warp& w = warp();
    auto& slots = w.slot[w.barrier.epoch % 2];
    std::memcpy(slots[current->linear % kWarp], value, size);
    sync_warp();
    return slots;
  }

  [[noreturn]] void fail(const std::string& what) const {
    std::string place;
    if (current != nullptr) {
      const Index3 &b = current->block->index, &t = current->index;
      const auto text = [](const Index3& i) {
        return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
      };
      place = " in thread " + text(t) + " of block " + text(b);
    }
    throw std::runtime_error("emulated GPU: " + what + place);
  }

  Launch shape;
  Thread* current = nullptr;
  bool recording = false, dry = false;  // dry: launches are checked, but not run
  bool far = false;                     // of launches of many blocks only the last runs
  bool guarded = false;                 // launches go to the stream of a device guard
  std::vector<Record> records;
  Compiled compiled = nullptr;

 private:
  static void check(const Launch& l) {
    const bool fits = l.grid.x >= 1 && l.grid.y >= 1 && l.grid.z >= 1 && l.grid.x <= 0x7fffffffu &&
                      l.grid.y <= 65535 && l.grid.z <= 65535 && l.block.z <= 64 &&
                      l.block.x * l.block.y * l.block.z >= 1 && l.block.x * l.block.y * l.block.z <= 1024 &&
                      l.cluster >= 1 && l.cluster <= 8 && l.grid.x % l.cluster == 0 &&
                      !(l.cooperative && l.cluster > 1) && l.shared_bytes <= 227 * 1024;
    if (!fits) {
      throw std::runtime_error("emulated GPU: launch of " + std::to_string(l.grid.x) + " x " +
                               std::to_string(l.grid.y) + " x " + std::to_string(l.grid.z) + " blocks of " +
                               std::to_string(l.block.x * l.block.y * l.block.z) + " threads with " +
                               std::to_string(l.shared_bytes) + " bytes of shared memory");
    }
  }

  // A kernel may use 48 KiB with its static arrays, or what its launch asks for beyond (`launch` does for
  // more than 48 KiB of dynamic memory).
  void check_shared(const Block& block) const {
    size_t bytes = shape.shared_bytes;
    for (const auto& [key, memory] : block.shared) {
      if (std::get<1>(key) > 0) bytes += memory.bytes.size();
    }
    if (bytes > size_t{shape.shared_bytes > 48 * 1024 ? 227u : 48u} * 1024) {
      fail(std::to_string(bytes) + " bytes of shared memory with static arrays");
    }
  }

  void wait(Rendezvous& r, unsigned& expected) {
    const int64_t epoch = r.epoch;
    progress_ = true;
    if (++r.arrived == expected) {
      r.arrived = 0;
      ++r.epoch;
      return;
    }
    while (r.epoch == epoch) current->fiber.pause();
    progress_ = true;
  }

  // `number`: of the first of these blocks among those that run.
  void run_blocks(int64_t begin, int64_t end, unsigned number, const std::function<void()>& body) {
    const dim3 &g = shape.grid, &b = shape.block;
    const unsigned size = b.x * b.y * b.z;
    blocks_ = std::vector<Block>(end - begin);
    while (threads_.size() < blocks_.size() * size) threads_.push_back(std::make_unique<Thread>());
    live_ = static_cast<unsigned>(blocks_.size() * size);
    grid_barrier_ = cluster_barrier_ = {};
    for (int64_t i = begin; i < end; ++i) {
      Block& block = blocks_[i - begin];
      block.index = {static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
                     static_cast<unsigned>(i / g.x / g.y)};
      block.live = size;
      block.warps.resize((size + kWarp - 1) / kWarp);
      for (unsigned t = 0; t < size; ++t) {
        ++block.warps[t / kWarp].live;
        Thread& thread = *threads_[(i - begin) * size + t];
        thread.index = {t % b.x, t / b.x % b.y, t / b.x / b.y};
        thread.linear = static_cast<int>(t);
        thread.block = &block;
        thread.copies.assign(1, {});
        thread.fiber.start(&body);
      }
    }
    // Each block runs as far as it gets without the others, so that a result which one block takes from
    // another without a barrier of the grid is not there yet.
    size_t left = live_;
    while (left > 0) {
      bool progress = false;
      for (size_t first = blocks_.size() * size; first > 0;) {
        first -= size;
        do {
          progress_ = false;
          for (size_t i = first; i < first + size; ++i) {
            Thread& thread = *threads_[i];
            if (thread.fiber.done()) continue;
            current = &thread;
            run_global(number * size + static_cast<unsigned>(i), thread.block->barrier.epoch,
                       grid_barrier_.epoch);
            thread.fiber.resume();
            if (const std::string race = race_on_global(); !race.empty()) fail(race);
            if (!thread.fiber.done()) continue;
            progress_ = true;
            --left;
          }
          progress = progress || progress_;
        } while (progress_);
      }
      current = nullptr;
      if (!progress) fail("a barrier or warp collective that not all threads reach");
    }
    for (const Block& block : blocks_) check_shared(block);
  }

  std::vector<Block> blocks_;  // that run together
  std::vector<std::unique_ptr<Thread>> threads_;
  Rendezvous grid_barrier_, cluster_barrier_;
  unsigned live_ = 0;
  bool progress_ = false, running_ = false;
};

}  // namespace emulation

#define threadIdx (::emulation::Grid::get().current->index)
#define blockIdx (::emulation::Grid::get().current->block->index)
#define blockDim (::emulation::Grid::get().shape.block)
#define gridDim (::emulation::Grid::get().shape.grid)
