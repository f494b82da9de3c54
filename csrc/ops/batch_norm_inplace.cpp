#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "activation.h"
#include "batch_norm.h"
#include "cpu/batch_norm_channels.h"
#include "differentiable.h"
#include "gradient_guard.h"
#include "optional_tensor.h"
#include "saved_batch_norm.h"

// Batch norm that writes over its input. Backward has the output only: it finds the normalised value
// x_hat = (output - bias) / weight, and ReLU's decisions by the output's sign.

namespace d2lfast::ops {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

// Whether (output - bias) / weight keeps x_hat: to some 16 roundings of it, and float16 outputs from their
// smallest values, whose precision is less.
bool invertible(at::ScalarType type, int64_t channels, const OptionalTensor& weight,
                const OptionalTensor& bias) {
  constexpr double kLargestRatio = 16;
  const double least = type == at::kHalf ? 0x1p-4 : 0x1p-60;
  const ChannelValues weights = read_channels(weight, channels, 1), biases = read_channels(bias, channels, 0);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = std::abs(weights[c]);
    // NaN is not.
    if (!(scale >= least && std::abs(biases[c]) <= kLargestRatio * scale && std::isfinite(scale))) {
      return false;
    }
  }
  return true;
}

// Whether backward finds in the output what it needs of the input.
bool permitted(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
               bool training, std::string_view activation_name, const OptionalTensor& residual) {
  const Activation activation = parse_activation(activation_name);
  if (!(input.is_cpu() || input.is_cuda()) || input.dim() < 2) return false;
  if (!training && !requires_grad(weight)) return true;
  // Looking at parameters on a GPU would wait for it.
  if (!input.is_cpu()) return false;
  // Subclasses, such as fake tensors, may have no values.
  const auto has_values = [](const OptionalTensor& t) {
    return !given(t) || !t->key_set().has(c10::DispatchKey::Python);
  };
  if (!has_values(input) || !has_values(weight) || !has_values(bias)) return false;
  // The gradients of statistics need x_hat everywhere, that of the weight where ReLU lets it pass.
  const bool kept = activation == Activation::kNone || (activation == Activation::kReLU && !training);
  if (!kept || given(residual)) return false;
  if ((given(weight) && weight->numel() != input.size(1)) ||
      (given(bias) && bias->numel() != input.size(1))) {
    return false;
  }
  return invertible(input.scalar_type(), input.size(1), weight, bias);
}

void forward_dispatch(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                      double momentum, double eps, std::string_view activation,
                      const OptionalTensor& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::batch_norm_act_", "")
                             .typed<decltype(forward_dispatch)>();
  op.call(input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual);
}

at::Tensor saving_dispatch(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           bool training, double momentum, double eps, std::string_view activation,
                           const OptionalTensor& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_inplace_saving", "")
                             .typed<decltype(saving_dispatch)>();
  return op.call(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_dispatch(
    const at::Tensor& grad_output, const at::Tensor& output, const OptionalTensor& weight,
    const OptionalTensor& bias, const at::Tensor& statistics, bool training, std::string_view activation,
    std::array<bool, 4> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_inplace_backward", "")
                             .typed<decltype(backward_dispatch)>();
  const GradientGuard guard;
  return op.call(grad_output, output, weight, bias, statistics, training, activation, output_mask);
}

class BatchNormInplaceFunction : public torch::autograd::Function<BatchNormInplaceFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& residual,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                          bool training, double momentum, double eps, std::string_view name) {
    at::AutoDispatchBelowAutograd guard;
    const auto statistics = saving_dispatch(input, weight, bias, running_mean, running_var, training,
                                            momentum, eps, name, residual);
    const bool wants_weight = requires_grad(weight);
    const Activation activation = parse_activation(name);
    const bool reads_output = training || wants_weight || activation != Activation::kNone;
    // Without the output's history: of a view it would hold the node that saves it.
    ctx->save_for_backward({reads_output ? input.detach() : Variable(), given(weight) ? *weight : Variable(),
                            given(bias) ? *bias : Variable(), statistics});
    ctx->mark_dirty({input});
    SavedBatchNorm::save(ctx, weight, bias, residual, training, activation);
    return input;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const SavedBatchNorm call(ctx);
    variable_list grads(10);
    if (!grad_outputs[0].defined()) return grads;
    const Variable& grad = grad_outputs[0];
    std::tie(grads[0], grads[1], grads[2], grads[3]) = backward_dispatch(
        grad, saved[0].defined() ? saved[0] : grad, optional_of(saved[1]), optional_of(saved[2]), saved[3],
        call.training, activation_name(call.activation), call.asks());
    if (!call.fused_residual()) grads[3] = grad;
    call.drop_unwanted(grads);
    return grads;
  }
};

