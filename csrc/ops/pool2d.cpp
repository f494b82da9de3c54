#include "pool2d.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"
#include "gradient_guard.h"
#include "saved_geometry.h"

namespace d2lfast::ops {

namespace {

Window2d window_of(at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                   at::IntArrayRef dilation) {
  if (stride.empty()) stride = kernel_size;
  const auto check = [](const char* name, at::IntArrayRef pair) {
    TORCH_CHECK(pair.size() == 2, name, " must have two values, but got ", pair);
  };
  check("kernel_size", kernel_size);
  check("stride", stride);
  check("padding", padding);
  check("dilation", dilation);
  return {kernel_size[0], kernel_size[1], stride[0],   stride[1],
          padding[0],     padding[1],     dilation[0], dilation[1]};
}

int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                    bool ceil_mode) {
  const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  int64_t out = (span >= 0 ? span / stride : -((-span + stride - 1) / stride)) + 1;
  // The last window starts inside the image or its left padding.
  if (ceil_mode && (out - 1) * stride >= size + pad) --out;
  return out;
}

}  // namespace

Pool2dShape check_pool2d(const char* op, const at::Tensor& input, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         bool ceil_mode) {
  TORCH_CHECK(input.dim() == 4, op,
              ": Expected 3D or 4D (batch mode) tensor, but got input of size: ", input.sizes());
  const Window2d k = window_of(kernel_size, stride, padding, dilation);
  TORCH_CHECK(k.kernel_h > 0 && k.kernel_w > 0,
              "kernel size should be greater than zero, but got kH: ", k.kernel_h, " kW: ", k.kernel_w);
  TORCH_CHECK(k.stride_h > 0 && k.stride_w > 0,
              "stride should be greater than zero, but got dH: ", k.stride_h, " dW: ", k.stride_w);
  TORCH_CHECK(k.dilation_h > 0 && k.dilation_w > 0,
              "dilation should be greater than zero, but got dilationH: ", k.dilation_h,
              " dilationW: ", k.dilation_w);
  TORCH_CHECK(input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0, op,
              ": Expected input to have non-zero size for non-batch dimensions, but got ", input.sizes());
  TORCH_CHECK(k.pad_h >= 0 && k.pad_w >= 0, "pad must be non-negative, but got pad: ", padding);
  // Of the kernel as it is, dilated or not.
  TORCH_CHECK(k.pad_h <= k.kernel_h / 2 && k.pad_w <= k.kernel_w / 2,
              "pad should be smaller than or equal to half of kernel size, but got padW = ", k.pad_w,
              ", padH = ", k.pad_h, ", kW = ", k.kernel_w, ", kH = ", k.kernel_h);
  const Pool2dShape shape{
      input.size(0),
      input.size(1),
      input.size(2),
      input.size(3),
      pooled_size(input.size(2), k.kernel_h, k.stride_h, k.pad_h, k.dilation_h, ceil_mode),
      pooled_size(input.size(3), k.kernel_w, k.stride_w, k.pad_w, k.dilation_w, ceil_mode),
      k};
  TORCH_CHECK(shape.oh >= 1 && shape.ow >= 1, "Given input size: (", shape.c, "x", shape.h, "x", shape.w,
              "). Calculated output size: (", shape.c, "x", shape.oh, "x", shape.ow,
              "). Output size is too small");
  return shape;
}

Pool2dShape pool2d_shape(const at::Tensor& output, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  return {output.size(0),
          output.size(1),
          input_size[0],
          input_size[1],
          output.size(2),
          output.size(3),
          window_of(kernel_size, stride, padding, dilation)};
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using SymInts = c10::SymIntArrayRef;

std::vector<c10::SymInt> image_size(const at::Tensor& input) {
  return {input.sym_size(-2), input.sym_size(-1)};
}

std::tuple<at::Tensor, at::Tensor> max_with_position(const at::Tensor& input, SymInts kernel_size,
                                                     SymInts stride, SymInts padding, SymInts dilation,
                                                     bool ceil_mode) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_max_pool2d_with_position", "")
                             .typed<decltype(max_with_position)>();
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}

