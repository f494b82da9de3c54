#pragma once

#include <cstdint>

namespace d2lfast {

// Storage types of tensor elements. Arithmetic on bfloat16 and float16 is done in float.
enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int kNumDTypes = 4;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace d2lfast
