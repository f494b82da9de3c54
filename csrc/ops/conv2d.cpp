#include "conv2d.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "activation.h"
#include "autocast.h"
#include "differentiable.h"
#include "dtype.h"
#include "filter_cache.h"
#include "gradient_guard.h"
#include "layout.h"
#include "optional_tensor.h"

namespace d2lfast::ops {

Conv2dShape check_conv2d(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                         at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(
      input.dim() == 4,
      "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: ", input.sizes());
  TORCH_CHECK(weight.dim() == 4, "weight should have 4 dimensions, but got weight of size: ", weight.sizes());
  TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
              "expected stride, padding and dilation of two values each");
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK(stride[i] > 0, "non-positive stride is not supported");
    TORCH_CHECK(padding[i] >= 0, "negative padding is not supported");
    TORCH_CHECK(dilation[i] > 0, "dilation should be greater than zero");
  }
  TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "Input type (", input.toString(),
              ") and weight type (", weight.toString(), ") should be the same");
  TORCH_CHECK(input.device() == weight.device(),
              "Expected all tensors to be on the same device, but got input on ", input.device(),
              " and weight on ", weight.device());
  TORCH_CHECK(weight.size(0) >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
              " at dimension 0, but got weight of size ", weight.sizes(), " instead");
  TORCH_CHECK(weight.size(0) % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ",
              groups, " at dimension 0, but got weight of size ", weight.sizes(), " instead");
  TORCH_CHECK(input.size(1) == weight.size(1) * groups, "Given groups=", groups, ", weight of size ",
              weight.sizes(), ", expected input", input.sizes(), " to have ", weight.size(1) * groups,
              " channels, but got ", input.size(1), " channels instead");
  if (given(bias)) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "Given weight of size ", weight.sizes(),
                ", expected bias to be 1-dimensional with ", weight.size(0),
                " elements, but got bias of size ", bias->sizes(), " instead");
    TORCH_CHECK(bias->scalar_type() == input.scalar_type(), "Input type (", input.toString(),
                ") and bias type (", bias->toString(), ") should be the same");
    TORCH_CHECK(bias->device() == input.device(),
                "Expected all tensors to be on the same device, but got input on ", input.device(),
                " and bias on ", bias->device());
  }
  const Conv2dShape shape{input.size(0),
                          input.size(1),
                          input.size(2),
                          input.size(3),
                          weight.size(0),
                          weight.size(2),
                          weight.size(3),
                          {stride[0], stride[1]},
                          {padding[0], padding[1]},
                          {dilation[0], dilation[1]},
                          groups,
                          kernel_dtype(input, "d2lfast::conv2d"),
                          is_channels_last(conv2d_layout(input, weight)),
                          input.is_cuda()};
  TORCH_CHECK(
      shape.kernel_h > 0 && shape.kernel_w > 0,
      "weight should have at least one element in each kernel row and column, but got weight of size: ",
      weight.sizes());
  const int64_t padded_h = shape.height + 2 * padding[0], padded_w = shape.width + 2 * padding[1];
  const int64_t extent_h = dilation[0] * (shape.kernel_h - 1) + 1;
  const int64_t extent_w = dilation[1] * (shape.kernel_w - 1) + 1;
  TORCH_CHECK(padded_h >= extent_h && padded_w >= extent_w, "Calculated padded input size per channel: (",
              padded_h, " x ", padded_w, "). Kernel size: (", extent_h, " x ", extent_w,
              "). Kernel size can't be greater than actual input size");
  return shape;
}

at::Tensor conv2d_residual(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                           const at::Tensor& output) {
  if (!given(residual)) return {};
  const at::Tensor images = batched(*residual);
  TORCH_CHECK(residual->dim() == input.dim() && images.sizes() == output.sizes(),
              "expected residual of the output's size ", like_batching_of(input, output).sizes(),
              ", but got ", residual->sizes());
  TORCH_CHECK(residual->scalar_type() == input.scalar_type(), "Input type (", input.toString(),
              ") and residual type (", residual->toString(), ") should be the same");
  TORCH_CHECK(residual->device() == input.device(),
              "Expected all tensors to be on the same device, but got input on ", input.device(),
              " and residual on ", residual->device());
  return images.contiguous(layout_of(output));
}

