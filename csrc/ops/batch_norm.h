#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../kernels/activation.h"
#include "../kernels/dtype.h"
#include "visible.h"

namespace d2lfast::ops {

// What backward needs beside the input and the statistics. ReLU's decision is computed again from the input,
// or kept as a bit where a residual took part in it.
inline bool keeps_mask(Activation activation, bool residual) {
  return activation == Activation::kReLU && residual;
}
inline bool keeps_output(Activation activation) {
  return activation == Activation::kSigmoid || activation == Activation::kTanh;
}

// Raises what torch's batch_norm raises.
D2LFAST_VISIBLE DType check_batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                       const std::optional<at::Tensor>& running_var, bool training,
                       const std::optional<at::Tensor>& residual);

}  // namespace d2lfast::ops
