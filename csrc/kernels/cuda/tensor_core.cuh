#pragma once

#include <type_traits>

#include "device.cuh"

// Products of 16-bit fragments on tensor cores with sums in float. Lane l of a warp has g = l / 4, t = l % 4:
// a: rows g and g + 8, columns 2t, 2t+1 and 2t+8, 2t+9; b: the same columns' rows, column g;
// sum: rows g and g + 8, columns 2t, 2t+1 (PTX ISA, mma.m16n8k16).
#ifdef __CUDACC__
namespace d2lfast::cuda {

template <typename T>
__device__ __forceinline__ void multiply_16x8x16(float (&sum)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  static_assert(sizeof(T) == 2);
  if constexpr (std::is_same_v<T, Float16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Two neighbouring elements at an even index.
template <typename T>
__device__ __forceinline__ uint32_t load_pair(const T* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}

}  // namespace d2lfast::cuda
#else
#include "emulated_tensor_core.h"
#endif
