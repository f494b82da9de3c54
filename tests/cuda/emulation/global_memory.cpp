#include "global_memory.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

namespace {

constexpr uint32_t kNobody = 0, kManyBlocks = 0xffffffffu, kMany = 0x80000000u;

// Of a byte, in this launch: the last writer and reader, by number from 1, and when, by barriers. A reader
// with kMany: more threads of its block.
struct Accesses {
  uint32_t writer = kNobody, reader = kNobody;
  uint16_t write_block_epoch = 0, write_grid_epoch = 0, read_block_epoch = 0, read_grid_epoch = 0;

  bool operator==(const Accesses&) const = default;
};

constexpr size_t kPage = 1024, kRemembered = 256;
using Page = std::array<Accesses, kPage>;

uintptr_t watched_begin = 0;
size_t watched_bytes = 0;
uint32_t block_threads = 1, thread = kNobody, block = 0;
const int64_t* block_epoch = nullptr;
const int64_t* grid_epoch = nullptr;

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::vector<std::unique_ptr<Page>> spare;
struct Remembered {
  uintptr_t number = 0;
  Page* page = nullptr;
};
std::array<Remembered, kRemembered> remembered;  // pages, by the last digits of their numbers
std::string found;

uint32_t block_of(uint32_t who) { return ((who & ~kMany) - 1) / block_threads; }

void report(const char* what, uint32_t who) {
  if (!found.empty()) return;
  found = std::string(what) + " of ";
  if (who == kManyBlocks) {
    found += "several blocks";
  } else {
    found += ((who & kMany) != 0 ? "threads" : "thread " + std::to_string((who - 1) % block_threads)) +
             " of block " + std::to_string(block_of(who));
  }
}

Accesses* accesses(uintptr_t address) {
  const uintptr_t number = address / kPage;
  Remembered& known = remembered[number % kRemembered];
  if (number != known.number || known.page == nullptr) {
    auto& page = pages[number];
    if (page == nullptr) {
      if (spare.empty()) {
        page = std::make_unique<Page>();
      } else {
        page = std::move(spare.back());
        spare.pop_back();
        page->fill({});
      }
    }
    known = {number, page.get()};
  }
  return known.page->data() + address % kPage;
}

// Whether this thread's access is not ordered after one of `who` at these epochs.
bool concurrent(uint32_t who, uint16_t at_block_epoch, uint16_t at_grid_epoch) {
  if (who == kNobody || who == thread || at_grid_epoch != static_cast<uint16_t>(*grid_epoch)) return false;
  if (who == kManyBlocks || block_of(who) != block) return true;
  return at_block_epoch == static_cast<uint16_t>(*block_epoch);
}

// What is known of a byte after this thread's access.
Accesses after(Accesses a, bool write) {
  const auto now = static_cast<uint16_t>(*block_epoch), grid_now = static_cast<uint16_t>(*grid_epoch);
  if (concurrent(a.writer, a.write_block_epoch, a.write_grid_epoch)) {
    report(write ? "a write of global memory that races with a write"
                 : "a read of global memory that races with a write",
           a.writer);
  }
  if (write) {
    if (concurrent(a.reader, a.read_block_epoch, a.read_grid_epoch)) {
      report("a write of global memory that races with a read", a.reader);
    }
    a.writer = thread;
    a.write_block_epoch = now;
    a.write_grid_epoch = grid_now;
    return a;
  }
  uint32_t reader = thread;
  if (a.reader != kNobody && a.reader != thread && a.read_grid_epoch == grid_now) {
    if (a.reader == kManyBlocks || block_of(a.reader) != block) {
      reader = kManyBlocks;
    } else if (a.read_block_epoch == now) {
      reader |= kMany;
    }
  }
  a.reader = reader;
  a.read_block_epoch = now;
  a.read_grid_epoch = grid_now;
  return a;
}

void note(uintptr_t begin, size_t bytes, bool write) {
  for (size_t done = 0; done < bytes;) {
    Accesses* const a = accesses(begin + done);
    const size_t count = std::min(bytes - done, kPage - (begin + done) % kPage);
    for (size_t i = 0; i < count;) {
      // Neighbours mostly have the same past.
      const Accesses before = a[i], now = after(before, write);
      do {
        a[i++] = now;
      } while (i < count && a[i] == before);
    }
    done += count;
  }
}

inline void access(const void* address, size_t bytes, bool write) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin - watched_begin < watched_bytes && thread != kNobody) note(begin, bytes, write);
}

}  // namespace

namespace emulation {

void watch_global(const void* begin, size_t bytes) {
  watched_begin = reinterpret_cast<uintptr_t>(begin);
  watched_bytes = bytes;
}

void begin_global(unsigned threads_of_block) { block_threads = threads_of_block; }

void end_global() {
  thread = kNobody;
  for (auto& [number, page] : pages) spare.push_back(std::move(page));
  pages.clear();
  remembered.fill({});
}

void run_global(unsigned number, const int64_t& block_now, const int64_t& grid_now) {
  thread = number + 1;
  block = number / block_threads;
  block_epoch = &block_now;
  grid_epoch = &grid_now;
}

void read_global(const void* address, size_t bytes) { access(address, bytes, false); }
void write_global(const void* address, size_t bytes) { access(address, bytes, true); }

std::string race_on_global() { return std::move(found); }

}  // namespace emulation

// What the compiler calls, by the names that it knows.
extern "C" {
#define D2LFAST_ACCESS(size)                                              \
  void __tsan_read##size(void* address) { access(address, size, false); } \
  void __tsan_write##size(void* address) { access(address, size, true); }
D2LFAST_ACCESS(1)
D2LFAST_ACCESS(2)
D2LFAST_ACCESS(4)
D2LFAST_ACCESS(8)
D2LFAST_ACCESS(16)
void __tsan_read_range(void* address, size_t bytes) { access(address, bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { access(address, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
// Of the host's static variables and shared pointers: kernels use no atomics.
char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_fetch_add(volatile int* address, int value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
}
