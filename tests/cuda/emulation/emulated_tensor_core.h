#pragma once

#include "emulated_device.h"

namespace d2lfast::cuda {

template <typename T>
uint32_t load_pair(SharedPointer<T> from) {
  if (from.offset() % 2 != 0) Grid::get().fail("a misaligned pair");
  const T first = from[0], second = from[1];
  return first.bits | static_cast<uint32_t>(second.bits) << 16;
}

// Every lane computes its own sums from the fragments of all.
template <typename T>
void multiply_16x8x16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine, lanes[32];
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const auto* slots = Grid::get().exchange(&mine, sizeof(mine));
  for (int i = 0; i < 32; ++i) std::memcpy(&lanes[i], slots[i], sizeof(mine));
  const auto element = [](uint32_t pair, int k) {
    return to_compute(T{static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16)});
  };
  const int lane = Grid::get().current->linear % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const auto& left = lanes[row % 8 * 4 + k % 8 / 2];
      const auto& right = lanes[column * 4 + k % 8 / 2];
      sum[i] += element(left.a[k / 8 * 2 + row / 8], k) * element(right.b[k / 8], k);
    }
  }
}

}  // namespace d2lfast::cuda
