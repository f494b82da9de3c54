#pragma once

#include <algorithm>

#include "recurrent_layer.h"

// Computed times of a step of a recurrent layer on an H200, in ns, by which an algorithm is chosen.
namespace d2lfast::cuda {

constexpr double kCycle = 1 / 1.75;

// Of torch's layer: two launches, which read the weight from the L2 cache.
inline double native_step(LayerMode mode, int64_t hidden, int64_t batch, DType dtype) {
  constexpr double kLaunch = 2500, kCacheBytes = 5500, kProducts = 400000, kDoubles = 60000;  // a ns
  const double weight = static_cast<double>(layer_gates(mode) * hidden * hidden);
  const double bytes = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const double rate = dtype == DType::kFloat64 ? kDoubles : kProducts;
  return 2 * kLaunch + std::max(weight * bytes / kCacheBytes, 2 * weight * static_cast<double>(batch) / rate);
}

}  // namespace d2lfast::cuda
