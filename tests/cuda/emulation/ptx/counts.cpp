#include "counts.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

namespace emulation::ptx {
namespace {

struct Cost {
  int64_t times = 0, needed = 0, least = 0;
};
struct Costs {
  Cost global, shared;
};
using Instructions = std::map<const Instruction*, Costs>;

// Written when the process ends.
struct Table {
  std::map<std::string, Instructions> kernels;
  Instructions* current = nullptr;

  ~Table() {
    if (kernels.empty()) return;
    std::ofstream file(std::getenv("D2LFAST_EMULATED_COUNTS"), std::ios::app);
    for (const auto& [kernel, instructions] : kernels) {
      for (const auto& [instruction, costs] : instructions) {
        write(file, kernel + "\tglobal", costs.global, *instruction);
        write(file, kernel + "\tshared", costs.shared, *instruction);
      }
    }
  }
  static void write(std::ofstream& file, const std::string& begin, const Cost& cost, const Instruction& of) {
    if (cost.times == 0) return;
    file << begin << "\t" << cost.times << "\t" << cost.needed << "\t" << cost.least << "\t" << of.text
         << "\n";
  }
} table;

}  // namespace

void count_for(const Program& program) {
  static const bool wanted = std::getenv("D2LFAST_EMULATED_COUNTS") != nullptr;
  if (wanted) table.current = &table.kernels[program.name];
}

void count_global(Warp& w, const Instruction& i, int operand, uint32_t lanes, int size) {
  if (table.current == nullptr || lanes == 0) return;
  std::set<uint64_t> sectors, bytes;
  each_in_turn(lanes, [&](int l) {
    const uint64_t address = w.address(i, operand, l);
    for (int b = 0; b < size; ++b) {
      bytes.insert(address + b);
      sectors.insert((address + b) / 32);
    }
  });
  Cost& cost = (*table.current)[&i].global;
  ++cost.times;
  cost.needed += static_cast<int64_t>(sectors.size());
  cost.least += static_cast<int64_t>((bytes.size() + 31) / 32);
}

// Lanes in parts of 128 bytes; of a part, as many wavefronts as a bank has words.
void count_shared(Warp& w, const Instruction& i, int operand, uint32_t lanes, int size) {
  if (table.current == nullptr || lanes == 0) return;
  Cost& cost = (*table.current)[&i].shared;
  ++cost.times;
  const int part = std::min(kLanes, 128 / size);
  for (int first = 0; first < kLanes; first += part) {
    std::array<std::set<uint64_t>, 32> banks;
    size_t words = 0, most = 0;
    for (int l = first; l < first + part; ++l) {
      if (!(lanes >> l & 1)) continue;
      const uint64_t address = w.address(i, operand, l);
      for (uint64_t word = address / 4; word <= (address + size - 1) / 4; ++word)
        banks[word % 32].insert(word);
    }
    for (const auto& bank : banks) {
      words += bank.size();
      most = std::max(most, bank.size());
    }
    cost.needed += static_cast<int64_t>(most);
    cost.least += static_cast<int64_t>((words + 31) / 32);
  }
}

}  // namespace emulation::ptx
