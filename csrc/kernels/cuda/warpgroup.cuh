#pragma once

#include <type_traits>

#include "device.cuh"

// Products by a warpgroup (four warps, the first a multiple of four) from shared memory: asynchronous, on
// sm_90a alone. Thread l of warp w has rows 16w + g and + 8 of 64 (g = l / 4, t = l % 4): sum[4j + 2 half +
// n] is row g + 8 half and column 8j + 2t + n. Section numbers are those of the PTX ISA, 9.1.
namespace d2lfast::cuda {

// A factor is stored in lines of 128 bytes, of which every eight are 1024 bytes on a boundary of 1024: the
// 128-byte swizzle, in which piece i of 16 bytes of line r is at place i ^ r % 8 (9.7.15.5.1.2). A line is
// along k (K-major); or it is one k of 64 rows in 16 bits (MN-major), of which blocks follow in equal
// distances.
constexpr int kFactorLine = 128, kFactorAlign = 1024;
constexpr int kGroupThreads = 128;

__device__ __forceinline__ constexpr int swizzled_piece(int line, int piece) { return piece ^ line % 8; }

// Matrix descriptor (9.7.15.5.1.2.2) without the address and the leading dimension's offset, which is that of
// the blocks and otherwise not used: 1024 bytes from 8 lines to the next 8, swizzle of 128 bytes.
constexpr uint64_t kFactorLayout = uint64_t{1} << 62 | uint64_t{kFactorAlign / 16} << 32;
// The next 32 bytes along k: the swizzle is of addresses, so that the start moves alone. Of lines, the
// next 16.
template <bool kLines>
constexpr uint64_t kNextProduct = (kLines ? 16 * kFactorLine : 32) / 16;

}  // namespace d2lfast::cuda

#ifdef __CUDACC__
namespace d2lfast::cuda {

// Whether the current device is the one that the build's code for sm_90a (D2LFAST_SM90A) runs on.
inline bool device_has_products() {
#ifdef D2LFAST_SM90A
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
#else
  return false;
#endif
}

// Shared memory on the boundary that factors need.
template <typename T>
__device__ __forceinline__ SharedPointer<T> factor_memory() {
  extern __shared__ __align__(kFactorAlign) unsigned char d2lfast_factor_memory[];
  return reinterpret_cast<T*>(d2lfast_factor_memory);
}

template <typename T>
__device__ __forceinline__ uint64_t factor(const T* start, uint64_t block_bytes = 16) {
  return kFactorLayout | block_bytes / 16 << 16 | (__cvta_generic_to_shared(start) & 0x3ffff) >> 4;
}

// The memory of factors, for sums: after a barrier behind the wait for the last product.
template <typename T>
__device__ __forceinline__ SharedPointer<float> sum_memory() {
  return factor_memory<float>();
}

// The compiler moves no access to sums across it; of products it does not know when they read and write them.
// Before the first product and after the last wait.
template <int kSums>
__device__ __forceinline__ void pin_sums(float (&sum)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// This thread's writes to shared memory before, for products after the next barrier (9.7.15.4). Copies of
// cp.async count as writes: only its bulk forms are the products' proxy's.
__device__ __forceinline__ void fence_factors() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
// Between other accesses to sums and the first product into them (9.7.15.7.1).
__device__ __forceinline__ void fence_sums() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

#define D2LFAST_SUMS_8(i)                                                                                 \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define D2LFAST_SUMS_32(i) \
  D2LFAST_SUMS_8(i), D2LFAST_SUMS_8(i + 8), D2LFAST_SUMS_8(i + 16), D2LFAST_SUMS_8(i + 24)
#define D2LFAST_PRODUCT_64(type, transposed)                                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type          \
               " {"                                                                 \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"             \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, " \
               "%32, %33, 1, 1, 1, " transposed ", " transposed ";\n"               \
               : D2LFAST_SUMS_32(0)                                                 \
               : "l"(left), "l"(right))
#define D2LFAST_PRODUCT_128(type, transposed)                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type         \
               " {"                                                                 \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"             \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"   \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"   \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, " \
               "%64, %65, 1, 1, 1, " transposed ", " transposed ";\n"               \
               : D2LFAST_SUMS_32(0), D2LFAST_SUMS_32(32)                            \
               : "l"(left), "l"(right))
#define D2LFAST_PRODUCT_256(type, transposed)                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                         \
               " {"                                                                                 \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                             \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                   \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                   \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                   \
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                   \
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                   \
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"       \
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, " \
               "%128, %129, 1, 1, 1, " transposed ", " transposed ";\n"                             \
               : D2LFAST_SUMS_32(0), D2LFAST_SUMS_32(32), D2LFAST_SUMS_32(64), D2LFAST_SUMS_32(96)  \
               : "l"(left), "l"(right))

// sum += left * right over 16 of k, of 64 rows of one factor and kColumns of the other, in bfloat16 or
// float16. Floats would be cut to TF32, not rounded (wgmma.mma_async, precision and rounding). kLines: both
// factors are in lines of one k each.
template <typename T, int kColumns, bool kLines>
__device__ __forceinline__ void begin_product(float (&sum)[kColumns / 2], uint64_t left, uint64_t right) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  static_assert(std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>);
  if constexpr (std::is_same_v<T, Float16> && !kLines) {
    if constexpr (kColumns == 64) D2LFAST_PRODUCT_64("f16", "0");
    if constexpr (kColumns == 128) D2LFAST_PRODUCT_128("f16", "0");
    if constexpr (kColumns == 256) D2LFAST_PRODUCT_256("f16", "0");
  } else if constexpr (std::is_same_v<T, Float16>) {
    if constexpr (kColumns == 64) D2LFAST_PRODUCT_64("f16", "1");
    if constexpr (kColumns == 128) D2LFAST_PRODUCT_128("f16", "1");
    if constexpr (kColumns == 256) D2LFAST_PRODUCT_256("f16", "1");
  } else if constexpr (!kLines) {
    if constexpr (kColumns == 64) D2LFAST_PRODUCT_64("bf16", "0");
    if constexpr (kColumns == 128) D2LFAST_PRODUCT_128("bf16", "0");
    if constexpr (kColumns == 256) D2LFAST_PRODUCT_256("bf16", "0");
  } else {
    if constexpr (kColumns == 64) D2LFAST_PRODUCT_64("bf16", "1");
    if constexpr (kColumns == 128) D2LFAST_PRODUCT_128("bf16", "1");
    if constexpr (kColumns == 256) D2LFAST_PRODUCT_256("bf16", "1");
  }
}
#undef D2LFAST_PRODUCT_256
#undef D2LFAST_PRODUCT_128
#undef D2LFAST_PRODUCT_64
#undef D2LFAST_SUMS_32
#undef D2LFAST_SUMS_8
#endif

}  // namespace d2lfast::cuda
#else
#include "emulated_warpgroup.h"
#endif
