#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// A matrix of `rows` rows at a distance of `pitch` elements; every tensor of a call has this shape and
// pitch. In the plane kernels all of it belongs to one channel (a row is an image's plane) and center,
// scale, slope and offset point at one value each; in the column kernels they point at [columns] values.
// They are of accumulator type and owned by the caller. `result` may be no other tensor of the call.
struct BatchNormParams {
  int64_t rows, columns, pitch;
  Activation activation;
  const void* input;
  const void* residual;   // or null
  const void* gradient;   // of the output
  const void* activated;  // the output; read where activation is not none
  void* result;
  void* grad_residual;  // or null
  const void* center;
  const void* scale;
  const void* slope;
  const void* offset;
  double* sums;  // [2] or [2][columns], written
};

struct BatchNormKernels {
  using Kernel = void (*)(const BatchNormParams& params);
  // Sums of d = input - center and of d * d.
  Kernel plane_moments[kNumDTypes], column_moments[kNumDTypes];
  // result = activation(d * scale + offset + residual)
  Kernel plane_normalize[kNumDTypes], column_normalize[kNumDTypes];
  // Sums of g = gradient * activation'(activated) and of g * d.
  Kernel plane_gradient_sums[kNumDTypes], column_gradient_sums[kNumDTypes];
  // result = g * scale + d * slope + offset; grad_residual = g
  Kernel plane_gradient[kNumDTypes], column_gradient[kNumDTypes];
};

}  // namespace d2lfast
