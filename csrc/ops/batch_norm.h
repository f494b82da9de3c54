#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "../kernels/activation.h"
#include "../kernels/dtype.h"
#include "visible.h"

namespace d2lfast::ops {

// What backward needs beside the input and the statistics. ReLU's decision is computed again from the input,
// or kept as a bit where a residual took part in it.
inline bool keeps_mask(Activation activation, bool residual) {
  return activation == Activation::kReLU && residual;
}
inline bool keeps_output(Activation activation) {
  return activation == Activation::kSigmoid || activation == Activation::kTanh;
}

// Raises what torch's batch_norm raises.
D2LFAST_VISIBLE DType check_batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                                       const std::optional<at::Tensor>& bias,
                                       const std::optional<at::Tensor>& running_mean,
                                       const std::optional<at::Tensor>& running_var, bool training,
                                       const std::optional<at::Tensor>& residual);

// The same of the arguments of backward.
D2LFAST_VISIBLE void check_batch_norm_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& statistics,
                                               const std::optional<at::Tensor>& output,
                                               const std::optional<at::Tensor>& mask, Activation activation);

// [2,C] of float64, beside the input.
D2LFAST_VISIBLE void check_sync_batch_norm_means(const at::Tensor& means, const at::Tensor& input);

// Shape of the bits of an input of either kind: as many bytes as a device needs, or more. The shape
// function in d2lfast/_fake has the same rule.
inline std::array<int64_t, 2> batch_norm_mask_size(const at::Tensor& input, at::MemoryFormat format) {
  const int64_t batch = input.size(0), channels = input.size(1);
  int64_t pixels = 1;
  for (int64_t i = 2; i < input.dim(); ++i) pixels *= input.size(i);
  if (format == at::MemoryFormat::Contiguous) return {batch * channels, (pixels + 7) / 8};
  return {batch * pixels, (channels + 7) / 8};
}

}  // namespace d2lfast::ops
