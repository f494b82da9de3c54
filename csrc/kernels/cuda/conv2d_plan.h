#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "conv2d.h"
#include "device_limits.h"

namespace d2lfast::cuda {

// What the plan of a direct convolution depends on: its sizes, the device, and how the tensors lie in 16
// bytes.
using Conv2dPlanKey = std::array<int64_t, 23>;

template <typename Params, typename... Tensors>
Conv2dPlanKey conv2d_plan_key(const Params& p, bool transposed, const Tensors*... tensors) {
  const DeviceLimits limits = device_limits();
  return {limits.processors,
          limits.shared_bytes,
          p.batch,
          p.groups,
          p.source_channels,
          p.result_channels,
          p.channels_last,
          transposed,
          p.h.source,
          p.h.result,
          p.h.kernel,
          p.h.stride,
          p.h.pad,
          p.h.dilation,
          p.w.source,
          p.w.result,
          p.w.kernel,
          p.w.stride,
          p.w.pad,
          p.w.dilation,
          static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensors) % 16)...};
}

// The search of a plan takes the host longer than many a kernel takes, so that a thread keeps what it found
// for the convolutions that it has met.
template <typename Search>
auto kept_plan(const Conv2dPlanKey& key, Search&& search) {
  constexpr size_t kMost = 1024;
  thread_local std::map<Conv2dPlanKey, decltype(search())> plans;
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= kMost) plans.clear();
  return plans.emplace(key, search()).first->second;
}

}  // namespace d2lfast::cuda
