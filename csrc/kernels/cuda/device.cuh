#pragma once

#include <cstddef>
#include <cstdint>

// What the kernels use of the GPU beyond plain C++: shared memory, warps, barriers, tensor cores, launches. A
// test-only header with the same names (tests/cuda/emulation) runs the same bodies on a CPU, so kernels
// touch the GPU through this header alone.
#ifdef __CUDACC__

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <mutex>

#include "vector.cuh"

// Where it does not hold, the launch and with it the process's context end with a message, as those of torch.
#define D2LFAST_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : __assert_fail(#condition, __FILE__, __LINE__, __func__))

// Shared memory is passed as SharedPointer<T> and never through another pointer type.
#define D2LFAST_SHARED(type, name, count) __shared__ __align__(16) type name[count]

namespace d2lfast::cuda {

template <typename T>
using SharedPointer = T*;

template <typename T>
__device__ __forceinline__ SharedPointer<T> dynamic_shared() {
  extern __shared__ __align__(16) unsigned char d2lfast_dynamic_shared[];
  return reinterpret_cast<T*>(d2lfast_dynamic_shared);
}

// V neighbouring elements by one access, aligned to their size.
template <int V, typename T>
__device__ __forceinline__ Vector<T, V> load_shared(const T* address) {
  return load<V>(address);
}

// From a distance in bytes, for which no index is multiplied.
template <int V, typename T>
__device__ __forceinline__ Vector<T, V> load_shared_at(const T* address, int32_t bytes) {
  return load<V>(reinterpret_cast<const T*>(reinterpret_cast<const char*>(address) + bytes));
}

template <int V, typename T>
__device__ __forceinline__ void store_shared(T* address, const Vector<T, V>& value) {
  store(address, value);
}

// 8 or 16 bytes from words in registers, of these or of shorter elements: nvcc would store each word by
// itself.
template <typename T>
__device__ __forceinline__ void store_shared_words(T* address, const Vector<uint32_t, 2>& words) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(address));
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};\n" ::"r"(to), "r"(words.lane[0]), "r"(words.lane[1])
               : "memory");
}
template <typename T>
__device__ __forceinline__ void store_shared_words(T* address, const Vector<uint32_t, 4>& words) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(address));
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(words.lane[0]), "r"(words.lane[1]),
               "r"(words.lane[2]), "r"(words.lane[3])
               : "memory");
}

constexpr unsigned kFullWarp = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}

// Of lane `lane`.
template <typename T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(kFullWarp, value, lane);
}

// Of the lanes where it holds.
__device__ __forceinline__ unsigned ballot(bool predicate) { return __ballot_sync(kFullWarp, predicate); }

// All threads of a cooperative launch.
__device__ __forceinline__ void sync_grid() { cooperative_groups::this_grid().sync(); }

// All threads of a cluster of so many blocks. Before it, no block may reach into another.
__device__ __forceinline__ void sync_cluster(int32_t blocks) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// The same address in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ unsigned address_in_cluster(const float* address, int32_t rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n"
      : "=r"(there)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(address))), "r"(rank));
  return there;
}
#endif

// Into the shared memory of each of the cluster's blocks.
__device__ __forceinline__ void store_in_cluster(float* address, int32_t blocks, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  for (int32_t rank = 0; blocks > 1 && rank < blocks; ++rank) {
    asm volatile("st.shared::cluster.f32 [%0], %1;\n" ::"r"(address_in_cluster(address, rank)), "f"(value)
                 : "memory");
  }
#endif
  if (blocks == 1) *address = value;
}
__device__ __forceinline__ void store_in_cluster(float* address, int32_t blocks,
                                                 const Vector<float, 4>& value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  for (int32_t rank = 0; blocks > 1 && rank < blocks; ++rank) {
    asm volatile(
        "st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(address_in_cluster(address, rank)),
        "f"(value.lane[0]), "f"(value.lane[1]), "f"(value.lane[2]), "f"(value.lane[3])
        : "memory");
  }
#endif
  if (blocks == 1) {
    const auto& lane = value.lane;
    store_shared_words(address, Vector<uint32_t, 4>{__float_as_uint(lane[0]), __float_as_uint(lane[1]),
                                                    __float_as_uint(lane[2]), __float_as_uint(lane[3])});
  }
}

