#include <ATen/core/Tensor.h>

#include "../adaptive_pool2d.h"
#include "../allocate.h"
#include "../dtype.h"
#include "operators.h"
#include "parallel_items.h"
#include "pool2d_tables.h"

namespace d2lfast::ops {

namespace {

using Kernel = Pool2dKernel<AdaptivePool2dParams>;

// Work is by planes, or by the rows (`rows`) or images (0) of a channels_last result.
void run(Kernel const (&kernels)[kNumDTypes], const at::Tensor& source, const at::Tensor& result,
         int64_t* indices, bool forward, bool last, int64_t rows, DType dtype) {
  const AdaptivePool2dParams params = adaptive_params(source, result, indices, forward, last);
  const int64_t items = params.n * (last ? std::max<int64_t>(rows, 1) : params.c);
  if (items == 0) return;
  const auto& table = cpu::pool2d_adaptive_table();
  const bool sums_images = indices != nullptr && !forward;
  const int64_t scratch = sums_images ? params.h * params.w * (last ? params.c : 1)
                          : last      ? table.pixels_scratch(params.h, params.w, params.oh, params.ow)
                                      : table.scratch(params.w, params.oh, params.ow);
  parallel_items(kernels[static_cast<int>(dtype)], params, items, (forward ? source : result).numel() / items,
                 scratch, dtype);
}

}  // namespace

at::Tensor adaptive_avg_pool2d_cpu(const at::Tensor& input, at::IntArrayRef output_size) {
  const at::Tensor images = check_adaptive("adaptive_avg_pool2d", input, output_size, false);
  const DType dtype = kernel_dtype(input, "d2lfast::adaptive_avg_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  at::Tensor output = empty({images.size(0), images.size(1), output_size[0], output_size[1]},
                            images.options().memory_format(format));
  if (output.numel() > 0) {
    run(cpu::pool2d_adaptive_table().avg_forward, source, output, nullptr, true, is_channels_last(format),
        output_size[0], dtype);
  }
  return like_batching_of(input, output);
}

at::Tensor adaptive_avg_pool2d_backward_cpu(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                            bool channels_last) {
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_adaptive_avg_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  at::Tensor result =
      empty({grad.size(0), grad.size(1), input_size[0], input_size[1]}, grad.options().memory_format(format));
  if (grad.numel() == 0) {
    result.zero_();
  } else {
    run(cpu::pool2d_adaptive_table().avg_backward, grad, result, nullptr, false, channels_last, input_size[0],
        dtype);
  }
  return like_batching_of(grad_output, result);
}

std::tuple<at::Tensor, at::Tensor> adaptive_max_pool2d_cpu(const at::Tensor& input,
                                                           at::IntArrayRef output_size) {
  const at::Tensor images = check_adaptive("adaptive_max_pool2d()", input, output_size, true);
  const DType dtype = kernel_dtype(input, "d2lfast::adaptive_max_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  at::Tensor output = empty({images.size(0), images.size(1), output_size[0], output_size[1]},
                            images.options().memory_format(format));
  at::Tensor indices = empty(output.sizes(), output.options().dtype(at::kLong).memory_format(format));
  if (output.numel() > 0) {
    run(cpu::pool2d_adaptive_table().max_forward, source, output, indices.mutable_data_ptr<int64_t>(), true,
        is_channels_last(format), output_size[0], dtype);
  }
  return {like_batching_of(input, output), like_batching_of(input, indices)};
}

at::Tensor adaptive_max_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& indices,
                                            at::IntArrayRef input_size, bool channels_last) {
  TORCH_CHECK(grad_output.sizes() == indices.sizes(), "Expected grad_output of size ", indices.sizes(),
              ", but got ", grad_output.sizes());
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_adaptive_max_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor from = batched(indices).contiguous(format);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  at::Tensor result = empty({grad.size(0), grad.size(1), input_size[0], input_size[1]},
                            grad_output.options().memory_format(format));
  if (grad.numel() == 0) {
    result.zero_();
  } else {
    run(cpu::pool2d_adaptive_table().max_backward, grad, result, from.data_ptr<int64_t>(), false,
        channels_last, 0, dtype);
  }
  return like_batching_of(grad_output, result);
}

}  // namespace d2lfast::ops
