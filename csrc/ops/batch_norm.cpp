#include "batch_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/ones_like.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "activation.h"
#include "differentiable.h"
#include "dtype.h"
#include "gradient_guard.h"
#include "optional_tensor.h"
#include "saved_batch_norm.h"

namespace d2lfast::ops {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

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
    TORCH_CHECK_VALUE(given(running_mean) == given(running_var),
                      "running_mean and running_var must either both be None or neither be None");
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

void check_batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                               const at::Tensor& statistics, const OptionalTensor& output,
                               const OptionalTensor& mask, Activation activation) {
  TORCH_CHECK(grad_output.sizes() == input.sizes() && grad_output.scalar_type() == input.scalar_type(),
              "expected grad_output of size ", input.sizes(), " and type ", input.toString(), ", but got ",
              grad_output.sizes(), " and ", grad_output.toString());
  TORCH_CHECK(!keeps_output(activation) || (output.has_value() && output->sizes() == input.sizes() &&
                                            output->scalar_type() == input.scalar_type()),
              "expected the output of the activation");
  if (mask.has_value() && mask->defined()) {
    const auto size = batch_norm_mask_size(input, input.suggest_memory_format());
    TORCH_CHECK(
        mask->sizes() == at::IntArrayRef(size) && mask->scalar_type() == at::kByte && mask->is_contiguous(),
        "expected a mask of size ", at::IntArrayRef(size), ", but got ", mask->sizes());
  }
  TORCH_CHECK(statistics.dim() == 2 && statistics.size(0) == 3 && statistics.size(1) == input.size(1),
              "expected statistics of ", input.size(1), " channels");
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> saving_dispatch(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
    double eps, std::string_view activation, const OptionalTensor& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_act_saving", "")
                             .typed<decltype(saving_dispatch)>();
  return op.call(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_dispatch(
    const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
    const at::Tensor& statistics, const OptionalTensor& output, const OptionalTensor& mask, bool training,
    std::string_view activation, std::array<bool, 4> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_batch_norm_act_backward", "")
                             .typed<decltype(backward_dispatch)>();
  const GradientGuard guard;
  return op.call(grad_output, input, weight, statistics, output, mask, training, activation, output_mask);
}

class BatchNormFunction : public torch::autograd::Function<BatchNormFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& residual,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                          bool training, double momentum, double eps, std::string_view name) {
    at::AutoDispatchBelowAutograd guard;
    const Activation activation = parse_activation(name);
    auto [output, statistics, mask] = saving_dispatch(input, weight, bias, running_mean, running_var,
                                                      training, momentum, eps, name, residual);
    // The running statistics serve the double backward of evaluation.
    ctx->save_for_backward({input, given(weight) ? *weight : Variable(), statistics,
                            keeps_output(activation) ? output : Variable(),
                            keeps_mask(activation, given(residual)) ? mask : Variable(),
                            training ? Variable() : *running_mean, training ? Variable() : *running_var});
    SavedBatchNorm::save(ctx, weight, bias, residual, training, activation);
    ctx->saved_data["eps"] = eps;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &statistics = saved[2], &output = saved[3],
               &relu_mask = saved[4];
    const SavedBatchNorm call(ctx);
    const bool training = call.training;
    const Activation activation = call.activation;
    variable_list grads(10);
    if (!grad_outputs[0].defined()) return grads;
    const Variable& grad = grad_outputs[0];
    const auto run = [&](const Variable& gradient, std::array<bool, 4> wanted) {
      return backward_dispatch(gradient, input, optional_of(weight), statistics, optional_of(output),
                               optional_of(relu_mask), training, activation_name(activation), wanted);
    };
    if (at::GradMode::is_enabled()) {
      // create_graph: the gradient from differentiable operators. That of ReLU is constant where it is not 0.
      Variable decides = output;
      if (activation == Activation::kReLU) {
        at::NoGradGuard no_grad;
        decides = std::get<3>(run(at::ones_like(input), {false, false, false, true}));
      }
      const auto before = activation_backward(grad, decides, activation);
      // torch wants parameters of the type of the statistics, which is float32 for 16-bit inputs.
      const auto parameter = training && weight.defined() ? weight.to(statistics.scalar_type()) : weight;
      const auto row = [&](int64_t i) {
        return training ? OptionalTensor(statistics.select(0, i)) : OptionalTensor();
      };
      std::tie(grads[0], grads[1], grads[2]) = at::native_batch_norm_backward(
          before, input, optional_of(parameter), optional_of(saved[5]), optional_of(saved[6]), row(0), row(1),
          training, ctx->saved_data["eps"].toDouble(), {call.wants[0], call.wants[1], call.wants[2]});
      grads[3] = before;
    } else {
      std::tie(grads[0], grads[1], grads[2], grads[3]) = run(grad, call.asks());
      if (!call.fused_residual()) grads[3] = grad;
    }
    call.drop_unwanted(grads);
    return grads;
  }
};

at::Tensor forward_autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var,
                            bool training, double momentum, double eps, std::string_view activation,
                            const OptionalTensor& residual) {
  if (!differentiable(input, weight, bias, residual)) {
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> saving_inplace(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
    double eps, std::string_view activation, const OptionalTensor& residual) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto results = saving_dispatch(input, weight, bias, running_mean, running_var, training, momentum,
                                       eps, activation, residual);
  if (training) bump_versions(running_mean, running_var);
  return results;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float momentum, float eps, str activation=\"none\", "
      "Tensor? residual=None) -> Tensor");
  // statistics: [3,C] of mean, 1 / sqrt(variance + eps) and the shift of the normalisation, of accumulator
  // type; mask: ReLU's decisions where a residual took part in them, else empty.
  m.def(
      "_batch_norm_act_saving(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float momentum, float eps, str activation, Tensor? residual) "
      "-> (Tensor output, Tensor statistics, Tensor mask)");
  m.def(
      "_batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor statistics, "
      "Tensor? output, Tensor? mask, bool training, str activation, bool[4] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("batch_norm_act", forward_autograd);
  m.impl("_batch_norm_act_saving", torch::autograd::autogradNotImplementedFallback());
  m.impl("_batch_norm_act_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(d2lfast, ADInplaceOrView, m) {
  m.impl("batch_norm_act", forward_inplace);
  m.impl("_batch_norm_act_saving", saving_inplace);
}

}  // namespace d2lfast::ops
