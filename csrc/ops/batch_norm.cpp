#include "batch_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "activation.h"
#include "dtype.h"

namespace d2lfast::ops {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

void check_channels(const char* name, const OptionalTensor& tensor, const at::Tensor& input) {
  if (!given(tensor)) return;
  TORCH_CHECK(tensor->numel() == input.size(1) && tensor->dim() == 1, name, " should contain ", input.size(1),
              " elements not ", tensor->numel());
  TORCH_CHECK(tensor->device() == input.device(),
              "Expected all tensors to be on the same device, but got input on ", input.device(), " and ",
              name, " on ", tensor->device());
}

}  // namespace

DType check_batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                       const OptionalTensor& residual) {
  TORCH_CHECK(input.dim() >= 2, "expected input of at least 2 dimensions, but got input of size ",
              input.sizes());
  if (training) {
    TORCH_CHECK_VALUE(input.numel() != input.size(1) || input.size(1) == 0,
                      "Expected more than 1 value per channel when training, got input size ", input.sizes());
  } else {
    TORCH_CHECK(given(running_mean), "running_mean must be defined in evaluation mode");
    TORCH_CHECK(given(running_var), "running_var must be defined in evaluation mode");
  }
  check_channels("running_mean", running_mean, input);
  check_channels("running_var", running_var, input);
  check_channels("weight", weight, input);
  check_channels("bias", bias, input);
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const at::ScalarType type = input.scalar_type();
  // Parameters and statistics: all of the input's type, or all float32 beside a 16-bit input.
  at::ScalarType parameters = type;
  for (const OptionalTensor* tensor : {&weight, &bias, &running_mean, &running_var}) {
    if (given(*tensor)) {
      parameters = (*tensor)->scalar_type();
      break;
    }
  }
  TORCH_CHECK(parameters == type || parameters == at::kFloat,
              "mixed dtype (CPU): expect parameter to have scalar type of Float");
  TORCH_CHECK(parameters == accumulator_type(type) || parameters == type,
              "mixed dtype (CPU): all inputs must share same datatype.");
  for (const OptionalTensor* tensor : {&weight, &bias, &running_mean, &running_var}) {
    TORCH_CHECK(!given(*tensor) || (*tensor)->scalar_type() == parameters, "expected scalar type ",
                toString(parameters), " but found ", toString((*tensor)->scalar_type()));
  }
  if (given(residual)) {
    TORCH_CHECK(residual->sizes() == input.sizes(), "expected residual of the input's size ", input.sizes(),
                ", but got ", residual->sizes());
    TORCH_CHECK(residual->scalar_type() == type, "expected residual of scalar type ", toString(type),
                " but found ", toString(residual->scalar_type()));
    TORCH_CHECK(residual->device() == input.device(),
                "Expected all tensors to be on the same device, but got input on ", input.device(),
                " and residual on ", residual->device());
  }
  return dtype;
}

