#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <tuple>

#include "layout.h"

namespace d2lfast::ops {

// What the backward operator returns: the gradients of input, weight and bias that were found, and those that
// are `missing` from torch's, which aten(missing) computes.
template <typename Aten>
std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_gradients(const at::Tensor& input,
                                                                std::array<at::Tensor, 3> found,
                                                                const std::array<bool, 3>& missing,
                                                                Aten&& aten) {
  if (missing[0] || missing[1] || missing[2]) {
    const auto [of_input, of_weight, of_bias] = aten(missing);
    if (missing[0]) found[0] = of_input;
    if (missing[1]) found[1] = of_weight;
    if (missing[2]) found[2] = of_bias;
  }
  if (found[0].defined()) found[0] = like_batching_of(input, found[0]);
  // The schema promises tensors; those that nobody asked for are empty.
  for (at::Tensor& gradient : found) {
    if (!gradient.defined()) gradient = at::empty({0}, input.options());
  }
  return {found[0], found[1], found[2]};
}

}  // namespace d2lfast::ops
