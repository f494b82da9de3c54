#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

namespace d2lfast::ops {

// Sums the chunks' partial results in their order. Returns false where a sum is not finite.
template <typename A>
bool sum_chunks(A* partial, int64_t chunks, int64_t size) {
  std::atomic<bool> finite = true;
  at::parallel_for(0, size, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const A* from = partial + chunk * size;
      for (int64_t i = begin; i < end; ++i) partial[i] += from[i];
    }
    A zero = 0;
    for (int64_t i = begin; i < end; ++i) zero += partial[i] * A(0);
    if (zero != A(0)) finite = false;
  });
  return finite;
}

}  // namespace d2lfast::ops
