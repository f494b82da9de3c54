#pragma once

#include "../activation.h"
#include "device.cuh"

namespace d2lfast::cuda {

template <typename A>
__device__ A activate(A value, Activation activation) {
  switch (activation) {
    case Activation::kReLU:
      return value <= 0 ? A(0) : value;
    case Activation::kSigmoid:
      return A(1) / (A(1) + exp(-value));
    case Activation::kTanh:
      return tanh(value);
    default:
      return value;
  }
}

}  // namespace d2lfast::cuda
