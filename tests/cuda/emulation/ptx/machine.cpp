#include "machine.h"

#include <algorithm>

namespace emulation::ptx {
namespace {

constexpr int64_t kIdleTurns = 10000;  // of a grid whose blocks wait for each other

enum class State { kRuns, kYielded, kAtBarrier, kAtClusterBarrier, kEnded };

// Runs a warp's lanes, those that are furthest behind together, until all are at a barrier or have ended.
State run(Warp& w, const Program& program) {
  while (true) {
    int32_t first = INT32_MAX;
    uint32_t lanes = 0;
    for (int l = 0; l < kLanes; ++l) {
      if (!((w.live & ~w.waiting) >> l & 1)) continue;
      if (w.pc[l] < first) first = w.pc[l], lanes = 0;
      if (w.pc[l] == first) lanes |= 1u << l;
    }
    if (lanes == 0) throw std::runtime_error("a barrier or warp collective that not all threads reach");
    int32_t other = INT32_MAX;
    for (int l = 0; l < kLanes; ++l) {
      if ((w.live & ~w.waiting & ~lanes) >> l & 1) other = std::min(other, w.pc[l]);
    }
    const auto set = [&](uint32_t of, int32_t to) {
      for (int l = 0; l < kLanes; ++l) {
        if (of >> l & 1) w.pc[l] = to;
      }
    };
    int32_t pc = first;
    while (true) {
      const Instruction& i = program.code[pc];
      uint32_t active = lanes;
      if (i.guard >= 0) {
        const uint32_t holds = w.predicate(i.guard);
        active &= i.negated ? ~holds : holds;
      }
      if (i.kind == Kind::kPlain) {
        if (active != 0) i.run(w, i, active);
        ++pc;
      } else if (i.kind == Kind::kBranch) {
        if (active == lanes) {
          pc = i.target;
        } else if (active == 0) {
          ++pc;
        } else {
          set(lanes & ~active, pc + 1);
          set(active, i.target);
          break;
        }
      } else if (i.kind == Kind::kExit) {
        w.live &= ~active;
        if (w.live == 0) return State::kEnded;
        set(lanes & ~active, pc + 1);
        break;
      } else if (i.kind == Kind::kYield) {
        i.run(w, i, active);
        set(lanes, pc + 1);
        return State::kYielded;
      } else {
        // Lanes that jumped ahead of others may meet them here.
        uint32_t here = lanes;
        for (int l = 0; l < kLanes; ++l) {
          if (w.waiting >> l & 1 && w.pc[l] == pc) here |= 1u << l;
        }
        set(lanes, pc);
        if (here != w.live) {
          w.waiting |= lanes;
          break;
        }
        if (i.guard >= 0 && active != lanes) throw std::runtime_error("a collective of some lanes");
        w.waiting = 0;
        lanes = here;
        other = INT32_MAX;
        if (i.kind == Kind::kBarrier || i.kind == Kind::kClusterBarrier) {
          set(lanes, pc + 1);
          return i.kind == Kind::kBarrier ? State::kAtBarrier : State::kAtClusterBarrier;
        }
        i.run(w, i, lanes);
        ++pc;
      }
      if (pc >= other) {
        set(lanes, pc);
        break;
      }
    }
  }
}

// A launch's blocks, of which those of a cooperative one or of a cluster run together.
class Execution {
 public:
  Execution(const Program& program, const Launch& launch, const unsigned char* parameters)
      : program_(program),
        launch_(launch),
        threads_(launch.block.x * launch.block.y * launch.block.z),
        warps_of_block_(static_cast<int>((threads_ + kLanes - 1) / kLanes)),
        blocks_(launch.blocks_together()) {
    if (program.static_shared + launch.shared_bytes > (launch.shared_bytes > 48 * 1024 ? 227u : 48u) * 1024) {
      throw std::runtime_error("more shared memory than a block has");
    }
    for (Block& block : blocks_) {
      block.shared.resize(program.static_shared + launch.shared_bytes);
      block.bytes.resize(block.shared.size());
    }
    warps_.resize(blocks_.size() * warps_of_block_);
    states_.resize(warps_.size());
    for (size_t n = 0; n < warps_.size(); ++n) prepare(warps_[n], n, parameters);
  }

  void run_down_to(int64_t least) {
    const auto together = static_cast<int64_t>(blocks_.size());
    for (int64_t end = launch_.blocks(); end > least; end -= together) run_together(end - together, least);
  }

 private:
  State& state(size_t block, int warp) { return states_[block * warps_of_block_ + warp]; }

