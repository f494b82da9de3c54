#include "program.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace emulation::ptx {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error("PTX: " + what); }

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(trimmed(part));
  return parts;
}

size_t number_before(const std::string& text, size_t end) {
  size_t begin = end;
  while (begin > 0 && std::isdigit(static_cast<unsigned char>(text[begin - 1]))) --begin;
  return begin;
}

size_t rounded_up(size_t size, size_t align) { return (size + align - 1) / align * align; }

int width_of(const std::string& type) {
  if (type == "pred") return 0;
  const size_t digits = type.find_first_of("0123456789");
  if (digits == std::string::npos) fail("type " + type);
  return std::stoi(type.substr(digits)) / 8;
}

class Decoder {
 public:
  explicit Decoder(const std::string& name) : program_(std::make_unique<Program>()) {
    program_->name = name;
    program_->file_bytes = kSpecials * kWordLanes;
    static const char* const names[] = {"%tid", "%ntid", "%ctaid", "%nctaid"};
    for (int i = 0; i < 12; ++i) {
      registers_[std::string(names[i / 3]) + "." + "xyz"[i % 3]] = {i * kWordLanes, 4};
    }
    registers_["%envreg1"] = {kEnvreg * kWordLanes, 4};
    registers_["%envreg2"] = {(kEnvreg + 1) * kWordLanes, 4};
  }

  // Declarations of the module that kernels may refer to.
  void module(const std::string& line) {
    if (!line.empty()) variable(line);
  }

  void parameters(const std::string& list) {
    for (const std::string& text : split(list, ',')) {
      std::istringstream words(text);
      std::vector<std::string> all;
      for (std::string word; words >> word;) all.push_back(word);
      if (all.empty()) continue;
      std::string name = all.back();
      size_t align, size;
      if (all[1] == ".align") {  // ".param .align 8 .b8 name[24]"
        align = std::stoul(all[2]);
        size = std::stoul(name.substr(name.find('[') + 1));
        name.resize(name.find('['));
      } else {  // ".param .u64 name"
        size = align = width_of(all[1].substr(1));
      }
      program_->parameter_bytes = rounded_up(program_->parameter_bytes, align);
      parameters_[name] = program_->parameter_bytes;
      program_->parameters.push_back({program_->parameter_bytes, size});
      program_->parameter_bytes += size;
    }
  }

  void body(const std::string& text) {
    std::string statement;
    for (const char c : text) {
      if (c == ';') {
        take(trimmed(statement));
        statement.clear();
      } else if (c == '{' || c == '}') {
        // A brace of a scope stands at a statement's beginning, one of a vector within it.
        if (trimmed(statement).empty()) {
          statement.clear();
        } else {
          statement += c;
        }
      } else if (c == ':' && trimmed(statement)[0] == '$') {
        labels_[trimmed(statement)] = static_cast<int32_t>(program_->code.size());
        statement.clear();
      } else {
        statement += c;
      }
    }
  }

  std::unique_ptr<Program> finish() {
    for (const auto& [at, label] : branches_) {
      if (!labels_.contains(label)) fail("label " + label);
      program_->code[at].target = labels_[label];
    }
    program_->static_shared = rounded_up(shared_bytes_, dynamic_align_);
    for (const size_t n : dynamic_) {
      std::vector<unsigned char>& lanes = program_->constants[n].second;
      lanes = in_lanes(program_->static_shared, static_cast<int>(lanes.size() / kLanes));
    }
    return std::move(program_);
  }

 private:
  struct Register {
    int32_t offset;
    int8_t width;
  };
  struct Array {
    size_t bytes = 0, align = 1;
    bool dynamic = false, shared = false;
    int64_t place = -1;
    std::string text;  // of global memory
  };

  // ".shared .align 16 .b8 name[512]", ".shared .align 4 .u32 name", ".extern .shared .align 16 .b8 name[]",
  // ".global .align 1 .b8 name[2] = {65, 0}"
  void variable(const std::string& line) {
    Array array;
    array.shared = line.find(".shared") != std::string::npos;
    array.dynamic = line.find(".extern") != std::string::npos;
    const size_t align = line.find(".align "), bracket = line.find('[');
    if (align == std::string::npos || (array.dynamic && bracket == std::string::npos)) fail(line);
    array.align = std::stoul(line.substr(align + 7));
    const size_t end = std::min(bracket, line.size()), begin = line.find_last_of(" \t", end) + 1;
    if (!array.dynamic) {
      const std::string type = trimmed(line.substr(0, begin));
      const int width = width_of(type.substr(type.find_last_of('.') + 1));
      array.bytes = (bracket < line.size() ? std::stoul(line.substr(bracket + 1)) : 1) * width;
    }
    if (const size_t list = line.find('{'); list != std::string::npos) {
      for (const std::string& byte : split(line.substr(list + 1), ',')) {
        array.text += static_cast<char>(std::stoi(byte));
      }
    }
    arrays_[line.substr(begin, end - begin)] = array;
  }

