#include "cross_entropy.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"
#include "gradient_guard.h"

// Schema and autograd of cross-entropy with class numbers.

namespace d2lfast::ops {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor> dispatch(const Tensor& input, const Tensor& target, int64_t reduction,
                                    int64_t ignore_index) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_cross_entropy", "")
                             .typed<decltype(dispatch)>();
  return op.call(input, target, reduction, ignore_index);
}

Tensor dispatch_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                         const Tensor& statistics, int64_t reduction, int64_t ignore_index) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_cross_entropy_backward", "")
                             .typed<decltype(dispatch_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, input, target, statistics, reduction, ignore_index);
}

class CrossEntropyFunction : public torch::autograd::Function<CrossEntropyFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& input, const Variable& target,
                               int64_t reduction, int64_t ignore_index) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, statistics] = dispatch(input, target, reduction, ignore_index);
    ctx->save_for_backward({input, target, statistics});
    ctx->saved_data["options"] = std::vector<int64_t>{reduction, ignore_index};
    ctx->mark_non_differentiable({statistics});
    ctx->set_materialize_grads(false);
    return {loss, statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(4);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto options = ctx->saved_data["options"].toIntVector();
    result[0] = at::GradMode::is_enabled()
                    ? differentiable(grads[0], saved[0], saved[1], options[0], options[1])
                    : dispatch_backward(grads[0], saved[0], saved[1], saved[2], options[0], options[1]);
    return result;
  }

 private:
  // create_graph: the gradient of torch's own function.
  static Tensor differentiable(const Tensor& grad, const Tensor& input, const Tensor& target,
                               int64_t reduction, int64_t ignore_index) {
    const Tensor leaf = at::alias(input);
    const Tensor loss = at::cross_entropy_loss(leaf, target, {}, reduction, ignore_index);
    return torch::autograd::grad({loss}, {leaf}, {grad}, true, true, true)[0];
  }
};

std::tuple<Tensor, Tensor> autograd(const Tensor& input, const Tensor& target, int64_t reduction,
                                    int64_t ignore_index) {
  if (differentiable(input)) {
    auto results = CrossEntropyFunction::apply(input, target, reduction, ignore_index);
    return {std::move(results[0]), std::move(results[1])};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return dispatch(input, target, reduction, ignore_index);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "_cross_entropy(Tensor input, Tensor target, int reduction, int ignore_index) -> "
      "(Tensor loss, Tensor statistics)");
  m.def(
      "_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor statistics, "
      "int reduction, int ignore_index) -> Tensor");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("_cross_entropy", autograd);
  m.impl("_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace d2lfast::ops
