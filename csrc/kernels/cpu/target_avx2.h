#pragma once

// Standard headers come first: an inline library function compiled for a newer processor could
// otherwise be the copy that the linker keeps for everybody.
#include "target_headers.h"

#define D2LFAST_ISA avx2
#define D2LFAST_VECTOR_BYTES 32

// g++ 12 reads the whole file before it acts on the pragma, so that __AVX2__ and the like stay undefined.
#if defined(__x86_64__)
#define D2LFAST_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#endif
