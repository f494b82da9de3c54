#pragma once

#include "../../kernels/cpu/isa.h"
#include "../../kernels/pool2d.h"

D2LFAST_DECLARE_TABLES(MaxPool2dKernels, pool2d_max_kernels);
D2LFAST_DECLARE_TABLES(MaxPool2dGradientKernels, pool2d_max_gradient_kernels);
D2LFAST_DECLARE_TABLES(AvgPool2dKernels, pool2d_average_kernels);
D2LFAST_DECLARE_TABLES(AdaptivePool2dKernels, pool2d_adaptive_kernels);

namespace d2lfast::cpu {

inline const MaxPool2dKernels& pool2d_max_table() { return D2LFAST_SELECT_TABLE(pool2d_max_kernels); }
inline const MaxPool2dGradientKernels& pool2d_max_gradient_table() {
  return D2LFAST_SELECT_TABLE(pool2d_max_gradient_kernels);
}
inline const AvgPool2dKernels& pool2d_average_table() { return D2LFAST_SELECT_TABLE(pool2d_average_kernels); }
inline const AdaptivePool2dKernels& pool2d_adaptive_table() {
  return D2LFAST_SELECT_TABLE(pool2d_adaptive_kernels);
}

}  // namespace d2lfast::cpu
