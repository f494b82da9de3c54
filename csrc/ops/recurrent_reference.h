#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "visible.h"

namespace d2lfast::ops {

// A recurrent layer from torch's differentiable operators, step by step: what the gradients of gradients are
// taken of. Arguments and results are those of d2lfast::_recurrent_layer.
D2LFAST_VISIBLE std::tuple<at::Tensor, at::Tensor, at::Tensor> recurrent_reference(
    const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes, const at::Tensor& hx,
    const std::optional<at::Tensor>& cx, at::TensorList weights, std::string_view mode, bool bias,
    bool projected, bool reverse);

}  // namespace d2lfast::ops
