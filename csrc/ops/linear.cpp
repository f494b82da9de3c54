#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"
#include "gradient_guard.h"
#include "optional_tensor.h"

// A linear layer of few features and many rows: the products of a block of rows while it is in the cache.

namespace d2lfast::ops {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

Tensor dispatch(const Tensor& input, const Tensor& weight, const Optional& bias) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("d2lfast::_linear", "").typed<decltype(dispatch)>();
  return op.call(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> dispatch_backward(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& weight, std::array<bool, 3> mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_linear_backward", "")
                             .typed<decltype(dispatch_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, input, weight, mask);
}

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const Variable& weight,
                          const Optional& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, weight, bias.value_or(Tensor())});
    return dispatch(input, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(3);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1];
    // needs_input_grad counts the tensors that were given.
    const std::array<bool, 3> mask{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                   saved[2].defined() && ctx->needs_input_grad(2)};
    if (at::GradMode::is_enabled()) {
      // create_graph: the gradients from differentiable operators.
      const Tensor rows = grad.reshape_symint({-1, grad.sym_size(-1)});
      if (mask[0]) result[0] = grad.matmul(weight);
      if (mask[1]) result[1] = rows.t().mm(input.reshape_symint({-1, input.sym_size(-1)}));
      if (mask[2]) result[2] = rows.sum(0);
      return result;
    }
    std::tie(result[0], result[1], result[2]) = dispatch_backward(grad, input, weight, mask);
    for (size_t i = 0; i < 3; ++i) {
      if (!mask[i]) result[i] = Variable();
    }
    return result;
  }
};

Tensor autograd(const Tensor& input, const Tensor& weight, const Optional& bias) {
  if (differentiable(input, weight, bias)) {
    return LinearFunction::apply(input, weight, bias);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return dispatch(input, weight, bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def("_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "_linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool[3] output_mask) -> "
      "(Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("_linear", autograd);
  m.impl("_linear_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace d2lfast::ops
