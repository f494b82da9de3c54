#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

namespace d2lfast::ops {

// The casts of an operator under autocast, which is off for what the operator calls while this lives.
// (torch's header of autocast includes all of its operators and costs each file three seconds.)
class Autocast {
 public:
  explicit Autocast(c10::DeviceType device);
  at::Tensor operator()(const at::Tensor& tensor) const;
  std::optional<at::Tensor> operator()(const std::optional<at::Tensor>& tensor) const;

  static bool enabled(c10::DeviceType device);

 private:
  c10::impl::ExcludeDispatchKeyGuard off_;
  c10::DeviceType device_;
  at::ScalarType type_;
};

}  // namespace d2lfast::ops
