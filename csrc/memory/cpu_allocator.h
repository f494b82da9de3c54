#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace d2lfast::memory {

// Sends torch's CPU allocations of `min_bytes` and more to one BlockCache, which keeps at most
// `max_cached_bytes` in free blocks; smaller ones go to the allocator that was there before. Raises if
// another allocator of higher priority is registered. May be called again with other values.
void enable(size_t min_bytes, size_t max_cached_bytes, bool huge_pages);
// Gives the free blocks back; live ones follow when they are freed.
void disable();
void empty_cache();
void reset_peak();
std::map<std::string, uint64_t> stats();

}  // namespace d2lfast::memory
