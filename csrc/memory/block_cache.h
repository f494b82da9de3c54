#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

namespace d2lfast::memory {

// Keeps freed blocks of memory for the next request, so that the kernel need not map and clear them again.
//
// Memory is mapped in segments of whole huge pages. A request takes the smallest free block that fits (of
// equal ones that of the lowest address) and splits off what it does not need; a freed block joins its free
// neighbours. All functions may be called from every thread. In a forked child the free blocks are empty and
// the lock is free.
class BlockCache {
 public:
  struct Options {
    size_t max_cached_bytes;  // in free blocks
    bool huge_pages;
  };
  struct Stats {
    uint64_t allocated_bytes, peak_allocated_bytes;  // in live blocks
    uint64_t cached_bytes;                           // of free blocks that may be resident
    uint64_t mapped_bytes;
    uint64_t requests, hits;  // a hit is served without mapping
    uint64_t released_bytes;  // given back to the kernel so far
    bool huge_pages;          // the kernel took the advice
  };

  BlockCache() = default;
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache();

  void set_options(const Options& options);
  // A block aligned to 4 KiB; nullptr if the kernel has no memory even after all free blocks went back to it.
  void* allocate(size_t bytes);
  // False if `data` is no live block of this cache. `freed` is called before the block can be somebody
  // else's.
  bool free(void* data, void (*freed)(void*) = nullptr);
  void release_cached();
  Stats stats();
  // The peak counts from now on.
  void reset_peak();

  // Around fork(): to be called before it, and after it in the parent and in the child.
  void before_fork() { mutex_.lock(); }
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child();

 private:
  struct Block {
    char* data;
    size_t size;
    size_t resident;  // bytes of a free block that may be resident
    bool live;
    Block *before, *after;  // in the segment
  };
  struct Smaller {
    bool operator()(const Block* a, const Block* b) const {
      return a->size != b->size ? a->size < b->size : a->data < b->data;
    }
  };

  Block* map_segment(size_t bytes);
  void take(Block* block, size_t size);
  void insert_free(Block* block);
  void erase_free(Block* block);
  Block* join(Block* first, Block* second);
  void empty(Block* block);
  // Until free blocks hold no more than `keep`; of 0, all of them.
  void release(size_t keep);

  std::mutex mutex_;
  Options options_{SIZE_MAX, true};
  Stats stats_{};
  std::set<Block*, Smaller> free_;
  std::unordered_map<void*, Block*> live_;
  // What was ever mapped lies between these: most foreign addresses are told without the lock.
  std::atomic<uintptr_t> lowest_{UINTPTR_MAX}, highest_{0};
};

}  // namespace d2lfast::memory
