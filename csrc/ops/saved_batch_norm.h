#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <array>

#include "../kernels/activation.h"
#include "optional_tensor.h"

namespace d2lfast::ops {

// What backward of batch norm, in place or not, needs of the call beside tensors. One saved number, as each
// saved item costs forward and backward a fraction of a microsecond.
class SavedBatchNorm {
 public:
  static void save(torch::autograd::AutogradContext* ctx, const std::optional<at::Tensor>& weight,
                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                   bool training, Activation activation) {
    const int64_t present = 1 | given(weight) << 1 | given(bias) << 2 | given(residual) << 3;
    ctx->saved_data[kName] = present | training << 4 | static_cast<int64_t>(activation) << 5;
  }

  explicit SavedBatchNorm(torch::autograd::AutogradContext* ctx) {
    const int64_t modes = ctx->saved_data[kName].toInt();
    training = modes >> 4 & 1;
    activation = static_cast<Activation>(modes >> 5);
    // needs_input_grad counts the tensors that were given.
    for (size_t i = 0, position = 0; i < wants.size(); ++i) {
      if (modes >> i & 1) wants[i] = ctx->needs_input_grad(position++);
    }
  }

  // What the operator of backward is asked for: without an activation the residual's gradient is the
  // output's.
  std::array<bool, 4> asks() const { return {wants[0], wants[1], wants[2], fused_residual()}; }
  bool fused_residual() const { return wants[3] && activation != Activation::kNone; }

  void drop_unwanted(torch::autograd::variable_list& grads) const {
    for (size_t i = 0; i < wants.size(); ++i) {
      if (!wants[i]) grads[i] = torch::autograd::Variable();
    }
  }

  bool training;
  Activation activation;
  std::array<bool, 4> wants{};  // gradients of input, weight, bias, residual

 private:
  static constexpr const char* kName = "modes";
};

}  // namespace d2lfast::ops
