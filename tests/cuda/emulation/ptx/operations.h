#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../../../../csrc/kernels/cuda/vector.cuh"

// Of instructions, what they compute of the values of a lane (PTX ISA 9.0, sections 9.7.1 to 9.7.9).
namespace emulation::ptx {

using Same = decltype([](auto a) { return a; });
using Negative = decltype([](auto a) { return -a; });
using Complement = decltype([](auto a) { return ~a; });
using Magnitude = decltype([](auto a) { return std::abs(a); });
using Reciprocal = decltype([](auto a) { return 1 / a; });
using Root = decltype([](auto a) { return std::sqrt(a); });
using Power = decltype([](auto a) { return std::exp2(a); });
using Saturated = decltype([](auto a) { return a > 0 ? std::fmin(a, decltype(a){1}) : 0; });  // of NaN 0
using Nearest = decltype([](auto a) { return std::nearbyint(a); });
using Population = decltype([](uint64_t a) { return __builtin_popcountll(a); });

using Add = decltype([](auto a, auto b) { return a + b; });
using Subtract = decltype([](auto a, auto b) { return a - b; });
using Multiply = decltype([](auto a, auto b) { return a * b; });
using And = decltype([](auto a, auto b) { return a & b; });
using Or = decltype([](auto a, auto b) { return a | b; });
using Xor = decltype([](auto a, auto b) { return a ^ b; });
using CopySign = decltype([](auto a, auto b) { return std::copysign(b, a); });

struct Divide {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(-a);
    }
    return a / b;
  }
};
struct Remainder {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    return std::is_signed_v<T> && b == static_cast<T>(-1) ? T{0} : a % b;
  }
};
// Of NaN and a number, the number; of zeros, the positive one is more.
struct Least {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == b) return std::signbit(a) ? a : b;
      return std::fmin(a, b);
    } else {
      return a < b ? a : b;
    }
  }
};
struct Most {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a == b) return std::signbit(a) ? b : a;
      return std::fmax(a, b);
    } else {
      return a < b ? b : a;
    }
  }
};
struct HighProduct {
  template <typename T>
  T operator()(T a, T b) const {
    using Signed = std::conditional_t<sizeof(T) == 4, int64_t, __int128>;
    using Unsigned = std::conditional_t<sizeof(T) == 4, uint64_t, unsigned __int128>;
    using Wide = std::conditional_t<std::is_signed_v<T>, Signed, Unsigned>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 8 * sizeof(T));
  }
};

// The second operand is a count of bits.
struct Left {
  template <typename T>
  T operator()(T a, uint32_t b) const {
    return b >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << b);
  }
};
struct Right {
  template <typename T>
  T operator()(T a, uint32_t b) const {
    if (b >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T{0};
    return static_cast<T>(a >> b);
  }
};

using Fma = decltype([](auto a, auto b, auto c) { return std::fma(a, b, c); });
using MultiplyAdd = decltype([](auto a, auto b, auto c) { return a * b + c; });
struct FmaDown {  // rounded towards minus infinity
  template <typename T>
  __attribute__((noinline, optimize("rounding-math"))) T operator()(T a, T b, T c) const {
    volatile T x = a, y = b, z = c;
    std::fesetround(FE_DOWNWARD);
    volatile T result = std::fma(x, y, z);
    std::fesetround(FE_TONEAREST);
    return result;
  }
};
using ExtractBits = decltype([](uint32_t a, uint32_t first, uint32_t count) {
  first &= 0xff;
  count &= 0xff;
  const uint32_t from = first >= 32 ? 0 : a >> first;
  return count >= 32 ? from : from & ((1u << count) - 1);
});
using HalvesByBytes = decltype([](uint32_t a, uint32_t b, uint32_t c) {  // dp2a.lo
  return c + (a & 0xffff) * (b & 0xff) + (a >> 16) * (b >> 8 & 0xff);
});
using PermuteBytes = decltype([](uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const uint32_t chosen = selector >> 4 * byte;
    uint32_t value = static_cast<uint32_t>(both >> 8 * (chosen & 7)) & 0xff;
    if (chosen & 8) value = value & 0x80 ? 0xff : 0;  // the byte's sign
    result |= value << 8 * byte;
  }
  return result;
});

template <typename T>
struct Cast {
  template <typename From>
  T operator()(From a) const {
    return static_cast<T>(a);
  }
};
using FromHalf = decltype([](uint16_t bits) { return d2lfast::cuda::to_compute(d2lfast::Float16{bits}); });
using ToHalf = decltype([](float a) { return d2lfast::cuda::from_compute<d2lfast::Float16>(a).bits; });
using ToBFloat = decltype([](float a) { return d2lfast::cuda::from_compute<d2lfast::BFloat16>(a).bits; });
using ToTf32 = decltype([](uint32_t bits) {  // to the nearest, ties away from zero
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;
});

// Of two 16-bit floats in a word, one.
template <typename T>
float half_of(uint32_t word, int half) {
  return d2lfast::cuda::to_compute(T{static_cast<uint16_t>(word >> 16 * half)});
}

// Those with u also hold of NaN.
using Eq = decltype([](auto a, auto b) { return a == b; });
using Ne = decltype([](auto a, auto b) { return a < b || a > b; });
using Lt = decltype([](auto a, auto b) { return a < b; });
using Le = decltype([](auto a, auto b) { return a <= b; });
using Gt = decltype([](auto a, auto b) { return a > b; });
using Ge = decltype([](auto a, auto b) { return a >= b; });
using Equ = decltype([](auto a, auto b) { return !(a < b || a > b); });
using Neu = decltype([](auto a, auto b) { return a != b; });
using Ltu = decltype([](auto a, auto b) { return !(a >= b); });
using Leu = decltype([](auto a, auto b) { return !(a > b); });
using Gtu = decltype([](auto a, auto b) { return !(a <= b); });
using Geu = decltype([](auto a, auto b) { return !(a < b); });
using Num = decltype([](auto a, auto b) { return a == a && b == b; });
using Nan = decltype([](auto a, auto b) { return a != a || b != b; });

template <typename Op>
struct OneIf {
  float operator()(float a, float b) const { return Op{}(a, b) ? 1.0f : 0.0f; }
};

}  // namespace emulation::ptx
