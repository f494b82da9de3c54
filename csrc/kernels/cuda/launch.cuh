#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.cuh"

namespace d2lfast::cuda {

constexpr int kThreads = 256;
// Per multiprocessor: at most 64 registers a thread. Left to itself, ptxas spills for more blocks than that.
constexpr int kMinBlocks = 4;
constexpr int64_t kMaxBlocks = 1 << 16;

// A grid-stride loop adds the width of the grid to an index below this, which must not overflow int32.
constexpr int64_t kMaxIndex32 = INT32_MAX - kMaxBlocks * kThreads;

inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

// Division of n >= 0 by d > 0. For int32 it is a multiplication by a reciprocal, rounded up: the GPU has no
// integer division, and unpacking a linear index costs several.
template <typename Index>
struct Divider {
  Index divisor = 1;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<Index>(d)) {}
  D2LFAST_HOST_DEVICE Index divide(Index n) const { return n / divisor; }
};

template <>
struct Divider<int32_t> {
  int32_t divisor = 1;
  uint32_t magic = 1;
  uint32_t shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<int32_t>(d)) {  // d < 2^31
    while ((int64_t{1} << shift) < d) ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  D2LFAST_HOST_DEVICE int32_t divide(int32_t n) const {
    const uint32_t dividend = static_cast<uint32_t>(n);
#ifdef __CUDA_ARCH__
    const uint32_t high = __umulhi(dividend, magic);
#else
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(dividend) * magic) >> 32);
#endif
    return static_cast<int32_t>((high + dividend) >> shift);
  }
};

// index = quotient * divisor + remainder; index becomes the quotient.
template <typename Index>
D2LFAST_HOST_DEVICE Index take_remainder(Index& index, const Divider<Index>& divider) {
  const Index quotient = divider.divide(index);
  const Index remainder = index - quotient * divider.divisor;
  index = quotient;
  return remainder;
}

// Whether a position is one of `count`.
D2LFAST_HOST_DEVICE bool is_below(int32_t position, int32_t count) {
  return static_cast<uint32_t>(position) < static_cast<uint32_t>(count);
}

}  // namespace d2lfast::cuda