at::Tensor conv2d_epilogue(const at::Tensor& input, const std::optional<at::Tensor>& residual,
                           Activation activation, const at::Tensor& output) {
  const at::Tensor added = conv2d_residual(input, residual, output);
  return apply_activation(added.defined() ? output.add_(added) : output, activation);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

at::Tensor conv2d_dispatch(const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                           std::string_view activation, std::string_view algorithm,
                           const std::optional<at::Tensor>& residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::conv2d", "")
                             .typed<decltype(conv2d_dispatch)>();
  return op.call(input, weight, bias, stride, padding, dilation, groups, activation, algorithm, residual);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward_dispatch(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& output, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, c10::SymInt groups, std::string_view activation, std::string_view algorithm,
    std::array<bool, 3> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_conv2d_backward", "")
                             .typed<decltype(conv2d_backward_dispatch)>();
  const GradientGuard guard;
  return op.call(grad_output, input, weight, output, stride, padding, dilation, groups, activation, algorithm,
                 output_mask);
}

class Conv2dFunction : public torch::autograd::Function<Conv2dFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const Variable& weight,
                          const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                          c10::SymIntArrayRef dilation, c10::SymInt groups, std::string_view activation,
                          std::string_view algorithm) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Variable output = conv2d_dispatch(input, weight, bias, stride, padding, dilation, groups, activation,
                                      algorithm, residual);
    const bool keeps_output = parse_activation(activation) != Activation::kNone;
    ctx->save_for_backward({input, weight, keeps_output ? output : Variable()});
    ctx->saved_data["has_bias"] = given(bias);
    ctx->saved_data["has_residual"] = given(residual);
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["algorithm"] = std::string(algorithm);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &output = saved[2];
    const auto stride = ctx->saved_data["stride"].toSymIntVector();
    const auto padding = ctx->saved_data["padding"].toSymIntVector();
    const auto dilation = ctx->saved_data["dilation"].toSymIntVector();
    const auto groups = ctx->saved_data["groups"].toSymInt();
    std::string_view activation = ctx->saved_data["activation"].toStringRef();
    // needs_input_grad counts the tensors that were given.
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    const std::array<bool, 3> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                      has_bias && ctx->needs_input_grad(2)};
    const bool wants_residual =
        ctx->saved_data["has_residual"].toBool() && ctx->needs_input_grad(has_bias ? 3 : 2);
    variable_list grads(10);
    Variable grad = grad_outputs[0];
    if (!grad.defined()) return grads;
    if (at::GradMode::is_enabled() || wants_residual) {
      // The residual's gradient is what the kernels would otherwise make while they read.
      grad = activation_backward(grad, output, parse_activation(activation));
      activation = "none";
    }
    if (wants_residual) grads[3] = grad;
    if (at::GradMode::is_enabled()) {
      // create_graph: the gradient from differentiable operators.
      std::tie(grads[0], grads[1], grads[2]) = at::convolution_backward_symint(
          batched(grad), batched(input), weight, std::vector<c10::SymInt>{weight.sym_size(0)}, stride,
          padding, dilation, false, std::vector<c10::SymInt>{0, 0}, groups, mask);
      if (mask[0]) grads[0] = like_batching_of(input, grads[0]);
    } else if (mask[0] || mask[1] || mask[2]) {
      std::tie(grads[0], grads[1], grads[2]) = conv2d_backward_dispatch(
          grad, input, weight, activation == "none" ? std::nullopt : optional_of(output), stride, padding,
          dilation, groups, activation, ctx->saved_data["algorithm"].toStringRef(), mask);
    }
    for (int i = 0; i < 3; ++i) {
      if (!mask[i]) grads[i] = Variable();
    }
    return grads;
  }
};

at::Tensor conv2d_autograd(const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                           std::string_view activation, std::string_view algorithm,
                           const std::optional<at::Tensor>& residual) {
  if (!differentiable(input, weight, bias, residual)) {
    const InferenceGuard inference(!at::GradMode::is_enabled());
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv2d_dispatch(input, weight, bias, stride, padding, dilation, groups, activation, algorithm,
                           residual);
  }
  return Conv2dFunction::apply(input, weight, bias, residual, stride, padding, dilation, groups, activation,
                               algorithm);
}

template <c10::DeviceType device>
at::Tensor conv2d_autocast(const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride,
                           c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                           std::string_view activation, std::string_view algorithm,
                           const std::optional<at::Tensor>& residual) {
  const Autocast cast(device);
  const at::Tensor images = cast(input);
  const auto convolve = [&](std::string_view epilogue, const std::optional<at::Tensor>& added) {
    return conv2d_dispatch(images, cast(weight), cast(bias), stride, padding, dilation, groups, epilogue,
                           algorithm, added);
  };
  if (!given(residual) || residual->scalar_type() == images.scalar_type()) {
    return convolve(activation, residual);
  }
  // A sum is promoted, not cast.
  return apply_activation(at::add(convolve("none", std::nullopt), *residual), parse_activation(activation));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str activation=\"none\", str algorithm=\"auto\", "
      "Tensor? residual=None) -> Tensor");
  m.def(
      "_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? output, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, str activation, str algorithm, "
      "bool[3] output_mask) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("conv2d", conv2d_autograd);
  m.impl("_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(d2lfast, AutocastCPU, m) { m.impl("conv2d", conv2d_autocast<c10::DeviceType::CPU>); }

TORCH_LIBRARY_IMPL(d2lfast, AutocastCUDA, m) { m.impl("conv2d", conv2d_autocast<c10::DeviceType::CUDA>); }

}  // namespace d2lfast::ops