void forward_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                      double momentum, double eps, std::string_view activation,
                      const OptionalTensor& residual) {
  const bool recorded = differentiable(input, weight, bias, residual);
  torch::autograd::check_inplace(input, recorded);
  if (!recorded) {
    at::AutoDispatchBelowAutograd guard;
    return forward_dispatch(input, weight, bias, running_mean, running_var, training, momentum, eps,
                            activation, residual);
  }
  TORCH_CHECK(training || (given(running_mean) && given(running_var)),
              given(running_mean) ? "running_var" : "running_mean", " must be defined in evaluation mode");
  TORCH_CHECK(permitted(input, weight, bias, training, activation, residual),
              "batch_norm_act_ would write over what its backward needs: call batch_norm_act, or compute "
              "without gradients");
  BatchNormInplaceFunction::apply(input, weight, bias, residual, running_mean, running_var, training,
                                  momentum, eps, activation);
}

void bump_versions(const at::Tensor& input, const OptionalTensor& running_mean,
                   const OptionalTensor& running_var, bool training) {
  torch::autograd::increment_version(input);
  if (training && given(running_mean)) torch::autograd::increment_version(*running_mean);
  if (training && given(running_var)) torch::autograd::increment_version(*running_var);
}

void forward_versions(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                      double momentum, double eps, std::string_view activation,
                      const OptionalTensor& residual) {
  at::AutoDispatchBelowADInplaceOrView guard;
  forward_dispatch(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                   residual);
  bump_versions(input, running_mean, running_var, training);
}

at::Tensor saving_versions(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           bool training, double momentum, double eps, std::string_view activation,
                           const OptionalTensor& residual) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto statistics = saving_dispatch(input, weight, bias, running_mean, running_var, training, momentum,
                                          eps, activation, residual);
  bump_versions(input, running_mean, running_var, training);
  return statistics;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "batch_norm_act_(Tensor(a!) input, Tensor? weight, Tensor? bias, Tensor(b!)? running_mean, "
      "Tensor(c!)? running_var, bool training, float momentum, float eps, str activation=\"none\", "
      "Tensor? residual=None) -> ()");
  m.def(
      "_batch_norm_inplace_permitted(Tensor input, Tensor? weight, Tensor? bias, bool training, "
      "str activation, Tensor? residual) -> bool",
      permitted);
  m.def(
      "_batch_norm_inplace_saving(Tensor(a!) input, Tensor? weight, Tensor? bias, Tensor(b!)? running_mean, "
      "Tensor(c!)? running_var, bool training, float momentum, float eps, str activation, Tensor? residual) "
      "-> Tensor statistics");
  m.def(
      "_batch_norm_inplace_backward(Tensor grad_output, Tensor output, Tensor? weight, Tensor? bias, "
      "Tensor statistics, bool training, str activation, bool[4] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("batch_norm_act_", forward_autograd);
  m.impl("_batch_norm_inplace_saving", torch::autograd::autogradNotImplementedFallback());
  m.impl("_batch_norm_inplace_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(d2lfast, ADInplaceOrView, m) {
  m.impl("batch_norm_act_", forward_versions);
  m.impl("_batch_norm_inplace_saving", saving_versions);
}

}  // namespace d2lfast::ops
