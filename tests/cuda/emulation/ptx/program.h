#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

// A kernel of a PTX file, decoded for execution by warps.
namespace emulation::ptx {

struct Warp;

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

enum class Kind { kPlain, kCollective, kBarrier, kClusterBarrier, kBranch, kExit, kYield };

// Operands are distances in bytes into a warp's file of registers, where special registers and constants also
// are: 32 lanes of 4 bytes, or of 8; a predicate is one word of 32 bits.
struct Instruction {
  using Run = void (*)(Warp&, const Instruction&, uint32_t lanes);
  Run run = nullptr;
  Kind kind = Kind::kPlain;
  int32_t guard = -1;  // a predicate
  bool negated = false;
  int32_t target = 0;  // of a branch
  int64_t offset = 0;  // of an address
  std::vector<int32_t> operands;
  std::vector<int8_t> widths;  // of a lane of each operand; 0: predicate
  std::string text;            // for messages
};

enum Special { kTid = 0, kNtid = 3, kCtaid = 6, kNctaid = 9, kEnvreg = 12, kSpecials = 14 };
constexpr int kWordLanes = kLanes * 4;

struct Parameter {
  size_t offset, size;
};

struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t static_shared = 0;  // the dynamic memory begins behind it
  size_t file_bytes = 0;
  std::deque<std::string> texts;                                          // of assertions
  std::vector<std::pair<int32_t, std::vector<unsigned char>>> constants;  // lanes, by their place in the file
};

// Of a file, the kernels by their names without the file's part of them (unnamed namespaces), not decoded.
std::map<std::string, std::string> kernels_of(const std::string& path);
std::string without_file(std::string name);

// Throws std::runtime_error on what it does not know.
std::unique_ptr<Program> decode(const std::string& name, const std::string& text);

// Sets run, kind by the operation and its types ("add", "s32").
void set_operation(Instruction& instruction, const std::vector<std::string>& operation);

}  // namespace emulation::ptx
