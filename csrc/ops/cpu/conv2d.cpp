#include "../conv2d.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>

#include "../activation.h"
#include "../allocate.h"
#include "../conv2d_gradients.h"
#include "../conv2d_tuning.h"
#include "../layout.h"
#include "../optional_tensor.h"
#include "conv2d_passes.h"
#include "operators.h"

namespace d2lfast::ops {

namespace {

// Null: torch's.
const Conv2dPasses* passes_of(Conv2dAlgorithm algorithm) {
  static constexpr Conv2dPasses kDirect{direct_forward, direct_grad_input, direct_grad_weight};
  static constexpr Conv2dPasses kBatch{batch_forward, batch_grad_input, batch_grad_weight};
  static constexpr Conv2dPasses kWinograd{winograd_forward, winograd_grad_input, winograd_grad_weight};
  static constexpr Conv2dPasses kWinograd2x2{winograd_2x2_forward, winograd_2x2_grad_input,
                                             winograd_2x2_grad_weight};
  static constexpr Conv2dPasses kGemm{gemm_forward, gemm_grad_input, gemm_grad_weight};
  static constexpr Conv2dPasses kChannels{channels_forward, channels_grad_input, channels_grad_weight,
                                          channels_backward};
  static constexpr Conv2dPasses kPlanes{planes_forward, planes_grad_input, planes_grad_weight,
                                        planes_backward};
  switch (algorithm) {
    case Conv2dAlgorithm::kBatch:
      return &kBatch;
    case Conv2dAlgorithm::kWinograd:
      return &kWinograd;
    case Conv2dAlgorithm::kWinograd2x2:
      return &kWinograd2x2;
    case Conv2dAlgorithm::kGemm:
      return &kGemm;
    case Conv2dAlgorithm::kChannels:
      return &kChannels;
    case Conv2dAlgorithm::kPlanes:
      return &kPlanes;
    case Conv2dAlgorithm::kDirect:
      return &kDirect;
    case Conv2dAlgorithm::kImplicitGemm:
    case Conv2dAlgorithm::kAten:
      return nullptr;
  }
  return nullptr;
}

}  // namespace

at::Tensor conv2d_cpu(const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, int64_t groups, std::string_view activation_name,
                      std::string_view algorithm, const std::optional<at::Tensor>& residual) {
  const at::Tensor images = batched(input);
  const Conv2dShape shape = check_conv2d(images, weight, bias, stride, padding, dilation, groups);
  const Activation activation = parse_activation(activation_name);
  // Undefined where the algorithm declines.
  const auto forward = [&](Conv2dAlgorithm chosen) {
    const auto* passes = passes_of(chosen);
    if (passes == nullptr) {
      return conv2d_epilogue(
          input, residual, activation,
          at::convolution(images, weight, bias, stride, padding, dilation, false, {0, 0}, groups));
    }
    at::Tensor output =
        empty({shape.batch, shape.result_channels, shape.result_height(), shape.result_width()},
              images.options().memory_format(conv2d_layout(images, weight)));
    const at::Tensor added = conv2d_residual(input, residual, output);
    const Conv2dForward pass{
        shape,      images, weight, given(bias) ? &*bias : nullptr, added.defined() ? &added : nullptr,
        activation, output};
    return output.numel() == 0 || passes->forward(pass) ? output : at::Tensor();
  };
  at::Tensor output =
      forward(measure_conv2d_algorithm(shape, Conv2dPass::kForward, algorithm, [&](Conv2dAlgorithm each) {
        return wall_seconds([&] { return forward(each).defined(); });
      }));
  if (!output.defined()) output = forward(Conv2dAlgorithm::kAten);
  return like_batching_of(input, output);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& output, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, std::string_view activation_name, std::string_view algorithm,
    std::array<bool, 3> output_mask) {
  const at::Tensor images = batched(input), grad = batched(grad_output);
  const Conv2dShape shape = check_conv2d(images, weight, std::nullopt, stride, padding, dilation, groups);
  const Activation activation = parse_activation(activation_name);
  const bool activated = activation != Activation::kNone;
  TORCH_CHECK(!activated || (output.has_value() && output->defined()),
              "the gradient through an activation needs the output");
  const at::Tensor result = activated ? batched(*output) : at::Tensor();
  const Conv2dBackward pass{shape, grad, images, weight, activated ? &result : nullptr, activation};
  auto [wants_input, wants_weight, wants_bias] = output_mask;
  const auto aten = [&](std::array<bool, 3> mask) {
    return at::convolution_backward(activation_backward(grad, result, activation), images, weight,
                                    at::IntArrayRef{shape.result_channels}, stride, padding, dilation, false,
                                    {0, 0}, groups, mask);
  };
  at::Tensor grad_input, grad_weight, grad_bias;
  const auto allocate_input = [&] {
    return empty(images.sizes(), images.options().memory_format(conv2d_layout(images, weight)));
  };
  const auto compute_input = [&](const Conv2dPasses& passes) {
    grad_input = allocate_input();
    return grad_input.numel() == 0 || passes.grad_input(pass, grad_input);
  };
  const auto compute_weight = [&](const Conv2dPasses& passes) {
    return passes.grad_weight(pass, wants_weight ? &grad_weight : nullptr, wants_bias ? &grad_bias : nullptr);
  };
  const auto choose = [&](Conv2dPass which, const auto& compute, std::array<bool, 3> mask) {
    return passes_of(measure_conv2d_algorithm(shape, which, algorithm, [&](Conv2dAlgorithm each) {
      return wall_seconds([&] {
        const auto* contender = passes_of(each);
        if (contender != nullptr) return compute(*contender);
        aten(mask);
        return true;
      });
    }));
  };
  const Conv2dPasses *of_input = nullptr, *of_weight = nullptr;
  if (wants_input) of_input = choose(Conv2dPass::kGradInput, compute_input, {true, false, false});
  if (wants_weight) {
    of_weight = choose(Conv2dPass::kGradWeight, compute_weight, {false, true, wants_bias});
  } else if (wants_bias) {
    // The bias alone is not what the weight's gradient is measured for.
    of_weight = passes_of(choose_conv2d_algorithm(shape, Conv2dPass::kGradWeight, algorithm));
  }
  if (wants_weight && of_input != nullptr && of_input == of_weight && of_input->backward != nullptr &&
      images.numel() > 0) {
    grad_input = allocate_input();
    const bool whole = of_input->backward(pass, grad_input, &grad_weight, wants_bias ? &grad_bias : nullptr);
    wants_input = false;
    if (whole) wants_weight = wants_bias = false;
  } else {
    if (of_input != nullptr) wants_input = !compute_input(*of_input);
    if (of_weight != nullptr && compute_weight(*of_weight)) wants_weight = wants_bias = false;
  }
  return conv2d_gradients(input, {grad_input, grad_weight, grad_bias},
                          {wants_input, wants_weight, wants_bias}, aten);
}

}  // namespace d2lfast::ops