at::Tensor position_to_index(const at::Tensor& position, SymInts input_size, SymInts kernel_size,
                             SymInts stride, SymInts padding, SymInts dilation) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_max_pool2d_position_to_index", "")
                             .typed<decltype(position_to_index)>();
  return op.call(position, input_size, kernel_size, stride, padding, dilation);
}

at::Tensor max_backward(const at::Tensor& grad_output, const at::Tensor& position, SymInts input_size,
                        SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                        bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_max_pool2d_backward", "")
                             .typed<decltype(max_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, position, input_size, kernel_size, stride, padding, dilation, channels_last);
}

at::Tensor max_pool2d_dispatch(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                               SymInts dilation, bool ceil_mode) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::max_pool2d", "")
                             .typed<decltype(max_pool2d_dispatch)>();
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}

// Maximum pooling keeps the window position, a byte for each output, instead of the int64 index.
class MaxPool2dFunction : public torch::autograd::Function<MaxPool2dFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& input, SymInts kernel_size,
                               SymInts stride, SymInts padding, SymInts dilation, bool ceil_mode,
                               bool with_indices) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, position] = max_with_position(input, kernel_size, stride, padding, dilation, ceil_mode);
    SavedGeometry::save(ctx, input, {kernel_size, stride.empty() ? kernel_size : stride, padding, dilation});
    ctx->saved_data["ceil_mode"] = ceil_mode;
    ctx->save_for_backward({position});
    if (!with_indices) return {output};
    Variable index = position_to_index(position, image_size(input), kernel_size, stride, padding, dilation);
    ctx->mark_non_differentiable({index});
    return {output, index};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(7);
    if (!grad_outputs[0].defined()) return grads;
    const auto position = ctx->get_saved_variables()[0];
    const SavedGeometry saved(ctx, 4);
    const auto input_size = saved.image_size(), kernel_size = saved.pair(0), stride = saved.pair(1),
               padding = saved.pair(2), dilation = saved.pair(3);
    if (at::GradMode::is_enabled()) {
      // create_graph: torch's own backward, which is differentiable.
      grads[0] = at::max_pool2d_with_indices_backward(
          grad_outputs[0], saved.like_input(grad_outputs[0]), C10_AS_INTARRAYREF_SLOW(kernel_size),
          C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
          C10_AS_INTARRAYREF_SLOW(dilation), ctx->saved_data["ceil_mode"].toBool(),
          position_to_index(position, input_size, kernel_size, stride, padding, dilation));
    } else {
      grads[0] = max_backward(grad_outputs[0], position, input_size, kernel_size, stride, padding, dilation,
                              saved.channels_last());
    }
    return grads;
  }
};

