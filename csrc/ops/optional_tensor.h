#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace d2lfast::ops {

// Python's None comes as no value or as an undefined tensor.
inline bool given(const std::optional<at::Tensor>& tensor) { return tensor.has_value() && tensor->defined(); }

inline bool requires_grad(const std::optional<at::Tensor>& tensor) {
  return given(tensor) && tensor->requires_grad();
}

inline at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return given(tensor) ? tensor->contiguous() : at::Tensor();
}

inline const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

inline std::optional<at::Tensor> optional_of(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

}  // namespace d2lfast::ops