// One element of 4 or 8 bytes, or 8 or 16 bytes, from global to shared memory without a register; `valid`
// false writes zeros and reads nothing.
template <typename T>
__device__ __forceinline__ void copy_async_element(T* to, const T* from, bool valid) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? sizeof(T) : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(target), "l"(from), "r"(bytes),
               "n"(sizeof(T)));
}
template <typename T>
__device__ __forceinline__ void copy_async_8(T* to, const T* from, bool valid) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(target), "l"(from), "r"(bytes));
}
template <typename T>
__device__ __forceinline__ void copy_async_16(T* to, const T* from, bool valid) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;\n" ::); }
template <int kPending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

// A hint: the line with this address will be read soon.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];\n" ::"l"(address));
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;  // blocks along x; more than one is for compute capability 9.0 and later
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments... arguments) {
  // Another thread's smaller launch of this kernel must not lower the limit in between.
  static std::mutex raising;
  std::unique_lock lock(raising, std::defer_lock);
  if (shape.shared_bytes > 48 * 1024) {
    lock.lock();
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (shape.cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster, 1, 1};
  }
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative || shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace d2lfast::cuda

#else
#include "emulated_device.h"
#endif

#include <cmath>

#include "launch.cuh"

namespace d2lfast::cuda {

// The overloads for float and double, on the device and in the emulation.
using std::exp;
using std::exp2;
using std::fma;
using std::fmax;
using std::isfinite;
using std::log;
using std::sqrt;
using std::tanh;

template <typename Index>
__device__ Index first_item() {
  return static_cast<Index>(blockIdx.x) * kThreads + static_cast<Index>(threadIdx.x);
}

template <typename Index>
__device__ Index grid_width() {
  return static_cast<Index>(gridDim.x) * kThreads;
}

// visit(i, j) for all i of `inner` and j of `outer` by a block's threads, eight of i by four of j a warp: a
// transposing copy then reads whole sectors of i and stores few words of a bank.
template <typename Visit>
__device__ void visit_transposed(int32_t inner, int32_t outer, Visit&& visit) {
  constexpr int32_t kInner = 8;
  const int32_t part_size = kInner * outer, parts = (inner + kInner - 1) / kInner;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < parts * part_size; item += kThreads) {
    const int32_t part = item / part_size, i = part * kInner + item % kInner;
    if (i < inner) visit(i, (item - part * part_size) / kInner);
  }
}

// store(load(i)) for i = first, first + step, ... below count: N are under way before the first is stored; of
// the last ones two or one.
template <int N, typename Load, typename Store>
__device__ __forceinline__ void load_ahead(int32_t first, int32_t count, int32_t step, Load&& load,
                                           Store&& store) {
  int32_t i = first;
#pragma unroll 1
  for (; i + (N - 1) * step < count; i += N * step) {
    decltype(load(i)) held[N];
#pragma unroll
    for (int n = 0; n < N; ++n) held[n] = load(i + n * step);
#pragma unroll
    for (int n = 0; n < N; ++n) store(held[n]);
  }
  if constexpr (N > 1) load_ahead<N / 2>(i, count, step, load, store);
}

inline bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// A type as an argument of a generic lambda.
template <typename T>
struct Type {
  using type = T;
};

template <typename Body>
cudaError_t with_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(Type<double>{});
    case DType::kFloat32:
      return body(Type<float>{});
    case DType::kBFloat16:
      return body(Type<BFloat16>{});
    case DType::kFloat16:
      return body(Type<Float16>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace d2lfast::cuda