  void declare(const std::string& text) {  // ".reg .b32 %r<5>" or names
    std::istringstream words(text);
    std::string reg, type;
    words >> reg >> type;
    const int width = width_of(type.substr(1));
    const int8_t slot = static_cast<int8_t>(width == 0 ? 0 : width < 8 ? 4 : 8);
    const int32_t bytes = slot == 0 ? 4 : slot * kLanes;
    std::string rest;
    std::getline(words, rest);
    for (const std::string& name : split(rest, ',')) {
      const size_t bracket = name.find('<');
      const int count = bracket == std::string::npos ? 1 : std::stoi(name.substr(bracket + 1));
      for (int i = 0; i < count; ++i) {
        const std::string full =
            bracket == std::string::npos ? name : name.substr(0, bracket) + std::to_string(i);
        registers_[full] = {place(bytes), slot};
      }
    }
  }

  int32_t place(int32_t bytes) {
    if (bytes > 4) program_->file_bytes = rounded_up(program_->file_bytes, 64);
    const auto offset = static_cast<int32_t>(program_->file_bytes);
    program_->file_bytes += bytes;
    return offset;
  }

  static std::vector<unsigned char> in_lanes(uint64_t bits, int width) {
    std::vector<unsigned char> lanes(kLanes * width);
    for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&lanes[lane * width], &bits, width);
    return lanes;
  }

  Register new_constant(std::vector<unsigned char> lanes, int8_t width) {
    const int32_t offset = place(static_cast<int32_t>(lanes.size()));
    program_->constants.push_back({offset, std::move(lanes)});
    return {offset, width};
  }

  Register constant(uint64_t bits, int8_t width) {
    if (width == 0) return new_constant(std::vector<unsigned char>(4, bits != 0 ? 0xff : 0), 0);
    const auto known = constants_.find({bits, width});
    if (known != constants_.end()) return {known->second, width};
    const Register made = new_constant(in_lanes(bits, width), width);
    constants_[{bits, width}] = made.offset;
    return made;
  }

  // Its address in its own space. That of dynamic memory is known when all arrays before it are.
  Register address_of(Array& array, int8_t width) {
    if (array.dynamic) {
      dynamic_align_ = std::max(dynamic_align_, array.align);
      dynamic_.push_back(program_->constants.size());
      return new_constant(in_lanes(0, width), width);
    }
    if (!array.shared) {
      program_->texts.push_back(array.text);
      return constant(reinterpret_cast<uint64_t>(program_->texts.back().data()), width);
    }
    if (array.place < 0) {
      shared_bytes_ = rounded_up(shared_bytes_, array.align);
      array.place = static_cast<int64_t>(shared_bytes_);
      shared_bytes_ += array.bytes;
    }
    return constant(array.place, width);
  }

  Register value(const std::string& text, int8_t width) {
    if (const auto found = registers_.find(text); found != registers_.end()) return found->second;
    if (const auto found = parameters_.find(text); found != parameters_.end()) {
      return constant(found->second, width);
    }
    if (const auto found = arrays_.find(text); found != arrays_.end())
      return address_of(found->second, width);
    if (text.empty()) fail("an operand is missing");
    if (text == "_") return {place(8 * kLanes), width};
    uint64_t bits;
    if (text.rfind("0f", 0) == 0 || text.rfind("0F", 0) == 0 || text.rfind("0d", 0) == 0 ||
        text.rfind("0D", 0) == 0) {
      bits = std::stoull(text.substr(2), nullptr, 16);
    } else if (text[0] == '-' || std::isdigit(static_cast<unsigned char>(text[0]))) {
      bits = text[0] == '-' ? static_cast<uint64_t>(std::stoll(text, nullptr, 0))
                            : std::stoull(text, nullptr, 0);
    } else {
      fail("operand " + text);
    }
    return constant(bits, width);
  }

  void add(Instruction& made, const std::string& text, int8_t width) {
    const Register found = value(text, width);
    made.operands.push_back(found.offset);
    made.widths.push_back(found.width);
  }

  void take(std::string text) {
    if (text.empty() || text.rfind(".pragma", 0) == 0 || text.rfind(".loc", 0) == 0 ||
        text.rfind(".param", 0) == 0) {
      return;
    }
    if (text.rfind(".reg", 0) == 0) return declare(text);
    if (text[0] == '.') return variable(text);
    Instruction made;
    made.text = text;
    if (text[0] == '@') {
      made.negated = text[1] == '!';
      const size_t end = text.find_first_of(" \t");
      const size_t begin = made.negated ? 2 : 1;
      made.guard = value(text.substr(begin, end - begin), 0).offset;
      text = trimmed(text.substr(end));
    }
    const size_t end = std::min(text.find_first_of(" \t"), text.size());
    std::vector<std::string> operation = split(text.substr(0, end), '.');
    std::string rest = trimmed(text.substr(end));
    if (operation[0] == "st" && operation[1] == "param") {  // of a call, whose first argument is a text
      if (rest.rfind("[param0", 0) == 0) argument_ = trimmed(rest.substr(rest.find(',') + 1));
      return;
    }
    set_operation(made, operation);
    if (operation[0] == "bra") {
      branches_.push_back({program_->code.size(), rest});
    } else if (operation[0] == "call") {
      if (rest.find("__assertfail") == std::string::npos) fail(text);
      add(made, argument_, 8);
    } else {
      operands(made, operation, rest);
    }
    program_->code.push_back(std::move(made));
  }

  // Width of a constant among the operands.
  static int8_t constant_width(const std::vector<std::string>& operation, size_t index) {
    const std::string &name = operation[0], &type = operation.back();
    if (type == "pred") return 0;
    if ((name == "shl" || name == "shr") && index == 2) return 4;
    if (name == "bfi" && index >= 2) return 4;
    for (const char* words : {"cvt", "set", "bar", "barrier", "shfl", "cp", "vote", "wgmma", "mma"}) {
      if (name == words) return 4;
    }
    const size_t digits = type.find_first_of("0123456789");
    if (digits == std::string::npos) return 4;
    const bool wide = name == "mad" && operation[1] == "wide" && index == 3;
    return wide || type.substr(digits) == "64" ? 8 : 4;
  }

  void operands(Instruction& made, const std::vector<std::string>& operation, const std::string& text) {
    size_t index = 0;
    std::string word;
    const auto flush = [&] {
      word = trimmed(word);
      if (word.empty()) return;
      if (word[0] == '[') {
        std::string inside = word.substr(1, word.size() - 2);
        if (const size_t plus = inside.find('+'); plus != std::string::npos) {
          if (operation[0] == "cp") fail(made.text);  // one offset for two addresses
          made.offset = std::stoll(inside.substr(plus + 1));
          inside.resize(plus);
        }
        add(made, trimmed(inside), 8);
      } else {
        add(made, word, constant_width(operation, index));
      }
      ++index;
      word.clear();
    };
    for (const char c : text + ",") {
      if (c == ',' || c == '|') {
        flush();
      } else if (c != '{' && c != '}') {
        word += c;
      }
    }
  }

  std::unique_ptr<Program> program_;
  std::map<std::string, Register> registers_;
  std::map<std::string, size_t> parameters_;  // their places
  std::map<std::string, Array> arrays_;
  std::map<std::pair<uint64_t, int8_t>, int32_t> constants_;  // places by bits and width
  std::map<std::string, int32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::string argument_;
  std::vector<size_t> dynamic_;  // constants that are the address of dynamic memory, by their numbers
  size_t shared_bytes_ = 0, dynamic_align_ = 1;
};

}  // namespace

