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
};
Table& table() {
  static Table made;
  return made;
}

}  // namespace

bool counting() {
  static const bool wanted = std::getenv("D2LFAST_EMULATED_COUNTS") != nullptr;
  return wanted;
}

void count_for(const Program& program) { table().current = &table().kernels[program.name]; }

void count_global(const Instruction& instruction, const Addresses& address, uint32_t lanes, int size) {
  std::set<uint64_t> sectors, bytes;
  for (int l = 0; l < kLanes; ++l) {
    if (!(lanes >> l & 1)) continue;
    for (int b = 0; b < size; ++b) bytes.insert(address[l] + b);
    sectors.insert(address[l] / 32);
    sectors.insert((address[l] + size - 1) / 32);
  }
  Cost& cost = (*table().current)[&instruction].global;
  ++cost.times;
  cost.needed += static_cast<int64_t>(sectors.size());
  cost.least += static_cast<int64_t>((bytes.size() + 31) / 32);
}

// Lanes in parts of 128 bytes; of a part, as many wavefronts as a bank has words.
void count_shared(const Instruction& instruction, const Addresses& address, uint32_t lanes, int size) {
  Cost& cost = (*table().current)[&instruction].shared;
  ++cost.times;
  const int part = std::min(kLanes, 128 / size);
  for (int first = 0; first < kLanes; first += part) {
    std::array<std::set<uint64_t>, 32> banks;
    std::set<uint64_t> all;
    for (int l = first; l < first + part; ++l) {
      if (!(lanes >> l & 1)) continue;
      for (uint64_t word = address[l] / 4; word <= (address[l] + size - 1) / 4; ++word) {
        banks[word % 32].insert(word);
        all.insert(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.size());
    cost.needed += static_cast<int64_t>(most);
    cost.least += static_cast<int64_t>((all.size() + 31) / 32);
  }
}

}  // namespace emulation::ptx
