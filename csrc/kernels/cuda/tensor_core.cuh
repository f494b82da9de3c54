#pragma once

#include <type_traits>

#include "device.cuh"

// Products of fragments on tensor cores with sums in float. Lane l of a warp has g = l / 4, t = l % 4. A
// fragment spans 32 bytes along k: 16 elements of 16 bits (pairs 2t, 2t+1 and 2t+8, 2t+9) or 8 floats (t and
// t+4). a: rows g and g + 8; b: column g; sum: rows g and g + 8, columns 2t, 2t+1 (PTX ISA, mma.m16n8k16,
// .m16n8k8).
#ifdef __CUDACC__
namespace d2lfast::cuda {

template <typename T>
__device__ __forceinline__ void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Float16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, float>);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// A float's bits, rounded to TF32's 10 bits of mantissa.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// Four matrices of 8 rows of 16 bytes, aligned to 16 bytes. Lane 8m + r passes row r of matrix m, and gets
// bytes 4t to 4t+3 of row g of each.
template <typename T>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const T* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// Of 16-bit elements: the lane gets elements g of rows 2t and 2t+1 of each.
template <typename T>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const T* row) {
  static_assert(sizeof(T) == 2);
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

}  // namespace d2lfast::cuda
#else
#include "emulated_tensor_core.h"
#endif
