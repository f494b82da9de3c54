#include "../pool2d.h"

#include "../allocate.h"
#include "../dtype.h"
#include "../layout.h"
#include "operators.h"
#include "parallel_items.h"
#include "pool2d_tables.h"

namespace d2lfast::ops {

namespace {

int index_of(DType dtype) { return static_cast<int>(dtype); }

// Items of a kernel call: planes, or the rows of a channels_last result.
int64_t items_of(bool channels_last, int64_t n, int64_t c, int64_t rows) {
  return n * (channels_last ? rows : c);
}

// Whether a result is so large that its beginning has left the caches when its end is written.
bool exceeds_caches(const at::Tensor& result) {
  constexpr size_t kBytes = size_t{16} << 20;
  return result.nbytes() > kBytes;
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_forward(const at::Tensor& input, at::IntArrayRef kernel_size,
                                                      at::IntArrayRef stride, at::IntArrayRef padding,
                                                      at::IntArrayRef dilation, bool ceil_mode,
                                                      bool with_position) {
  const at::Tensor images = batched(input);
  const Pool2dShape s = check_pool2d("max_pool2d", images, kernel_size, stride, padding, dilation, ceil_mode);
  const DType dtype = kernel_dtype(input, "d2lfast::max_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  at::Tensor output = empty({s.n, s.c, s.oh, s.ow}, images.options().memory_format(format));
  at::Tensor position;
  if (with_position) {
    position = empty(
        output.sizes(),
        images.options().dtype(position_bytes(s.window) == 1 ? at::kByte : at::kInt).memory_format(format));
  }
  if (output.numel() > 0) {
    const bool last = is_channels_last(format);
    const MaxPool2dParams params{source.const_data_ptr(),
                                 output.mutable_data_ptr(),
                                 with_position ? position.mutable_data_ptr() : nullptr,
                                 position_bytes(s.window),
                                 s.n,
                                 s.c,
                                 s.h,
                                 s.w,
                                 s.oh,
                                 s.ow,
                                 s.window,
                                 last};
    const auto& table = cpu::pool2d_max_table();
    const int64_t items = items_of(last, s.n, s.c, s.oh);
    parallel_items(table.forward[index_of(dtype)], params, items,
                   output.numel() / items * s.window.kernel_h * s.window.kernel_w / 2, table.scratch(params),
                   dtype);
  }
  return {like_batching_of(input, output), with_position ? like_batching_of(input, position) : at::Tensor()};
}

}  // namespace

at::Tensor max_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(max_pool2d_forward(input, kernel_size, stride, padding, dilation, ceil_mode, false));
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_position_cpu(const at::Tensor& input,
                                                                at::IntArrayRef kernel_size,
                                                                at::IntArrayRef stride,
                                                                at::IntArrayRef padding,
                                                                at::IntArrayRef dilation, bool ceil_mode) {
  return max_pool2d_forward(input, kernel_size, stride, padding, dilation, ceil_mode, true);
}

namespace {

template <typename P>
void positions_to_indices(const P* position, int64_t* index, const Pool2dShape& s, bool channels_last) {
  const Window2d& k = s.window;
  const int64_t inner = channels_last ? s.c : 1;
  const int64_t rows = (channels_last ? s.n : s.n * s.c) * s.oh;
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, s.ow * inner)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       const int64_t y = row % s.oh * k.stride_h - k.pad_h;
                       for (int64_t ox = 0; ox < s.ow; ++ox) {
                         const int64_t x = ox * k.stride_w - k.pad_w;
                         for (int64_t i = (row * s.ow + ox) * inner; i < (row * s.ow + ox + 1) * inner; ++i) {
                           const int64_t p = position[i];
                           index[i] =
                               (y + p / k.kernel_w * k.dilation_h) * s.w + x + p % k.kernel_w * k.dilation_w;
                         }
                       }
                     }
                   });
}

}  // namespace

