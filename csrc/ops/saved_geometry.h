#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "layout.h"

namespace d2lfast::ops {

// Backward needs the input's size and layout, not its elements.
inline void save_geometry(torch::autograd::AutogradContext* ctx, const at::Tensor& input) {
  ctx->saved_data["input_size"] = input.sym_sizes();
  ctx->saved_data["channels_last"] = is_channels_last(layout_of(input));
}

inline std::vector<c10::SymInt> saved_image_size(torch::autograd::AutogradContext* ctx) {
  const auto size = ctx->saved_data["input_size"].toSymIntVector();
  return {size[size.size() - 2], size[size.size() - 1]};
}

// A stand-in for the input, for torch's backward operators, which look at its size and layout alone.
inline at::Tensor like_saved_input(torch::autograd::AutogradContext* ctx, const at::Tensor& grad_output) {
  return at::empty_symint(ctx->saved_data["input_size"].toSymIntVector(), grad_output.options(),
                          layout(ctx->saved_data["channels_last"].toBool()));
}

}  // namespace d2lfast::ops
