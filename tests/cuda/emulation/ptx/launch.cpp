#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "counts.h"

// Launches of the emulated GPU by the kernels' PTX instead of their C++ (D2LFAST_EMULATED_PTX: the folder).
namespace emulation::ptx {
namespace {

// The kernels of the folder, by their addresses in the emulation's library.
class Library {
 public:
  explicit Library(const std::string& folder) {
    Dl_info here;
    if (dladdr(reinterpret_cast<void*>(&kernels_of), &here) == 0) throw std::runtime_error("PTX: no library");
    base_ = static_cast<const unsigned char*>(here.dli_fbase);
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".ptx") texts_.merge(kernels_of(entry.path()));
    }
    // Distances of functions in the library, as nm prints them.
    std::ifstream symbols(folder + "/symbols");
    std::string address, kind, name;
    while (symbols >> address >> kind >> name) names_[std::stoull(address, nullptr, 16)] = name;
    if (names_.empty()) throw std::runtime_error("PTX: no symbols");
  }

  const Program& of(const void* kernel) {
    const auto distance = static_cast<uint64_t>(static_cast<const unsigned char*>(kernel) - base_);
    const std::string name = without_file(names_.at(distance));
    if (!programs_.contains(name)) {
      if (!texts_.contains(name)) throw std::runtime_error("PTX: no kernel " + name);
      programs_[name] = decode(name, texts_[name]);
    }
    return *programs_[name];
  }

 private:
  const unsigned char* base_;
  std::map<uint64_t, std::string> names_;
  std::map<std::string, std::string> texts_;
  std::map<std::string, std::unique_ptr<Program>> programs_;
};

void run_compiled(const void* kernel, const Launch& launch, int64_t least,
                  const std::vector<Argument>& arguments) {
  // Never freed: counts of accesses name instructions when the process ends.
  static Library& library = *new Library(std::getenv("D2LFAST_EMULATED_PTX"));
  const Program& program = library.of(kernel);
  std::vector<unsigned char> parameters(program.parameter_bytes);
  if (arguments.size() != program.parameters.size()) {
    throw std::runtime_error("PTX: parameters of " + program.name);
  }
  for (size_t n = 0; n < arguments.size(); ++n) {
    const auto [offset, size] = program.parameters[n];
    if (size != arguments[n].size) throw std::runtime_error("PTX: parameters of " + program.name);
    std::memcpy(&parameters[offset], arguments[n].value, size);
  }
  count_for(program);
  try {
    run_grid(program, launch, least, parameters.data());
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("emulated GPU: " + std::string(error.what()) + " in " + program.name);
  }
}

const bool chosen = [] {
  if (std::getenv("D2LFAST_EMULATED_PTX") != nullptr) Grid::get().compiled = run_compiled;
  return true;
}();

}  // namespace
}  // namespace emulation::ptx
