#include <ATen/ops/empty.h>

#include "../../kernels/cuda/pool2d.h"
#include "../adaptive_pool2d.h"
#include "../dtype.h"
#include "../pool2d.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

at::Tensor avg_pool2d_cuda(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  const DeviceGuard guard(input.device());
  const int64_t divisor = divisor_of(divisor_override);
  if (input.dim() < 3) input.size(-3);  // torch's IndexError
  const at::Tensor images = batched(input);
  const Pool2dShape s = check_pool2d("avg_pool2d", images, kernel_size, stride, padding, {1, 1}, ceil_mode);
  const DType dtype = kernel_dtype(input, "d2lfast::avg_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  const at::Tensor output = at::empty({s.n, s.c, s.oh, s.ow}, images.options().memory_format(format));
  C10_CUDA_CHECK(cuda::launch_avg_pool2d(
      average_params(source, output, s, count_include_pad, divisor, is_channels_last(format)), dtype,
      current_stream()));
  return like_batching_of(input, output);
}

at::Tensor avg_pool2d_backward_cuda(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, bool count_include_pad,
                                    std::optional<int64_t> divisor_override, bool channels_last) {
  const DeviceGuard guard(grad_output.device());
  const int64_t divisor = divisor_of(divisor_override);
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_avg_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  const Pool2dShape s = pool2d_shape(grad, input_size, kernel_size, stride, padding, {1, 1});
  const at::Tensor result = at::empty({s.n, s.c, s.h, s.w}, grad.options().memory_format(format));
  C10_CUDA_CHECK(cuda::launch_avg_pool2d_backward(
      average_params(grad, result, s, count_include_pad, divisor, channels_last), dtype, current_stream()));
  return like_batching_of(grad_output, result);
}

at::Tensor adaptive_avg_pool2d_cuda(const at::Tensor& input, at::IntArrayRef output_size) {
  const DeviceGuard guard(input.device());
  const at::Tensor images = check_adaptive("adaptive_avg_pool2d", input, output_size, false);
  const DType dtype = kernel_dtype(input, "d2lfast::adaptive_avg_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  const at::Tensor output = at::empty({images.size(0), images.size(1), output_size[0], output_size[1]},
                                      images.options().memory_format(format));
  C10_CUDA_CHECK(cuda::launch_adaptive_avg_pool2d(
      adaptive_params(source, output, nullptr, true, is_channels_last(format)), dtype, current_stream()));
  return like_batching_of(input, output);
}

at::Tensor gradient_like(const at::Tensor& grad, at::IntArrayRef input_size, at::MemoryFormat format) {
  return at::empty({grad.size(0), grad.size(1), input_size[0], input_size[1]},
                   grad.options().memory_format(format));
}

at::Tensor adaptive_avg_pool2d_backward_cuda(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                             bool channels_last) {
  const DeviceGuard guard(grad_output.device());
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_adaptive_avg_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  at::Tensor result = gradient_like(grad, input_size, format);
  if (grad.numel() == 0) {
    result.zero_();
  } else {
    C10_CUDA_CHECK(cuda::launch_adaptive_avg_pool2d_backward(
        adaptive_params(grad, result, nullptr, false, channels_last), dtype, current_stream()));
  }
  return like_batching_of(grad_output, result);
}

std::tuple<at::Tensor, at::Tensor> adaptive_max_pool2d_cuda(const at::Tensor& input,
                                                            at::IntArrayRef output_size) {
  const DeviceGuard guard(input.device());
  const at::Tensor images = check_adaptive("adaptive_max_pool2d()", input, output_size, true);
  const DType dtype = kernel_dtype(input, "d2lfast::adaptive_max_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  const at::Tensor output = at::empty({images.size(0), images.size(1), output_size[0], output_size[1]},
                                      images.options().memory_format(format));
  const at::Tensor indices =
      at::empty(output.sizes(), output.options().dtype(at::kLong).memory_format(format));
  C10_CUDA_CHECK(cuda::launch_adaptive_max_pool2d(
      adaptive_params(source, output, indices.mutable_data_ptr<int64_t>(), true, is_channels_last(format)),
      dtype, current_stream()));
  return {like_batching_of(input, output), like_batching_of(input, indices)};
}

at::Tensor adaptive_max_pool2d_backward_cuda(const at::Tensor& grad_output, const at::Tensor& indices,
                                             at::IntArrayRef input_size, bool channels_last) {
  TORCH_CHECK(grad_output.sizes() == indices.sizes(), "Expected grad_output of size ", indices.sizes(),
              ", but got ", grad_output.sizes());
  const DeviceGuard guard(grad_output.device());
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_adaptive_max_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor from = batched(indices).contiguous(format);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  at::Tensor result = gradient_like(grad, input_size, format);
  if (grad.numel() == 0) {
    result.zero_();
  } else {
    C10_CUDA_CHECK(cuda::launch_adaptive_max_pool2d_backward(
        adaptive_params(grad, result, from.data_ptr<int64_t>(), false, channels_last), dtype,
        current_stream()));
  }
  return like_batching_of(grad_output, result);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("avg_pool2d", avg_pool2d_cuda);
  m.impl("_avg_pool2d_backward", avg_pool2d_backward_cuda);
  m.impl("adaptive_avg_pool2d", adaptive_avg_pool2d_cuda);
  m.impl("_adaptive_avg_pool2d_backward", adaptive_avg_pool2d_backward_cuda);
  m.impl("adaptive_max_pool2d", adaptive_max_pool2d_cuda);
  m.impl("_adaptive_max_pool2d_backward", adaptive_max_pool2d_backward_cuda);
}

}  // namespace d2lfast::ops
