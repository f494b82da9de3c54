#pragma once

#include <array>
#include <cmath>

#include "emulated_device.h"

namespace d2lfast::cuda {

// What every lane of the warp passes.
template <typename Value>
std::array<Value, 32> of_all_lanes(const Value& mine) {
  std::array<Value, 32> lanes;
  const auto* slots = Grid::get().exchange(&mine, sizeof(mine));
  for (int i = 0; i < 32; ++i) std::memcpy(static_cast<void*>(&lanes[i]), slots[i], sizeof(mine));
  return lanes;
}

// The four bytes of `kCount` elements.
template <typename T, int kCount>
uint32_t word_of(const T (&elements)[kCount]) {
  static_assert(sizeof(elements) == 4);
  uint32_t word;
  std::memcpy(&word, elements, sizeof(word));
  return word;
}

template <typename T>
std::array<SharedPointer<T>, 32> matrix_rows(SharedPointer<T> row) {
  if (row.offset() % static_cast<int64_t>(16 / sizeof(T)) != 0) Grid::get().fail("a misaligned matrix row");
  return of_all_lanes(row);
}

template <typename T>
void load_matrices(uint32_t (&to)[4], SharedPointer<T> row) {
  constexpr int kCount = 4 / sizeof(T);
  const auto rows = matrix_rows(row);
  const int lane = Grid::get().current->linear % 32, g = lane / 4, t = lane % 4;
  for (int m = 0; m < 4; ++m) {
    T elements[kCount];
    for (int i = 0; i < kCount; ++i) elements[i] = rows[8 * m + g][kCount * t + i];
    to[m] = word_of(elements);
  }
}

template <typename T>
void load_matrices_transposed(uint32_t (&to)[4], SharedPointer<T> row) {
  const auto rows = matrix_rows(row);
  const int lane = Grid::get().current->linear % 32, g = lane / 4, t = lane % 4;
  for (int m = 0; m < 4; ++m) {
    const T elements[2] = {rows[8 * m + 2 * t][g], rows[8 * m + 2 * t + 1][g]};
    to[m] = word_of(elements);
  }
}

// To the nearest, ties away from zero.
inline uint32_t round_to_tf32(uint32_t bits) {
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

// Element k of a fragment's row, of which `word` holds it.
template <typename T>
float fragment_element(uint32_t word, int k) {
  if constexpr (sizeof(T) == 4) {
    if ((word & 0x1fffu) != 0 && (word & 0x7f800000u) != 0x7f800000u)
      Grid::get().fail("a float that is not TF32");
    return detail::float_of_bits(word);
  } else {
    return to_compute(T{static_cast<uint16_t>(k % 2 == 0 ? word : word >> 16)});
  }
}

// Every lane computes its own sums from the fragments of all.
template <typename T>
void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const auto lanes = of_all_lanes(mine);
  constexpr int kEach = 4 / sizeof(T), kHalf = 4 * kEach;  // elements of a word, of 16 bytes
  const int lane = Grid::get().current->linear % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const auto& left = lanes[row % 8 * 4 + k % kHalf / kEach];
      const auto& right = lanes[column * 4 + k % kHalf / kEach];
      sum[i] += fragment_element<T>(left.a[k / kHalf * 2 + row / 8], k) *
                fragment_element<T>(right.b[k / kHalf], k);
    }
  }
}

}  // namespace d2lfast::cuda
