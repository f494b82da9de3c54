#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// A matrix of `rows` rows at a distance of `pitch` elements (negative where the rows are taken from the last
// to the first); every tensor of a call has this shape and pitch. In the plane kernels a row is a channel's
// plane in an image, and center, scale, shift, slope and offset point at the first row's value; row r takes
// the value `channel_step * r` further (0: all planes are one channel's, as the sums require; 1: planes of an
// image, one after the other). In the column kernels they point at [columns] values. They are of accumulator
// type and owned by the caller.
// `result` may be `input`, `residual` or `gradient`, but may not overlap them otherwise.
struct BatchNormParams {
  int64_t rows, columns, pitch;
  int64_t channel_step;
  Activation activation;
  bool stream;  // write past the caches; every row of the results then begins at a cache line
  bool writes;  // gradient_sums also does what gradient does, whose slope and offset are then null
  const void* input;
  const void* residual;   // or null
  const void* gradient;   // of the output
  const void* activated;  // the output; read by the gradients of sigmoid and tanh, of ReLU if not null
  // One bit for each element, set where ReLU lets the gradient pass; a row begins at a byte. Written by
  // normalize, if not null; without it and the output the gradient of ReLU computes the forward's sign again.
  uint8_t* mask;
  int64_t mask_pitch;
  void* result;
  void* grad_residual;  // or null
  const void* center;
  const void* scale;
  const void* shift;   // of the forward
  const void* slope;   // or null: the gradient is g * scale
  const void* offset;  // of the gradient
  double* sums;        // [2] or [2][columns], written
};

struct BatchNormKernels {
  using Kernel = void (*)(const BatchNormParams& params);
  // Sums of d = input - center and of d * d.
  Kernel plane_moments[kNumDTypes], column_moments[kNumDTypes];
  // result = activation(d * scale + shift + residual)
  Kernel plane_normalize[kNumDTypes], column_normalize[kNumDTypes];
  // Sums of g, the gradient before the activation, and of g * d; results too if `writes`.
  Kernel plane_gradient_sums[kNumDTypes], column_gradient_sums[kNumDTypes];
  // result = (g + offset + d * slope) * scale; grad_residual = g
  Kernel plane_gradient[kNumDTypes], column_gradient[kNumDTypes];
};

}  // namespace d2lfast