std::string without_file(std::string name) {
  static const std::string kUnnamed = "_GLOBAL__N_";
  for (size_t at = name.find(kUnnamed); at != std::string::npos; at = name.find(kUnnamed, at + 2)) {
    const size_t begin = number_before(name, at);
    if (begin == at) continue;
    const size_t length = std::stoul(name.substr(begin, at - begin));
    name.replace(begin, at - begin + length, "12_GLOBAL__N_1");
    at = begin + 12;
  }
  return name;
}

std::map<std::string, std::string> kernels_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot read " + path);
  std::string module, line, name, text;
  std::map<std::string, std::string> kernels;
  bool inside = false;
  std::ptrdiff_t depth = 0;
  while (std::getline(file, line)) {
    if (const size_t comment = line.find("//"); comment != std::string::npos) line.resize(comment);
    if (!inside) {
      const size_t entry = line.find(".entry ");
      if (entry == std::string::npos) {
        if (line.rfind(".shared", 0) == 0 || line.rfind(".extern .shared", 0) == 0 ||
            line.rfind(".global", 0) == 0) {
          module += line + "\n";
        }
        continue;
      }
      inside = true;
      name = line.substr(entry + 7, line.find('(') - entry - 7);
      text = line.substr(line.find('(')) + "\n";
      continue;
    }
    text += line + "\n";
    depth += std::count(line.begin(), line.end(), '{') - std::count(line.begin(), line.end(), '}');
    if (depth == 0 && line == "}") {
      if (!kernels.emplace(without_file(name), module + ".entry" + text).second) fail("two kernels " + name);
      inside = false;
    }
  }
  return kernels;
}

std::unique_ptr<Program> decode(const std::string& name, const std::string& text) {
  Decoder decoder(name);
  const size_t entry = text.find(".entry(");
  for (const std::string& line : split(text.substr(0, entry), '\n')) decoder.module(line);
  const size_t list = entry + 7, end = text.find(')', list), body = text.find('{', end);
  decoder.parameters(text.substr(list, end - list));
  decoder.body(text.substr(body + 1, text.rfind('}') - body - 1));
  return decoder.finish();
}

}  // namespace emulation::ptx