at::Tensor max_pool2d_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                               SymInts dilation, bool ceil_mode) {
  if (!differentiable(input)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return max_pool2d_dispatch(input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  return MaxPool2dFunction::apply(input, kernel_size, stride, padding, dilation, ceil_mode, false)[0];
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices_autograd(const at::Tensor& input,
                                                                    SymInts kernel_size, SymInts stride,
                                                                    SymInts padding, SymInts dilation,
                                                                    bool ceil_mode) {
  refuse_tangents(input);
  const auto results =
      MaxPool2dFunction::apply(input, kernel_size, stride, padding, dilation, ceil_mode, true);
  return {results[0], results[1]};
}

std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& input, SymInts kernel_size,
                                                           SymInts stride, SymInts padding, SymInts dilation,
                                                           bool ceil_mode) {
  auto [output, position] = max_with_position(input, kernel_size, stride, padding, dilation, ceil_mode);
  return {output, position_to_index(position, image_size(input), kernel_size, stride, padding, dilation)};
}

at::Tensor avg_pool2d_dispatch(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                               bool ceil_mode, bool count_include_pad, std::optional<c10::SymInt> divisor) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::avg_pool2d", "")
                             .typed<decltype(avg_pool2d_dispatch)>();
  return op.call(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor);
}

at::Tensor avg_backward(const at::Tensor& grad_output, SymInts input_size, SymInts kernel_size,
                        SymInts stride, SymInts padding, bool count_include_pad,
                        std::optional<c10::SymInt> divisor, bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_avg_pool2d_backward", "")
                             .typed<decltype(avg_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, input_size, kernel_size, stride, padding, count_include_pad, divisor,
                 channels_last);
}

class AvgPool2dFunction : public torch::autograd::Function<AvgPool2dFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, SymInts kernel_size, SymInts stride,
                          SymInts padding, bool ceil_mode, bool count_include_pad,
                          std::optional<c10::SymInt> divisor) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto output =
        avg_pool2d_dispatch(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor);
    SavedGeometry::save(ctx, input, {kernel_size, stride.empty() ? kernel_size : stride, padding});
    ctx->saved_data["modes"] = int64_t{ceil_mode} | int64_t{count_include_pad} << 1;
    if (divisor.has_value()) ctx->saved_data["divisor"] = *divisor;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(7);
    if (!grad_outputs[0].defined()) return grads;
    const SavedGeometry saved(ctx, 3);
    const auto kernel_size = saved.pair(0), stride = saved.pair(1), padding = saved.pair(2);
    const int64_t modes = ctx->saved_data["modes"].toInt();
    const bool ceil_mode = modes & 1, include_pad = modes & 2;
    std::optional<c10::SymInt> divisor;
    if (const auto found = ctx->saved_data.find("divisor"); found != ctx->saved_data.end()) {
      divisor = found->second.toSymInt();
    }
    if (at::GradMode::is_enabled()) {
      std::optional<int64_t> concrete;
      if (divisor.has_value()) concrete = divisor->guard_int(__FILE__, __LINE__);
      grads[0] =
          at::avg_pool2d_backward(grad_outputs[0], saved.like_input(grad_outputs[0]),
                                  C10_AS_INTARRAYREF_SLOW(kernel_size), C10_AS_INTARRAYREF_SLOW(stride),
                                  C10_AS_INTARRAYREF_SLOW(padding), ceil_mode, include_pad, concrete);
    } else {
      grads[0] = avg_backward(grad_outputs[0], saved.image_size(), kernel_size, stride, padding, include_pad,
                              divisor, saved.channels_last());
    }
    return grads;
  }
};

at::Tensor avg_pool2d_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                               bool ceil_mode, bool count_include_pad, std::optional<c10::SymInt> divisor) {
  if (!differentiable(input)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return avg_pool2d_dispatch(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor);
  }
  return AvgPool2dFunction::apply(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "max_pool2d(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "max_pool2d_with_indices(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_with_position(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_position_to_index(Tensor position, SymInt[2] input_size, SymInt[2] kernel_size, "
      "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation) -> Tensor");
  m.def(
      "_max_pool2d_backward(Tensor grad_output, Tensor position, SymInt[2] input_size, SymInt[2] "
      "kernel_size, "
      "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool channels_last) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, bool ceil_mode, "
      "bool count_include_pad, SymInt? divisor_override) -> Tensor");
  m.def(
      "_avg_pool2d_backward(Tensor grad_output, SymInt[2] input_size, SymInt[2] kernel_size, SymInt[2] "
      "stride, "
      "SymInt[2] padding, bool count_include_pad, SymInt? divisor_override, "
      "bool channels_last) -> Tensor");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("max_pool2d", max_pool2d_autograd);
  m.impl("max_pool2d_with_indices", max_pool2d_with_indices_autograd);
  m.impl("avg_pool2d", avg_pool2d_autograd);
  for (const char* op : {"_max_pool2d_with_position", "_max_pool2d_backward", "_avg_pool2d_backward"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(d2lfast, CPU, m) { m.impl("max_pool2d_with_indices", max_pool2d_with_indices); }
TORCH_LIBRARY_IMPL(d2lfast, CUDA, m) { m.impl("max_pool2d_with_indices", max_pool2d_with_indices); }

}  // namespace d2lfast::ops