  // The blocks that run together, from `begin` on. Threads are numbered from those of block `least` on.
  void run_together(int64_t begin, int64_t least) {
    for (size_t n = 0; n < warps_.size(); ++n) {
      start(warps_[n], begin + static_cast<int64_t>(n) / warps_of_block_, least);
    }
    grid_ = {};
    for (Block& block : blocks_) {
      std::fill(block.shared.begin(), block.shared.end(), 0xff);
      std::fill(block.bytes.begin(), block.bytes.end(), Byte{});
      block.epoch = 1;
    }
    std::fill(states_.begin(), states_.end(), State::kRuns);
    int64_t idle = 0;
    for (bool ended = false; !ended;) {
      ended = true;
      bool progress = false;
      for (size_t block = blocks_.size(); block-- > 0;) {
        while (turn(block)) progress = true;
        for (int n = 0; n < warps_of_block_; ++n) ended = ended && state(block, n) == State::kEnded;
      }
      if (std::count(states_.begin(), states_.end(), State::kAtClusterBarrier) ==
          static_cast<std::ptrdiff_t>(states_.size())) {
        std::fill(states_.begin(), states_.end(), State::kRuns);
        for (Block& block : blocks_) ++block.epoch;
        progress = true;
      }
      idle = progress ? 0 : idle + 1;
      if (!ended && idle > kIdleTurns) throw std::runtime_error("blocks that wait for each other");
    }
  }

  void prepare(Warp& w, size_t n, const unsigned char* parameters) {
    w.file.assign(program_.file_bytes, 0xa5);  // registers that nothing wrote
    for (const auto& [offset, bytes] : program_.constants) {
      std::copy(bytes.begin(), bytes.end(), &w.file[offset]);
    }
    w.parameters = parameters;
    w.block = &blocks_[n / warps_of_block_];
    w.blocks = blocks_.data();
    w.together = launch_.cluster;
    w.grid = &grid_;
    w.number = static_cast<int>(n % warps_of_block_);
    const dim3 &b = launch_.block, &g = launch_.grid;
    const auto workspace = reinterpret_cast<uint64_t>(workspace_);
    for (int l = 0; l < kLanes; ++l) {
      const unsigned t = static_cast<unsigned>(w.number * kLanes + l);
      const auto set = [&](int special, unsigned value) { w.at<uint32_t>(special * kWordLanes)[l] = value; };
      const auto set3 = [&](int special, unsigned x, unsigned y, unsigned z) {
        set(special, x);
        set(special + 1, y);
        set(special + 2, z);
      };
      set3(kTid, t % b.x, t / b.x % b.y, t / b.x / b.y);
      set3(kNtid, b.x, b.y, b.z);
      set3(kNctaid, g.x, g.y, g.z);
      set(kEnvreg, static_cast<unsigned>(workspace >> 32));
      set(kEnvreg + 1, static_cast<unsigned>(workspace));
    }
  }

  void start(Warp& w, int64_t block, int64_t least) {
    const dim3& g = launch_.grid;
    const unsigned index[] = {static_cast<unsigned>(block % g.x), static_cast<unsigned>(block / g.x % g.y),
                              static_cast<unsigned>(block / g.x / g.y)};
    for (int i = 0; i < 3; ++i) std::fill_n(w.at<uint32_t>((kCtaid + i) * kWordLanes), kLanes, index[i]);
    const auto in_block = static_cast<unsigned>(w.number * kLanes), left = threads_ - in_block;
    w.first_thread = static_cast<unsigned>(block - least) * threads_ + in_block;
    w.live = left >= kLanes ? kAllLanes : (1u << left) - 1;
    w.waiting = 0;
    w.pc.fill(0);
    w.copies.assign(1, {});
    w.products.assign(1, {});
    w.sums.clear();
  }

  // Each warp of the block as far as it gets; whether all have reached a barrier.
  bool turn(size_t block) {
    bool all = true;
    int waiting = 0, yielded = 0;
    for (int n = 0; n < warps_of_block_; ++n) {
      State& s = state(block, n);
      if (s == State::kRuns || s == State::kYielded) {
        s = run(warps_[block * warps_of_block_ + n], program_);
        if (const std::string race = race_on_global(); !race.empty()) throw std::runtime_error(race);
        if (grid_.arrivals == blocks_.size()) grid_ = {grid_.epoch + 1, 0};
      }
      waiting += s == State::kAtBarrier;
      yielded += s == State::kYielded;
      all = all && s == State::kAtBarrier;
    }
    if (all) {
      for (int n = 0; n < warps_of_block_; ++n) state(block, n) = State::kRuns;
      ++blocks_[block].epoch;
      return true;
    }
    if (waiting > 0 && yielded == 0) throw std::runtime_error("a barrier that not all threads reach");
    return false;
  }

  const Program& program_;
  const Launch& launch_;
  const unsigned threads_;
  const int warps_of_block_;
  std::vector<Block> blocks_;
  std::vector<Warp> warps_;
  std::vector<State> states_;
  GridState grid_;
  alignas(16) unsigned char workspace_[64] = {};  // of cooperative groups
};

}  // namespace

void run_grid(const Program& program, const Launch& launch, int64_t least, const unsigned char* parameters) {
  Execution(program, launch, parameters).run_down_to(least);
}

}  // namespace emulation::ptx
