#include "../batch_norm.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>

#include "../dtype.h"
#include "batch_norm_params.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Output, statistics and mask. Writes to `into`, which may be the input itself, or to a new tensor.
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
    double eps, std::string_view activation_name, const OptionalTensor& residual, bool saves_mask,
    const at::Tensor& into = {}) {
  const DType dtype = check_batch_norm(input, weight, bias, running_mean, running_var, training, residual);
  const DeviceGuard guard(input.device());
  const Activation activation = parse_activation(activation_name);
  const auto format = input.suggest_memory_format();
  const at::Tensor source = input.contiguous(format);
  const at::Tensor shortcut = given(residual) ? residual->contiguous(format) : at::Tensor();
  const at::Tensor weights = contiguous_or_none(weight), biases = contiguous_or_none(bias);
  const bool masked = saves_mask && keeps_mask(activation, shortcut.defined());
  const at::ScalarType wide = accumulator_type(input.scalar_type());
  const auto options = input.options().dtype(wide);
  const at::Tensor output =
      into.defined() ? into : at::empty(input.sizes(), input.options().memory_format(format));
  at::Tensor statistics = at::empty({3, input.size(1)}, options);
  const auto bytes = input.options().dtype(at::kByte);
  const at::Tensor mask =
      masked ? at::empty(batch_norm_mask_size(input, format), bytes) : at::empty({0}, bytes);
  if (input.numel() == 0) {
    statistics.zero_();
    return {output, statistics, mask};
  }
  cuda::BatchNormParams p = batch_norm_shape(source, format);
  p.activation = activation;
  p.input = source.const_data_ptr();
  p.residual = data_or_null(shortcut);
  p.mask = masked ? mask.mutable_data_ptr<uint8_t>() : nullptr;
  p.result = output.mutable_data_ptr();
  p.weight = data_or_null(weights);
  p.bias = data_or_null(biases);
  for (const OptionalTensor* tensor : {&weight, &bias, &running_mean, &running_var}) {
    if (given(*tensor)) p.wide_parameters = (*tensor)->scalar_type() == wide;
  }
  if (given(running_mean)) {
    p.running_mean = running_mean->mutable_data_ptr();
    p.running_mean_stride = running_mean->stride(0);
  }
  if (given(running_var)) {
    p.running_var = running_var->mutable_data_ptr();
    p.running_var_stride = running_var->stride(0);
  }
  p.momentum = momentum;
  p.eps = eps;
  p.statistics = statistics.mutable_data_ptr();
  const cudaStream_t stream = current_stream();
  if (training) {
    const at::Tensor partial = at::empty({cuda::batch_norm_partial_size(p)}, options.dtype(at::kDouble));
    p.partial = partial.mutable_data_ptr<double>();
    C10_CUDA_CHECK(cuda::launch_batch_norm_moments(p, dtype, stream));
  } else {
    C10_CUDA_CHECK(cuda::launch_batch_norm_running(p, dtype, stream));
  }
  C10_CUDA_CHECK(cuda::launch_batch_norm_normalize(p, dtype, stream));
  return {output, statistics, mask};
}

