#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <optional>

namespace d2lfast::ops {

// In force while a backward operator is called: without create_graph its call goes straight to the device's
// kernel, past the boxed kernel that refuses double backward.
class GradientGuard {
 public:
  GradientGuard() {
    if (!at::GradMode::is_enabled()) guard_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard_;
};

}  // namespace d2lfast::ops
