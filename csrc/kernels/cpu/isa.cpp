#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace d2lfast::cpu {

namespace {

Isa cap_from(const char* variable, Isa isa) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return isa;
  Isa cap = isa;
  if (std::strcmp(value, "baseline") == 0 || std::strcmp(value, "default") == 0) {
    cap = Isa::kBaseline;
  } else if (std::strcmp(value, "avx2") == 0) {
    cap = Isa::kAvx2;
  }
  return cap < isa ? cap : isa;
}

}  // namespace

Isa detected_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

Isa current_isa() {
  static const Isa isa = cap_from("ATEN_CPU_CAPABILITY", cap_from("D2LFAST_CPU_ISA", detected_isa()));
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace d2lfast::cpu
