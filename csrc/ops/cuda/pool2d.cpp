#include "../pool2d.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/pool2d.h"
#include "../dtype.h"
#include "../layout.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

int bytes_of_positions(const at::Tensor& position) {
  TORCH_CHECK(position.scalar_type() == at::kByte || position.scalar_type() == at::kInt,
              "Expected window positions of dtype uint8 or int32, but got ", position.scalar_type());
  return position.scalar_type() == at::kByte ? 1 : 4;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& input, at::IntArrayRef kernel_size,
                                           at::IntArrayRef stride, at::IntArrayRef padding,
                                           at::IntArrayRef dilation, bool ceil_mode, bool with_position) {
  const DeviceGuard guard(input.device());
  const at::Tensor images = batched(input);
  const Pool2dShape s = check_pool2d("max_pool2d", images, kernel_size, stride, padding, dilation, ceil_mode);
  const DType dtype = kernel_dtype(input, "d2lfast::max_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  const at::Tensor output = at::empty({s.n, s.c, s.oh, s.ow}, images.options().memory_format(format));
  at::Tensor position;
  if (with_position) {
    const at::ScalarType type = position_bytes(s.window) == 1 ? at::kByte : at::kInt;
    position = at::empty(output.sizes(), images.options().dtype(type).memory_format(format));
  }
  const MaxPool2dParams params{
      .input = source.const_data_ptr(),
      .output = output.mutable_data_ptr(),
      .position = with_position ? position.mutable_data_ptr() : nullptr,
      .position_bytes = position_bytes(s.window),
      .n = s.n,
      .c = s.c,
      .h = s.h,
      .w = s.w,
      .oh = s.oh,
      .ow = s.ow,
      .window = s.window,
      .channels_last = is_channels_last(format),
  };
  C10_CUDA_CHECK(cuda::launch_max_pool2d(params, dtype, current_stream()));
  return {like_batching_of(input, output), with_position ? like_batching_of(input, position) : at::Tensor()};
}

at::Tensor max_pool2d_cuda(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(forward(input, kernel_size, stride, padding, dilation, ceil_mode, false));
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_position_cuda(const at::Tensor& input,
                                                                 at::IntArrayRef kernel_size,
                                                                 at::IntArrayRef stride,
                                                                 at::IntArrayRef padding,
                                                                 at::IntArrayRef dilation, bool ceil_mode) {
  return forward(input, kernel_size, stride, padding, dilation, ceil_mode, true);
}

at::Tensor max_pool2d_position_to_index_cuda(const at::Tensor& position, at::IntArrayRef input_size,
                                             at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                             at::IntArrayRef padding, at::IntArrayRef dilation) {
  const DeviceGuard guard(position.device());
  const at::MemoryFormat format = layout_of(position);
  const at::Tensor source = batched(position).contiguous(format);
  const Pool2dShape s = pool2d_shape(source, input_size, kernel_size, stride, padding, dilation);
  const at::Tensor index = at::empty(source.sizes(), source.options().dtype(at::kLong).memory_format(format));
  const cuda::MaxPool2dIndexParams params{
      .position = source.const_data_ptr(),
      .index = index.mutable_data_ptr<int64_t>(),
      .position_bytes = bytes_of_positions(source),
      .n = s.n,
      .c = s.c,
      .h = s.h,
      .w = s.w,
      .oh = s.oh,
      .ow = s.ow,
      .window = s.window,
      .channels_last = is_channels_last(format),
  };
  C10_CUDA_CHECK(cuda::launch_max_pool2d_position_to_index(params, current_stream()));
  return like_batching_of(position, index);
}

at::Tensor max_pool2d_backward_cuda(const at::Tensor& grad_output, const at::Tensor& position,
                                    at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                    bool channels_last) {
  TORCH_CHECK(grad_output.sizes() == position.sizes(), "Expected grad_output of size ", position.sizes(),
              ", but got ", grad_output.sizes());
  TORCH_CHECK(grad_output.device() == position.device(),
              "Expected grad_output and position on one device, but got ", grad_output.device(), " and ",
              position.device());
  const DeviceGuard guard(grad_output.device());
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_max_pool2d_backward");
  const at::MemoryFormat format =
      channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const at::Tensor chosen = batched(position).contiguous(format);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  const Pool2dShape s = pool2d_shape(chosen, input_size, kernel_size, stride, padding, dilation);
  const at::Tensor result = at::empty({s.n, s.c, s.h, s.w}, grad.options().memory_format(format));
  const MaxPool2dBackwardParams params{
      .grad_output = grad.const_data_ptr(),
      .position = chosen.const_data_ptr(),
      .grad_input = result.mutable_data_ptr(),
      .position_bytes = bytes_of_positions(chosen),
      .n = s.n,
      .c = s.c,
      .h = s.h,
      .w = s.w,
      .oh = s.oh,
      .ow = s.ow,
      .window = s.window,
      .channels_last = channels_last,
  };
  C10_CUDA_CHECK(cuda::launch_max_pool2d_backward(params, dtype, current_stream()));
  return like_batching_of(grad_output, result);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("max_pool2d", max_pool2d_cuda);
  m.impl("_max_pool2d_with_position", max_pool2d_with_position_cuda);
  m.impl("_max_pool2d_position_to_index", max_pool2d_position_to_index_cuda);
  m.impl("_max_pool2d_backward", max_pool2d_backward_cuda);
}

}  // namespace d2lfast::ops
