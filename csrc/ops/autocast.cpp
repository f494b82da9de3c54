#include "autocast.h"

#include <ATen/autocast_mode.h>

namespace d2lfast::ops {

Autocast::Autocast(c10::DeviceType device)
    : off_(at::autocast::get_autocast_dispatch_key_from_device_type(device)),
      device_(device),
      type_(at::autocast::get_autocast_dtype(device)) {}

at::Tensor Autocast::operator()(const at::Tensor& tensor) const {
  return at::autocast::cached_cast(type_, tensor, device_);
}

std::optional<at::Tensor> Autocast::operator()(const std::optional<at::Tensor>& tensor) const {
  return at::autocast::cached_cast(type_, tensor, device_);
}

bool Autocast::enabled(c10::DeviceType device) { return at::autocast::is_autocast_enabled(device); }

}  // namespace d2lfast::ops
