#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../kernels/dtype.h"
#include "visible.h"

namespace d2lfast::ops {

// Raises what torch's batch_norm raises.
D2LFAST_VISIBLE DType check_batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                       const std::optional<at::Tensor>& running_var, bool training,
                       const std::optional<at::Tensor>& residual);

}  // namespace d2lfast::ops
