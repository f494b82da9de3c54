#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/activation.h"

namespace d2lfast::ops {

// What follows a convolution's sums: activation(sum + bias + residual). bias: [R]; residual: of the result's
// size; either may be null.
struct Conv2dEpilogue {
  const at::Tensor* bias = nullptr;
  const at::Tensor* residual = nullptr;
  Activation activation = Activation::kNone;
};

// The pointer of an operand that kernels read in `format`; `kept` holds what it points into.
template <typename T = void>
const T* operand_pointer(const at::Tensor* operand, at::MemoryFormat format, at::Tensor& kept) {
  if (operand == nullptr) return nullptr;
  kept = operand->contiguous(format);
  return static_cast<const T*>(kept.const_data_ptr());
}

}  // namespace d2lfast::ops