at::Tensor max_pool2d_position_to_index_cpu(const at::Tensor& position, at::IntArrayRef input_size,
                                            at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                            at::IntArrayRef padding, at::IntArrayRef dilation) {
  const at::Tensor positions = batched(position);
  const at::MemoryFormat format = layout_of(position);
  const at::Tensor from = positions.contiguous(format);
  const Pool2dShape s = pool2d_shape(from, input_size, kernel_size, stride, padding, dilation);
  at::Tensor index = empty(from.sizes(), from.options().dtype(at::kLong).memory_format(format));
  if (from.scalar_type() == at::kByte) {
    positions_to_indices(from.const_data_ptr<uint8_t>(), index.mutable_data_ptr<int64_t>(), s,
                         is_channels_last(format));
  } else {
    positions_to_indices(from.const_data_ptr<int32_t>(), index.mutable_data_ptr<int64_t>(), s,
                         is_channels_last(format));
  }
  return like_batching_of(position, index);
}

at::Tensor max_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& position,
                                   at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                   bool channels_last) {
  TORCH_CHECK(grad_output.sizes() == position.sizes(), "Expected grad_output of size ", position.sizes(),
              ", but got ", grad_output.sizes());
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_max_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor at_position = batched(position).contiguous(format);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  const Pool2dShape s = pool2d_shape(at_position, input_size, kernel_size, stride, padding, dilation);
  at::Tensor result = empty({s.n, s.c, s.h, s.w}, grad_output.options().memory_format(format));
  if (result.numel() > 0) {
    const bool last = channels_last;
    const MaxPool2dBackwardParams params{grad.const_data_ptr(),
                                         at_position.const_data_ptr(),
                                         result.mutable_data_ptr(),
                                         position_bytes(s.window),
                                         s.n,
                                         s.c,
                                         s.h,
                                         s.w,
                                         s.oh,
                                         s.ow,
                                         s.window,
                                         last,
                                         exceeds_caches(result)};
    const auto& table = cpu::pool2d_max_gradient_table();
    const int64_t items = items_of(last, s.n, s.c, s.h);
    parallel_items(table.backward[index_of(dtype)], params, items, result.numel() / items * 2,
                   table.scratch(params), dtype);
  }
  return like_batching_of(grad_output, result);
}

at::Tensor avg_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override) {
  const int64_t divisor = divisor_of(divisor_override);
  if (input.dim() < 3) input.size(-3);  // torch's IndexError
  const at::Tensor images = batched(input);
  const Pool2dShape s = check_pool2d("avg_pool2d", images, kernel_size, stride, padding, {1, 1}, ceil_mode);
  const DType dtype = kernel_dtype(input, "d2lfast::avg_pool2d");
  const at::MemoryFormat format = layout_of(input);
  const at::Tensor source = images.contiguous(format);
  at::Tensor output = empty({s.n, s.c, s.oh, s.ow}, images.options().memory_format(format));
  if (output.numel() > 0) {
    const bool last = is_channels_last(format);
    const AvgPool2dParams params = average_params(source, output, s, count_include_pad, divisor, last);
    const auto& table = cpu::pool2d_average_table();
    const int64_t items = items_of(last, s.n, s.c, s.oh);
    parallel_items(table.forward[index_of(dtype)], params, items,
                   output.numel() / items * s.window.kernel_h * s.window.kernel_w / 2,
                   table.forward_scratch(params), dtype);
  }
  return like_batching_of(input, output);
}

at::Tensor avg_pool2d_backward_cpu(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                   at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding, bool count_include_pad,
                                   std::optional<int64_t> divisor_override, bool channels_last) {
  const int64_t divisor = divisor_of(divisor_override);
  const DType dtype = kernel_dtype(grad_output, "d2lfast::_avg_pool2d_backward");
  const at::MemoryFormat format = layout(channels_last);
  const at::Tensor grad = batched(grad_output).contiguous(format);
  const Pool2dShape s = pool2d_shape(grad, input_size, kernel_size, stride, padding, {1, 1});
  at::Tensor result = empty({s.n, s.c, s.h, s.w}, grad.options().memory_format(format));
  if (result.numel() > 0) {
    const bool last = is_channels_last(format);
    AvgPool2dParams params = average_params(grad, result, s, count_include_pad, divisor, last);
    params.stream = exceeds_caches(result);
    const auto& table = cpu::pool2d_average_table();
    const int64_t items = items_of(last, s.n, s.c, s.h);
    parallel_items(table.backward[index_of(dtype)], params, items, result.numel() / items * 2,
                   table.backward_scratch(params), dtype);
  }
  return like_batching_of(grad_output, result);
}

}  // namespace d2lfast::ops
