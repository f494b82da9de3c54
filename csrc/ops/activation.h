#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "../kernels/activation.h"
#include "visible.h"

namespace d2lfast::ops {

D2LFAST_VISIBLE Activation parse_activation(std::string_view name);
std::string_view activation_name(Activation activation);

// The activation as a torch operator, for the paths that the kernels do not take.
D2LFAST_VISIBLE at::Tensor apply_activation(const at::Tensor& input, Activation activation);

// Gradient before the activation from its output, differentiable by torch.
D2LFAST_VISIBLE at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& output,
                                               Activation activation);

}  // namespace d2lfast::ops
