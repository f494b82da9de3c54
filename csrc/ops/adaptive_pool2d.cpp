#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"
#include "gradient_guard.h"
#include "saved_geometry.h"

namespace d2lfast::ops {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using SymInts = c10::SymIntArrayRef;

at::Tensor avg_dispatch(const at::Tensor& input, SymInts output_size) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::adaptive_avg_pool2d", "")
                             .typed<decltype(avg_dispatch)>();
  return op.call(input, output_size);
}

at::Tensor avg_backward(const at::Tensor& grad_output, SymInts input_size, bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_adaptive_avg_pool2d_backward", "")
                             .typed<decltype(avg_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, input_size, channels_last);
}

std::tuple<at::Tensor, at::Tensor> max_dispatch(const at::Tensor& input, SymInts output_size) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::adaptive_max_pool2d", "")
                             .typed<decltype(max_dispatch)>();
  return op.call(input, output_size);
}

at::Tensor max_backward(const at::Tensor& grad_output, const at::Tensor& indices, SymInts input_size,
                        bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_adaptive_max_pool2d_backward", "")
                             .typed<decltype(max_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, indices, input_size, channels_last);
}

class AdaptiveAvgPool2dFunction : public torch::autograd::Function<AdaptiveAvgPool2dFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, SymInts output_size) {
    at::AutoDispatchBelowADInplaceOrView guard;
    SavedGeometry::save(ctx, input);
    return avg_dispatch(input, output_size);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto& grad = grad_outputs[0];
    if (!grad.defined()) return {Variable(), Variable()};
    // create_graph: torch's own backward, which is differentiable.
    const SavedGeometry saved(ctx, 0);
    if (at::GradMode::is_enabled()) {
      return {at::_adaptive_avg_pool2d_backward(grad, saved.like_input(grad)), Variable()};
    }
    return {avg_backward(grad, saved.image_size(), saved.channels_last()), Variable()};
  }
};

class AdaptiveMaxPool2dFunction : public torch::autograd::Function<AdaptiveMaxPool2dFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& input, SymInts output_size) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, indices] = max_dispatch(input, output_size);
    SavedGeometry::save(ctx, input);
    ctx->save_for_backward({indices});
    ctx->mark_non_differentiable({indices});
    return {output, indices};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto& grad = grad_outputs[0];
    if (!grad.defined()) return {Variable(), Variable()};
    const auto indices = ctx->get_saved_variables()[0];
    const SavedGeometry saved(ctx, 0);
    if (at::GradMode::is_enabled()) {
      return {at::adaptive_max_pool2d_backward(grad, saved.like_input(grad), indices), Variable()};
    }
    return {max_backward(grad, indices, saved.image_size(), saved.channels_last()), Variable()};
  }
};

at::Tensor avg_autograd(const at::Tensor& input, SymInts output_size) {
  if (!differentiable(input)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return avg_dispatch(input, output_size);
  }
  return AdaptiveAvgPool2dFunction::apply(input, output_size);
}

std::tuple<at::Tensor, at::Tensor> max_autograd(const at::Tensor& input, SymInts output_size) {
  refuse_tangents(input);
  const auto results = AdaptiveMaxPool2dFunction::apply(input, output_size);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def("adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor");
  m.def(
      "_adaptive_avg_pool2d_backward(Tensor grad_output, SymInt[2] input_size, bool channels_last) -> "
      "Tensor");
  m.def("adaptive_max_pool2d(Tensor input, SymInt[2] output_size) -> (Tensor, Tensor)");
  m.def(
      "_adaptive_max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[2] input_size, bool "
      "channels_last) -> Tensor");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("adaptive_avg_pool2d", avg_autograd);
  m.impl("adaptive_max_pool2d", max_autograd);
  m.impl("_adaptive_avg_pool2d_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("_adaptive_max_pool2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace d2lfast::ops
