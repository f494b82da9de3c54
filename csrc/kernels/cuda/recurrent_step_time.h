#pragma once

#include <algorithm>

#include "recurrent_layer.h"

// Computed times of a step of a recurrent layer on an H200, in ns, by which an algorithm is chosen.
namespace d2lfast::cuda {

constexpr double kCycle = 1 / 1.75;

// Of torch's layer: two launches, which read the weight from the L2 cache.
inline double native_step(LayerMode mode, int64_t hidden, int64_t batch, DType dtype) {
  constexpr double kLaunch = 2500, kCacheBytes = 5500, kProducts = 400000, kDoubles = 60000;  // a ns
  const int64_t weight = layer_gates(mode) * hidden * hidden;
  const double bytes = static_cast<double>(weight * bytes_of(dtype));
  const double rate = dtype == DType::kFloat64 ? kDoubles : kProducts;
  const double products = 2 * static_cast<double>(weight) * static_cast<double>(batch);
  return 2 * kLaunch + std::max(bytes / kCacheBytes, products / rate);
}

}  // namespace d2lfast::cuda
