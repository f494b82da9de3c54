#include "block_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

namespace d2lfast::memory {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSegment = size_t{32} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Eight sizes to a doubling, then whole huge pages: sizes that differ little share blocks.
size_t size_class(size_t bytes) {
  size_t unit = kPage;
  while (unit * 16 < bytes && unit < kHugePage) unit *= 2;
  return round_up(std::max<size_t>(bytes, 1), unit);
}

// Maps `size` bytes, a multiple of huge pages, at a boundary of huge pages; nullptr if there is no memory.
char* map_aligned(size_t size) {
  const size_t padded = size + kHugePage;
  void* const mapped = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const start = static_cast<char*>(mapped);
  const size_t skipped =
      round_up(reinterpret_cast<uintptr_t>(start), kHugePage) - reinterpret_cast<uintptr_t>(start);
  if (skipped > 0) munmap(start, skipped);
  if (skipped < kHugePage) munmap(start + skipped + size, kHugePage - skipped);
  return start + skipped;
}

}  // namespace

BlockCache::~BlockCache() { release_cached(); }

void BlockCache::set_options(const Options& options) {
  const std::lock_guard<std::mutex> lock(mutex_);
  options_ = options;
  release(options.max_cached_bytes);
}

void* BlockCache::allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  const size_t size = size_class(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  ++stats_.requests;
  Block key{nullptr, size, 0, false, nullptr, nullptr};
  const auto found = free_.lower_bound(&key);
  Block* block;
  if (found != free_.end()) {
    ++stats_.hits;
    block = *found;
    erase_free(block);
  } else {
    block = map_segment(size);
    if (block == nullptr) {
      release(0);
      block = map_segment(size);
    }
    if (block == nullptr) return nullptr;
  }
  take(block, size);
  return block->data;
}

bool BlockCache::free(void* data, void (*freed)(void*)) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (address < lowest_.load(std::memory_order_acquire) ||
      address >= highest_.load(std::memory_order_acquire)) {
    return false;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = live_.find(data);
  if (found == live_.end()) return false;
  if (freed != nullptr) freed(data);
  Block* block = found->second;
  live_.erase(found);
  stats_.allocated_bytes -= block->size;
  block->live = false;
  block->resident = block->size;
  if (block->before != nullptr && !block->before->live) {
    erase_free(block->before);
    block = join(block->before, block);
  }
  if (block->after != nullptr && !block->after->live) {
    erase_free(block->after);
    block = join(block, block->after);
  }
  insert_free(block);
  release(options_.max_cached_bytes);
  return true;
}

void BlockCache::release_cached() {
  const std::lock_guard<std::mutex> lock(mutex_);
  release(0);
}

BlockCache::Stats BlockCache::stats() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void BlockCache::reset_peak() {
  const std::lock_guard<std::mutex> lock(mutex_);
  stats_.peak_allocated_bytes = stats_.allocated_bytes;
}

void BlockCache::after_fork_in_child() {
  // Its pages are the parent's too: writing to them would copy what nobody reads.
  for (Block* block : free_) empty(block);
  mutex_.unlock();
}

BlockCache::Block* BlockCache::map_segment(size_t bytes) {
  const size_t size = round_up(std::max(bytes, bytes < kSegment / 2 ? kSegment : bytes), kHugePage);
  char* const data = map_aligned(size);
  if (data == nullptr) return nullptr;
#ifdef MADV_HUGEPAGE
  if (options_.huge_pages) stats_.huge_pages = madvise(data, size, MADV_HUGEPAGE) == 0;
#endif
  stats_.mapped_bytes += size;
  const auto address = reinterpret_cast<uintptr_t>(data);
  lowest_.store(std::min(lowest_.load(std::memory_order_relaxed), address), std::memory_order_release);
  highest_.store(std::max(highest_.load(std::memory_order_relaxed), address + size),
                 std::memory_order_release);
  return new Block{data, size, 0, false, nullptr, nullptr};
}

// Makes a block that is in no list live, without what exceeds `size`.
void BlockCache::take(Block* block, size_t size) {
  if (block->size > size) {
    const size_t left = block->size - size;
    Block* const rest =
        new Block{block->data + size, left, std::min(left, block->resident), false, block, block->after};
    if (rest->after != nullptr) rest->after->before = rest;
    block->after = rest;
    block->size = size;
    insert_free(rest);
  }
  block->live = true;
  live_.emplace(block->data, block);
  stats_.allocated_bytes += size;
  stats_.peak_allocated_bytes = std::max(stats_.peak_allocated_bytes, stats_.allocated_bytes);
}

void BlockCache::insert_free(Block* block) {
  free_.insert(block);
  stats_.cached_bytes += block->resident;
}

void BlockCache::erase_free(Block* block) {
  free_.erase(block);
  stats_.cached_bytes -= block->resident;
}

// Both are in no list.
BlockCache::Block* BlockCache::join(Block* first, Block* second) {
  first->size += second->size;
  first->resident += second->resident;
  first->after = second->after;
  if (first->after != nullptr) first->after->before = first;
  delete second;
  return first;
}

// The pages of a free block go back to the kernel; its addresses stay.
void BlockCache::empty(Block* block) {
  if (block->resident == 0) return;
  madvise(block->data, block->size, MADV_DONTNEED);
  stats_.cached_bytes -= block->resident;
  stats_.released_bytes += block->resident;
  block->resident = 0;
}

// Largest blocks first; whole segments are unmapped.
void BlockCache::release(size_t keep) {
  if (stats_.cached_bytes <= keep && keep > 0) return;
  const std::vector<Block*> blocks(free_.rbegin(), free_.rend());
  for (Block* block : blocks) {
    if (stats_.cached_bytes <= keep && keep > 0) return;
    if (block->before == nullptr && block->after == nullptr) {
      erase_free(block);
      munmap(block->data, block->size);
      stats_.mapped_bytes -= block->size;
      stats_.released_bytes += block->resident;
      delete block;
    } else {
      empty(block);
    }
  }
}

}  // namespace d2lfast::memory
