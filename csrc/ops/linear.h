#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace d2lfast::ops {

inline void check_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias) {
  const auto type = input.scalar_type();
  TORCH_CHECK(weight.scalar_type() == type && (!bias.has_value() || bias->scalar_type() == type),
              "expected one dtype");
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && input.dim() > 0 &&
                  input.size(-1) == weight.size(1) &&
                  (!bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight.size(0))),
              "sizes ", input.sizes(), " and ", weight.sizes(), " are not those of a linear layer");
}

inline void check_linear_gradient(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& weight) {
  TORCH_CHECK(grad_output.scalar_type() == input.scalar_type() && grad_output.dim() == input.dim() &&
                  grad_output.size(-1) == weight.size(0) &&
                  grad_output.numel() * weight.size(1) == input.numel() * weight.size(0),
              "the gradient ", grad_output.sizes(), " does not fit the input ", input.sizes());
}

}  // namespace d2lfast::ops
