#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace d2lfast::ops {

// Uninitialised memory of the calling thread, aligned to a cache line and valid until the thread's next
// call. Blocks of up to 8 MiB are kept for that call, which saves the page faults of fresh memory.
inline void* thread_scratch(size_t bytes) {
  constexpr size_t kAlignment = 64, kKept = size_t{8} << 20;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity || capacity > kKept) {
    memory.reset();
    capacity = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    memory.reset(std::aligned_alloc(kAlignment, capacity));
    if (memory == nullptr) {
      capacity = 0;
      throw std::bad_alloc();
    }
  }
  return memory.get();
}

}  // namespace d2lfast::ops
