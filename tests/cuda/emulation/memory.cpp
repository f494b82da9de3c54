#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

#include <cxxabi.h>
#include <torch/library.h>

#include "grid.h"

// Tensors of the emulated GPU end where an unreadable page begins, so that an access past the end stops the
// program; new memory is NaN in every floating type; bytes before a tensor are checked when it is freed, and
// its addresses are not given again.
namespace {

constexpr size_t kPage = 4096, kAlign = 16;
constexpr size_t kLarge = size_t{1} << 30;
constexpr unsigned char kFence = 0x5a;

struct Header {
  void* start;
  size_t bytes, size;
};

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
constexpr size_t kArena = size_t{1} << 43;

std::mutex headers_lock;
std::unordered_map<void*, Header> headers;

void release(void* context) {
  Header found;
  {
    const std::lock_guard lock(headers_lock);
    const auto entry = headers.find(context);
    if (entry == headers.end()) return;
    found = entry->second;
    headers.erase(entry);
  }
  const Header* header = &found;
  const auto* data = static_cast<unsigned char*>(header->start) + kPage;
  const size_t before = (header->bytes - 2 * kPage) - (header->size + kAlign - 1) / kAlign * kAlign;
  const auto intact = [](const unsigned char* p, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (p[i] != kFence) return false;
    }
    return true;
  };
  const size_t slack = (header->size + kAlign - 1) / kAlign * kAlign - header->size;
  if (header->bytes < kLarge && (!intact(data, before) || !intact(data + before + header->size, slack))) {
    static constexpr char kText[] = "emulated GPU: a write outside a tensor\n";
    if (write(2, kText, sizeof(kText) - 1) < 0) std::abort();
    std::abort();
  }
  mmap(header->start, header->bytes, PROT_NONE, kAnonymous | MAP_FIXED, -1, 0);
}

// Pages that nobody had.
unsigned char* new_pages(size_t bytes) {
  static unsigned char* next = [] {
    void* arena = mmap(nullptr, kArena, PROT_NONE, kAnonymous, -1, 0);
    TORCH_CHECK(arena != MAP_FAILED, "no addresses for tensors");
    emulation::watch_global(arena, kArena);
    return static_cast<unsigned char*>(arena);
  }();
  static const unsigned char* const end = next + kArena;
  const std::lock_guard lock(headers_lock);
  TORCH_CHECK(bytes <= static_cast<size_t>(end - next), "out of memory");
  unsigned char* pages = next;
  next += bytes;
  return pages;
}

struct FencedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, release, c10::Device(c10::DeviceType::CPU)};
    const size_t aligned = (size + kAlign - 1) / kAlign * kAlign;
    const size_t body = (aligned + kPage - 1) / kPage * kPage;
    const size_t bytes = body + 2 * kPage;
    unsigned char* start = new_pages(bytes);
    TORCH_CHECK(mprotect(start + kPage, body, PROT_READ | PROT_WRITE) == 0, "out of memory");
    unsigned char* data = start + kPage + body - aligned;
    // Of more than a gigabyte only the end is marked: such tensors are for launches that do not run.
    if (body < kLarge) std::memset(start + kPage, kFence, body);
    if (body < kLarge) std::memset(data, 0xff, size);
    {
      const std::lock_guard lock(headers_lock);
      headers[data] = {start, bytes, size};
    }
    return {data, data, release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
};

const bool installed = [] {
  static FencedAllocator allocator;
  c10::SetCPUAllocator(&allocator, 255);
  emulation::Grid::get().guarded = true;
  return true;
}();

// "record": keep launches; "dry": keep and do not run; "far": keep, and of launches of more than kFarBlocks
// run the last block only, which has the last elements; "capture": keep, as while a graph is captured; "run":
// run only. Returns the launches kept so far, a line of grid, block, bytes of shared memory and the kernel's
// type for each, and forgets them.
std::string control(std::string_view mode) {
  auto& grid = emulation::Grid::get();
  std::string text;
  for (const auto& [launch, parameters] : grid.records) {
    for (const dim3& d : {launch.grid, launch.block}) {
      for (unsigned size : {d.x, d.y, d.z}) text += std::to_string(size) + " ";
    }
    char* name = abi::__cxa_demangle(parameters.c_str(), nullptr, nullptr, nullptr);
    text += std::to_string(launch.shared_bytes) + " " + name + "\n";
    std::free(name);
  }
  grid.records.clear();
  grid.recording = mode != "run";
  grid.dry = mode == "dry";
  grid.far = mode == "far";
  emulation::capturing = mode == "capture";
  return text;
}

TORCH_LIBRARY_FRAGMENT(d2lfast, m) { m.def("_emulated_gpu(str mode) -> str", control); }

}  // namespace
