#pragma once

#include "../../kernels/cpu/isa.h"
#include "../../kernels/pool2d.h"

namespace d2lfast::cpu {
namespace baseline {
extern const Pool2dKernels pool2d_kernels;
}
namespace avx2 {
extern const Pool2dKernels pool2d_kernels;
}
namespace avx512 {
extern const Pool2dKernels pool2d_kernels;
}

inline const Pool2dKernels& pool2d_table() {
  return select_table(baseline::pool2d_kernels, avx2::pool2d_kernels, avx512::pool2d_kernels);
}

}  // namespace d2lfast::cpu
