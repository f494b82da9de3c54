#pragma once

#include "device.cuh"

namespace d2lfast::cuda {

// Of 2 * kWidth values of every lane: a lane gets the sum of the n-th over the lanes that differ from it in
// the bits of n alone, n being the lane's number in these bits, as values[0].
template <int kWidth, typename A, int N>
__device__ __forceinline__ void add_over_lanes(A (&values)[N], int lane) {
  static_assert(2 * kWidth <= N);
  const bool upper = (lane & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const A kept = upper ? values[i + kWidth] : values[i], given = upper ? values[i] : values[i + kWidth];
    values[i] = kept + shuffle_xor(given, kWidth);
  }
  if constexpr (kWidth > 1) add_over_lanes<kWidth / 2>(values, lane);
}

}  // namespace d2lfast::cuda
