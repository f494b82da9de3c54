#include "activation.h"

#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>

namespace d2lfast::ops {

std::string_view activation_name(Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return "relu";
    case Activation::kSigmoid:
      return "sigmoid";
    case Activation::kTanh:
      return "tanh";
    default:
      return "none";
  }
}

Activation parse_activation(std::string_view name) {
  for (const auto activation :
       {Activation::kNone, Activation::kReLU, Activation::kSigmoid, Activation::kTanh}) {
    if (name == activation_name(activation)) return activation;
  }
  TORCH_CHECK_VALUE(false, "activation must be one of 'none', 'relu', 'sigmoid', 'tanh', but got '", name,
                    "'");
}

at::Tensor apply_activation(const at::Tensor& input, Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return at::relu(input);
    case Activation::kSigmoid:
      return at::sigmoid(input);
    case Activation::kTanh:
      return at::tanh(input);
    default:
      return input;
  }
}

at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& output,
                               Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return at::threshold_backward(grad_output, output, 0);
    case Activation::kSigmoid:
      return at::sigmoid_backward(grad_output, output);
    case Activation::kTanh:
      return at::tanh_backward(grad_output, output);
    default:
      return grad_output;
  }
}

}  // namespace d2lfast::ops
