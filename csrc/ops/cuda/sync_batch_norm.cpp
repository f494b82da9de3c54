#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../batch_norm.h"
#include "../dtype.h"
#include "batch_norm_params.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

at::Tensor sync_batch_norm_moments_cuda(const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, "expected input of at least 2 dimensions, but got input of size ",
              input.sizes());
  const DType dtype = kernel_dtype(input, "d2lfast::_sync_batch_norm_moments");
  const DeviceGuard guard(input.device());
  const auto options = input.options().dtype(at::kDouble);
  if (input.numel() == 0) return at::zeros({2, input.size(1)}, options);
  at::Tensor moments = at::empty({2, input.size(1)}, options);
  const auto format = input.suggest_memory_format();
  const at::Tensor source = input.contiguous(format);
  cuda::BatchNormParams p = batch_norm_shape(source, format);
  p.input = source.const_data_ptr();
  const at::Tensor partial = at::empty({cuda::batch_norm_partial_size(p)}, options);
  p.partial = partial.mutable_data_ptr<double>();
  C10_CUDA_CHECK(
      cuda::launch_sync_batch_norm_moments(p, moments.mutable_data_ptr<double>(), dtype, current_stream()));
  return moments;
}

std::tuple<at::Tensor, at::Tensor> sync_batch_norm_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const at::Tensor& statistics, const std::optional<at::Tensor>& output,
    const std::optional<at::Tensor>& mask, std::string_view activation_name, const at::Tensor& means,
    bool wants_residual) {
  const DeviceGuard guard(input.device());
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const Activation activation = parse_activation(activation_name);
  check_batch_norm_backward(grad_output, input, statistics, output, mask, activation);
  check_sync_batch_norm_means(means, input);
  const auto format = input.suggest_memory_format();
  const auto like_input = input.options().memory_format(format);
  at::Tensor grad_input = at::empty(input.sizes(), like_input);
  at::Tensor grad_residual =
      wants_residual ? at::empty(input.sizes(), like_input) : at::empty({0}, input.options());
  if (input.numel() == 0) return {grad_input, grad_residual};
  const at::ScalarType wide = accumulator_type(input.scalar_type());
  BatchNormGradient call(grad_output, input, weight, statistics, output, mask, activation, format);
  cuda::BatchNormParams& p = call.params;
  p.wide_parameters = given(weight) && weight->scalar_type() == wide;
  p.result = grad_input.mutable_data_ptr();
  p.grad_residual = wants_residual ? grad_residual.mutable_data_ptr() : nullptr;
  const at::Tensor coefficients = at::empty({2, input.size(1)}, input.options().dtype(wide));
  p.coefficients = coefficients.mutable_data_ptr();
  const at::Tensor dense = means.contiguous();
  const cudaStream_t stream = current_stream();
  C10_CUDA_CHECK(cuda::launch_sync_batch_norm_coefficients(p, dense.const_data_ptr<double>(), dtype, stream));
  C10_CUDA_CHECK(cuda::launch_batch_norm_gradient(p, dtype, stream));
  return {grad_input, grad_residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("_sync_batch_norm_moments", sync_batch_norm_moments_cuda);
  m.impl("_sync_batch_norm_backward", sync_batch_norm_backward_cuda);
}

}  // namespace d2lfast::ops