namespace {

at::Tensor forward_dispatch(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var,
                            bool training, double momentum, double eps, std::string_view activation,
                            const OptionalTensor& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::batch_norm_act", "")
                             .typed<decltype(forward_dispatch)>();
  return op.call(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> train_dispatch(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum, double eps,
    std::string_view activation, const OptionalTensor& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_act_train", "")
                             .typed<decltype(train_dispatch)>();
  return op.call(input, weight, bias, running_mean, running_var, momentum, eps, activation, residual);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_dispatch(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
    const at::Tensor& mean, const at::Tensor& spread, const OptionalTensor& output, bool training, double eps,
    std::string_view activation, std::array<bool, 4> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_act_backward", "")
                             .typed<decltype(backward_dispatch)>();
  return op.call(grad_output, input, weight, mean, spread, output, training, eps, activation, output_mask);
}

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& residual,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                          bool training, double momentum, double eps, std::string_view activation) {
    at::AutoDispatchBelowAutograd guard;
    Variable output, mean, invstd, saved_mean, saved_var;
    if (training) {
      std::tie(output, mean, invstd) =
          train_dispatch(input, weight, bias, running_mean, running_var, momentum, eps, activation, residual);
    } else {
      output = forward_dispatch(input, weight, bias, running_mean, running_var, false, momentum, eps,
                                activation, residual);
      saved_mean = *running_mean;
      saved_var = *running_var;
    }
    const bool keeps_output = parse_activation(activation) != Activation::kNone;
    ctx->save_for_backward({input, given(weight) ? *weight : Variable(), mean, invstd, saved_mean, saved_var,
                            keeps_output ? output : Variable()});
    ctx->saved_data["given"] = std::vector<int64_t>{1, given(weight), given(bias), given(residual)};
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activation"] = std::string(activation);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &output = saved[6];
    const auto present = ctx->saved_data["given"].toIntVector();
    const bool training = ctx->saved_data["training"].toBool();
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto name = ctx->saved_data["activation"].toStringRef();
    const Activation activation = parse_activation(name);
    // needs_input_grad counts the tensors that were given.
    std::array<bool, 4> mask{};
    for (size_t i = 0, position = 0; i < 4; ++i) {
      if (present[i]) mask[i] = ctx->needs_input_grad(position++);
    }
    variable_list grads(10);
    if (!grad_outputs[0].defined()) return grads;
    const Variable& grad = grad_outputs[0];
    if (at::GradMode::is_enabled()) {
      // create_graph: the gradient from differentiable operators.
      const auto before = activation_backward(grad, output, activation);
      // torch wants parameters of the type of the statistics, which is float32 for 16-bit inputs.
      const auto parameter = training && weight.defined() ? weight.to(saved[2].scalar_type()) : weight;
      std::tie(grads[0], grads[1], grads[2]) = at::native_batch_norm_backward(
          before, input, optional(parameter), optional(saved[4]), optional(saved[5]), optional(saved[2]),
          optional(saved[3]), training, eps, {mask[0], mask[1], mask[2]});
      grads[3] = before;
    } else {
      // Without an activation the residual's gradient is the output's.
      const bool fused_residual = mask[3] && activation != Activation::kNone;
      std::tie(grads[0], grads[1], grads[2], grads[3]) = backward_dispatch(
          grad, input, optional(weight), training ? saved[2] : saved[4], training ? saved[3] : saved[5],
          optional(output), training, eps, name, {mask[0], mask[1], mask[2], fused_residual});
      if (!fused_residual) grads[3] = grad;
    }
    for (int i = 0; i < 4; ++i) {
      if (!mask[i]) grads[i] = Variable();
    }
    return grads;
  }
};

at::Tensor forward_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var,
                            bool training, double momentum, double eps, std::string_view activation,
                            const OptionalTensor& residual) {
  const auto requires_grad = [](const OptionalTensor& t) { return given(t) && t->requires_grad(); };
  const bool differentiable = at::GradMode::is_enabled() && (input.requires_grad() || requires_grad(weight) ||
                                                             requires_grad(bias) || requires_grad(residual));
  if (!differentiable) {
    at::AutoDispatchBelowAutograd guard;
    return forward_dispatch(input, weight, bias, running_mean, running_var, training, momentum, eps,
                            activation, residual);
  }
  TORCH_CHECK(training || (given(running_mean) && given(running_var)),
              given(running_mean) ? "running_var" : "running_mean", " must be defined in evaluation mode");
  return BatchNormFunction::apply(input, weight, bias, residual, running_mean, running_var, training,
                                  momentum, eps, activation);
}

void bump_versions(const OptionalTensor& running_mean, const OptionalTensor& running_var) {
  if (given(running_mean)) torch::autograd::increment_version(*running_mean);
  if (given(running_var)) torch::autograd::increment_version(*running_var);
}

// The running statistics change in training only: in evaluation they may be saved for several backwards.
at::Tensor forward_inplace(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           bool training, double momentum, double eps, std::string_view activation,
                           const OptionalTensor& residual) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto output = forward_dispatch(input, weight, bias, running_mean, running_var, training, momentum,
                                       eps, activation, residual);
  if (training) bump_versions(running_mean, running_var);
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> train_inplace(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum, double eps,
    std::string_view activation, const OptionalTensor& residual) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto results =
      train_dispatch(input, weight, bias, running_mean, running_var, momentum, eps, activation, residual);
  bump_versions(running_mean, running_var);
  return results;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float momentum, float eps, str activation=\"none\", "
      "Tensor? residual=None) -> Tensor");
  m.def(
      "_batch_norm_act_train(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps, str activation, Tensor? residual) "
      "-> (Tensor, Tensor, Tensor)");
  // `spread` is 1 / sqrt(variance + eps) of the batch in training, else the running variance.
  m.def(
      "_batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor mean, "
      "Tensor spread, Tensor? output, bool training, float eps, str activation, bool[4] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("batch_norm_act", forward_autograd);
  m.impl("_batch_norm_act_train", torch::autograd::autogradNotImplementedFallback());
  m.impl("_batch_norm_act_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(d2lfast, ADInplaceOrView, m) {
  m.impl("batch_norm_act", forward_inplace);
  m.impl("_batch_norm_act_train", train_inplace);
}

}  // namespace d2lfast::ops
