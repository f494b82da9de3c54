#include "cpu_allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "block_cache.h"

namespace d2lfast::memory {

namespace {

constexpr uint8_t kPriority = 1;  // above torch's own
// Beyond it glibc maps each block afresh for good (its DEFAULT_MMAP_THRESHOLD_MAX).
constexpr size_t kLargestHeapBlock = size_t{31} << 20;

// Never destroyed: tensors may outlive every other object of the process.
BlockCache& cache() {
  static BlockCache* const instance = new BlockCache;
  return *instance;
}

class CachingAllocator final : public c10::Allocator {
 public:
  explicit CachingAllocator(c10::Allocator* allocator) { previous = allocator; }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes >= min_bytes_.load(std::memory_order_relaxed)) {
      if (void* const data = cache().allocate(bytes)) {
        c10::profiledCPUMemoryReporter().New(data, bytes);
        return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
      }
    }
    try {
      return wrap(previous->allocate(bytes));
    } catch (const c10::Error&) {
      cache().release_cached();
      return wrap(previous->allocate(bytes));
    }
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t count) const override {
    default_copy_data(target, source, count);
  }

  // Requests from here on are cached; SIZE_MAX: none.
  void set_min_bytes(size_t min_bytes) { min_bytes_.store(min_bytes, std::memory_order_relaxed); }
  bool enabled() const { return min_bytes_.load(std::memory_order_relaxed) != SIZE_MAX; }

 private:
  // Every block has the deleter that raw_deleter() promises.
  static c10::DataPtr wrap(c10::DataPtr&& block) {
    if (block.get() == nullptr || block.get() != block.get_context()) return std::move(block);
    const c10::Device device = block.device();
    void* const data = block.release_context();
    return {data, data, &release, device};
  }

  static void release(void* data) {
    const auto report = [](void* freed) { c10::profiledCPUMemoryReporter().Delete(freed); };
    if (data != nullptr && !cache().free(data, report)) previous->raw_deallocate(data);
  }

  static c10::Allocator* previous;
  std::atomic<size_t> min_bytes_{SIZE_MAX};
};

c10::Allocator* CachingAllocator::previous = nullptr;

// Registered at the first enable() and for good: torch frees raw blocks (oneDNN's) through the allocator of
// that moment, which must know the live blocks. Disabled, it hands everything to the previous allocator.
CachingAllocator* registered = nullptr;
std::mutex registration;

}  // namespace

void enable(size_t min_bytes, size_t max_cached_bytes, bool huge_pages) {
  const std::lock_guard<std::mutex> lock(registration);
  cache().set_options({max_cached_bytes, huge_pages});
  if (registered == nullptr) {
    c10::Allocator* const previous = c10::GetCPUAllocator();
    TORCH_CHECK(previous->raw_deleter() != nullptr, "the present CPU allocator cannot be delegated to");
    auto* const allocator = new CachingAllocator(previous);
    c10::SetCPUAllocator(allocator, kPriority);
    TORCH_CHECK(c10::GetCPUAllocator() == allocator, "a CPU allocator of higher priority is registered");
    registered = allocator;
    pthread_atfork([] { cache().before_fork(); }, [] { cache().after_fork_in_parent(); },
                   [] { cache().after_fork_in_child(); });
    // glibc maps and trims blocks of 128 KiB until it has seen a larger one freed. The large ones do not come
    // to it any more, so show it one.
    void* volatile block = std::malloc(kLargestHeapBlock);
    std::free(block);
  }
  registered->set_min_bytes(min_bytes);
}

void disable() {
  const std::lock_guard<std::mutex> lock(registration);
  if (registered == nullptr) return;
  registered->set_min_bytes(SIZE_MAX);
  cache().set_options({0, true});
}

void empty_cache() { cache().release_cached(); }

void reset_peak() { cache().reset_peak(); }

std::map<std::string, uint64_t> stats() {
  const auto s = cache().stats();
  const bool enabled = registered != nullptr && registered->enabled();
  return {{"enabled", enabled},
          {"allocated_bytes", s.allocated_bytes},
          {"peak_allocated_bytes", s.peak_allocated_bytes},
          {"cached_bytes", s.cached_bytes},
          {"mapped_bytes", s.mapped_bytes},
          {"requests", s.requests},
          {"hits", s.hits},
          {"released_bytes", s.released_bytes},
          {"huge_pages", s.huge_pages}};
}

}  // namespace d2lfast::memory
