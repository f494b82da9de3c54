#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>
#include <optional>

#include "optional_tensor.h"

namespace d2lfast::ops {

namespace detail {

inline bool has_tangent(const at::Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
}
inline bool has_tangent(const std::optional<at::Tensor>& tensor) { return tensor && has_tangent(*tensor); }
inline bool has_tangent(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) { return has_tangent(t); });
}

inline bool wants_gradient(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool wants_gradient(const std::optional<at::Tensor>& tensor) { return requires_grad(tensor); }
inline bool wants_gradient(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) { return t.requires_grad(); });
}

}  // namespace detail

inline bool forward_mode() { return torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr; }

// Of what is differentiated forwards an operator would lose the tangent.
template <typename... Tensors>
void refuse_tangents(const Tensors&... tensors) {
  if (!forward_mode()) return;
  TORCH_CHECK_NOT_IMPLEMENTED(!(detail::has_tangent(tensors) || ...),
                              "the operators of d2lfast have no forward-mode derivative; d2lfast.nn and "
                              "d2lfast.nn.functional call torch's where it is wanted");
}

// Whether autograd has to record an operator of these tensors.
template <typename... Tensors>
bool differentiable(const Tensors&... tensors) {
  refuse_tangents(tensors...);
  return at::GradMode::is_enabled() && (detail::wants_gradient(tensors) || ...);
}

}  // namespace d2lfast::ops
