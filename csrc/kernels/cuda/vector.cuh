#pragma once

#include <cstdint>
#include <cstring>

#include "../dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define D2LFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define D2LFAST_HOST_DEVICE inline
#endif

// Everything here also compiles as plain C++, so that tests run the arithmetic of the kernels on a CPU.
namespace d2lfast::cuda {

// V neighbouring elements moved by one access; 16 bytes is the widest that a thread can do.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T lane[V];
};

template <typename T>
constexpr int kVectorWidth = 16 / sizeof(T);

template <int V, typename T>
D2LFAST_HOST_DEVICE Vector<T, V> load(const T* address) {
  return *reinterpret_cast<const Vector<T, V>*>(address);
}

template <int V, typename T>
D2LFAST_HOST_DEVICE void store(T* address, const Vector<T, V>& value) {
  *reinterpret_cast<Vector<T, V>*>(address) = value;
}

// An address in global memory, computed once, from which the next ones are steps: nvcc would compute each in
// full, and again under the predicate of each access.
template <typename T>
D2LFAST_HOST_DEVICE T* computed_once(T* address) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// That an address is one in global memory, which nvcc no longer knows of what a loop carries to its next
// turn.
template <typename T>
D2LFAST_HOST_DEVICE void assume_global([[maybe_unused]] const T* address) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(address));
#endif
}

// A Vector to choose and to take apart: where it fills words, these are held, since a choice between two
// vectors of short lanes is unpacked and packed again lane by lane.
template <typename T, int V>
struct Lanes {
  Vector<T, V> held;

  static D2LFAST_HOST_DEVICE Lanes read(const T* address) { return {load<V>(address)}; }
  static D2LFAST_HOST_DEVICE Lanes of(T value) {
    Lanes lanes;
#pragma unroll
    for (int v = 0; v < V; ++v) lanes.held.lane[v] = value;
    return lanes;
  }
  // Every `step`th of an array in registers.
  static D2LFAST_HOST_DEVICE Lanes gather(const T* from, int step) {
    Lanes lanes;
#pragma unroll
    for (int v = 0; v < V; ++v) lanes.held.lane[v] = from[v * step];
    return lanes;
  }
  D2LFAST_HOST_DEVICE T lane(int v) const { return held.lane[v]; }
  D2LFAST_HOST_DEVICE void write(T* address) const { store(address, held); }
};

template <typename T, int V>
  requires(sizeof(T) < 4 && sizeof(T) * V % 4 == 0)
struct Lanes<T, V> {
  static constexpr int kInWord = 4 / sizeof(T), kWords = V / kInWord, kBits = 8 * sizeof(T);
  uint32_t word[kWords];

  static D2LFAST_HOST_DEVICE Lanes read(const T* address) {
#ifdef __CUDA_ARCH__
    const auto words = *reinterpret_cast<const Vector<uint32_t, kWords>*>(address);
#else
    const Vector<T, V> words = load<V>(address);
#endif
    Lanes lanes;
    memcpy(&lanes, &words, sizeof(lanes));
    return lanes;
  }
  static D2LFAST_HOST_DEVICE Lanes of(T value) {
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof(value));
    Lanes lanes;
#pragma unroll
    for (int i = 0; i < kWords; ++i) lanes.word[i] = bits * (kInWord == 4 ? 0x1010101u : 0x10001u);
    return lanes;
  }
  static D2LFAST_HOST_DEVICE Lanes gather(const T* from, int step) {
    Lanes lanes = {};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      uint32_t bits = 0;
      memcpy(&bits, from + v * step, sizeof(T));
      lanes.word[v / kInWord] |= bits << kBits * (v % kInWord);
    }
    return lanes;
  }
  D2LFAST_HOST_DEVICE T lane(int v) const {
    const uint32_t bits = word[v / kInWord] >> kBits * (v % kInWord);
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }
  D2LFAST_HOST_DEVICE void write(T* address) const {
#ifdef __CUDA_ARCH__
    Vector<uint32_t, kWords> words;
#else
    Vector<T, V> words;
#endif
    memcpy(&words, word, sizeof(words));
    *reinterpret_cast<decltype(words)*>(address) = words;
  }
};

// Bytes of a (0 to 3) and b (4 to 7), each chosen by four bits of the selector.
D2LFAST_HOST_DEVICE uint32_t permuted_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
#endif
}

namespace detail {

D2LFAST_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

D2LFAST_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace detail

// Storage type -> type of the arithmetic, exactly.
D2LFAST_HOST_DEVICE double to_compute(double value) { return value; }
D2LFAST_HOST_DEVICE float to_compute(float value) { return value; }
D2LFAST_HOST_DEVICE float to_compute(BFloat16 value) {
  return detail::float_of_bits(static_cast<uint32_t>(value.bits) << 16);
}
D2LFAST_HOST_DEVICE float to_compute(Float16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return detail::float_of_bits(sign | wide << 23 | mantissa << 13);
#endif
}

template <typename T>
using Compute = decltype(to_compute(T{}));

// Type of the arithmetic -> storage type, rounded to the nearest, ties to even.
template <typename T>
D2LFAST_HOST_DEVICE T from_compute(Compute<T> value) {
  return value;
}
template <>
D2LFAST_HOST_DEVICE BFloat16 from_compute<BFloat16>(float value) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = detail::bits_of_float(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}
template <>
D2LFAST_HOST_DEVICE Float16 from_compute<Float16>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = detail::bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Adding 0.5 moves a subnormal's last place, 2^-24, to the last place of the sum.
    const float shifted = detail::float_of_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (detail::bits_of_float(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

}  // namespace d2lfast::cuda
