#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/dtype.h"

namespace d2lfast::ops {

// The kernels' name of a tensor's dtype. `op` names the operator in the error for the dtypes that have
// no kernel, which is the one that torch raises.
inline DType kernel_dtype(const at::Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, "\"", op, "\" not implemented for '", toString(tensor.scalar_type()),
                                  "'");
  }
}

// float32 for bfloat16 and float16, else the dtype itself: the type of statistics and workspaces.
inline at::ScalarType accumulator_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}
inline int64_t accumulator_size(DType dtype) {
  return dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
}

// Contiguous, of the accumulators' type.
inline at::Tensor widened(const at::Tensor& tensor) {
  return tensor.to(accumulator_type(tensor.scalar_type())).contiguous();
}

}  // namespace d2lfast::ops
