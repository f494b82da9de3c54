#pragma once

#include "../../kernels/cpu/isa.h"
#include "../../kernels/pool2d.h"

namespace d2lfast::cpu {
namespace baseline {
extern const MaxPool2dKernels pool2d_max_kernels;
extern const MaxPool2dGradientKernels pool2d_max_gradient_kernels;
extern const AvgPool2dKernels pool2d_average_kernels;
extern const AdaptivePool2dKernels pool2d_adaptive_kernels;
}  // namespace baseline
namespace avx2 {
extern const MaxPool2dKernels pool2d_max_kernels;
extern const MaxPool2dGradientKernels pool2d_max_gradient_kernels;
extern const AvgPool2dKernels pool2d_average_kernels;
extern const AdaptivePool2dKernels pool2d_adaptive_kernels;
}  // namespace avx2
namespace avx512 {
extern const MaxPool2dKernels pool2d_max_kernels;
extern const MaxPool2dGradientKernels pool2d_max_gradient_kernels;
extern const AvgPool2dKernels pool2d_average_kernels;
extern const AdaptivePool2dKernels pool2d_adaptive_kernels;
}  // namespace avx512

inline const MaxPool2dKernels& pool2d_max_table() {
  return select_table(baseline::pool2d_max_kernels, avx2::pool2d_max_kernels, avx512::pool2d_max_kernels);
}
inline const MaxPool2dGradientKernels& pool2d_max_gradient_table() {
  return select_table(baseline::pool2d_max_gradient_kernels, avx2::pool2d_max_gradient_kernels,
                      avx512::pool2d_max_gradient_kernels);
}
inline const AvgPool2dKernels& pool2d_average_table() {
  return select_table(baseline::pool2d_average_kernels, avx2::pool2d_average_kernels,
                      avx512::pool2d_average_kernels);
}
inline const AdaptivePool2dKernels& pool2d_adaptive_table() {
  return select_table(baseline::pool2d_adaptive_kernels, avx2::pool2d_adaptive_kernels,
                      avx512::pool2d_adaptive_kernels);
}

}  // namespace d2lfast::cpu