at::Tensor batch_norm_act_cuda(const at::Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& running_mean,
                               const OptionalTensor& running_var, bool training, double momentum, double eps,
                               std::string_view activation, const OptionalTensor& residual) {
  return std::get<0>(forward(input, weight, bias, running_mean, running_var, training, momentum, eps,
                             activation, residual, false));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_saving_cuda(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
    double eps, std::string_view activation, const OptionalTensor& residual) {
  return forward(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual, true);
}

// Every element is read before it is written, by the same thread.
at::Tensor forward_inplace(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           bool training, double momentum, double eps, std::string_view activation,
                           const OptionalTensor& residual) {
  at::assert_no_internal_overlap(input);
  if (given(residual)) at::assert_no_partial_overlap(input, *residual);
  const bool direct = input.is_contiguous(input.suggest_memory_format());
  const auto [output, statistics, mask] =
      forward(input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual,
              false, direct ? input : at::Tensor());
  if (!direct) input.copy_(output);
  return statistics;
}

void batch_norm_act_inplace_cuda(const at::Tensor& input, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& running_mean,
                                 const OptionalTensor& running_var, bool training, double momentum,
                                 double eps, std::string_view activation, const OptionalTensor& residual) {
  forward_inplace(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                  residual);
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// `input`: of forward, or in its place the output (`from_output`), which holds x_hat * weight + bias.
Gradients backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
                   const OptionalTensor& bias, const at::Tensor& statistics, const OptionalTensor& output,
                   const OptionalTensor& mask, bool from_output, bool training,
                   std::string_view activation_name, std::array<bool, 4> output_mask) {
  const DeviceGuard guard(input.device());
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const Activation activation = parse_activation(activation_name);
  check_batch_norm_backward(grad_output, input, statistics, output, mask, activation);
  const auto format = input.suggest_memory_format();
  const int64_t channels = input.size(1);
  const auto [wants_input, wants_weight, wants_bias, wants_residual] = output_mask;
  const auto parameter_options = given(weight) ? weight->options()
                                 : given(bias) ? bias->options()
                                               : input.options();
  const auto like_input = [&](bool wanted) {
    return wanted ? at::empty(input.sizes(), input.options().memory_format(format))
                  : at::empty({0}, input.options());
  };
  at::Tensor grad_input = like_input(wants_input), grad_residual = like_input(wants_residual);
  at::Tensor grad_weight = at::empty({wants_weight ? channels : 0}, parameter_options);
  at::Tensor grad_bias = at::empty({wants_bias ? channels : 0}, parameter_options);
  if (input.numel() == 0) {
    grad_weight.zero_();
    grad_bias.zero_();
    return {grad_input, grad_weight, grad_bias, grad_residual};
  }
  const at::ScalarType wide = accumulator_type(input.scalar_type());
  const auto options = input.options().dtype(wide);
  BatchNormGradient call(grad_output, input, weight, statistics, output, mask, activation, format);
  const at::Tensor biases = contiguous_or_none(bias);
  cuda::BatchNormParams& p = call.params;
  p.wide_parameters = parameter_options.dtype() == wide;
  p.from_output = from_output;
  p.bias = data_or_null(biases);
  p.result = wants_input ? grad_input.mutable_data_ptr() : nullptr;
  p.grad_residual = wants_residual ? grad_residual.mutable_data_ptr() : nullptr;
  p.grad_weight = wants_weight ? grad_weight.mutable_data_ptr() : nullptr;
  p.grad_bias = wants_bias ? grad_bias.mutable_data_ptr() : nullptr;
  const cudaStream_t stream = current_stream();
  at::Tensor coefficients, partial;
  if (training && wants_input) {
    coefficients = at::empty({2, channels}, options);
    p.coefficients = coefficients.mutable_data_ptr();
  }
  if (p.coefficients != nullptr || wants_weight || wants_bias) {
    partial = at::empty({cuda::batch_norm_partial_size(p)}, options.dtype(at::kDouble));
    p.partial = partial.mutable_data_ptr<double>();
    C10_CUDA_CHECK(cuda::launch_batch_norm_gradient_sums(p, dtype, stream));
  }
  if (wants_input || wants_residual) C10_CUDA_CHECK(cuda::launch_batch_norm_gradient(p, dtype, stream));
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

Gradients batch_norm_act_backward_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                                       const OptionalTensor& weight, const at::Tensor& statistics,
                                       const OptionalTensor& output, const OptionalTensor& mask,
                                       bool training, std::string_view activation,
                                       std::array<bool, 4> output_mask) {
  return backward(grad_output, input, weight, {}, statistics, output, mask, false, training, activation,
                  output_mask);
}

Gradients batch_norm_inplace_backward_cuda(const at::Tensor& grad_output, const at::Tensor& output,
                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                           const at::Tensor& statistics, bool training,
                                           std::string_view activation, std::array<bool, 4> output_mask) {
  return backward(grad_output, output, weight, bias, statistics, output, {}, true, training, activation,
                  output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("batch_norm_act", batch_norm_act_cuda);
  m.impl("_batch_norm_act_saving", batch_norm_act_saving_cuda);
  m.impl("_batch_norm_act_backward", batch_norm_act_backward_cuda);
  m.impl("batch_norm_act_", batch_norm_act_inplace_cuda);
  m.impl("_batch_norm_inplace_saving", forward_inplace);
  m.impl("_batch_norm_inplace_backward", batch_norm_inplace_backward_cuda);
}

}  // namespace d2lfast::ops
