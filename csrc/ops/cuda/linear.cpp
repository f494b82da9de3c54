#include "../linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include "runtime.h"

// On CUDA the products of a linear layer are torch's (`aten`): cuBLAS reads and writes each operand once.

namespace d2lfast::ops {

namespace {

using at::Tensor;

Tensor linear_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_linear(input, weight, bias);
  const DeviceGuard guard(input.device());
  return at::linear(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& weight, std::array<bool, 3> mask) {
  check_linear(input, weight, {});
  check_linear_gradient(grad_output, input, weight);
  const DeviceGuard guard(input.device());
  const Tensor rows = grad_output.reshape({-1, weight.size(0)});
  const auto none = [&] { return at::empty({0}, input.options()); };
  return {mask[0] ? rows.mm(weight).view(input.sizes()) : none(),
          mask[1] ? rows.t().mm(input.reshape({-1, weight.size(1)})) : none(),
          mask[2] ? rows.sum(0) : none()};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("_linear", linear_cuda);
  m.impl("_linear_backward", linear_backward_cuda);
}

}  // namespace d2lfast::ops
