#pragma once

#include <cuda_runtime_api.h>

#include "../activation.h"
#include "../dtype.h"

namespace d2lfast::cuda {

// Per-channel values are of accumulator type (float for 16-bit tensors), parameters and running statistics of
// accumulator or tensor type.
struct BatchNormParams {
  int64_t batch, channels, pixels;  // pixels: 1 for [N,C]
  bool columns;                     // channels are contiguous: channels_last, or [N,C]
  Activation activation;
  bool wide_parameters;  // weight, bias and running statistics are of accumulator type
  // Backward: `input` is the output, in which x_hat = (output - bias) / weight, and ReLU's decision its sign.
  bool from_output;
  const void* input;      // every tensor is dense in the same layout
  const void* residual;   // or null
  const void* gradient;   // of the output
  const void* activated;  // the output; read by the gradients of sigmoid and tanh
  // A bit for each element, set where ReLU lets the gradient pass; each image (or pixel, in columns) begins
  // at a byte. Written by forward, if not null; without it backward computes the forward's sign again.
  uint8_t* mask;
  void* result;         // of forward: may be the input or the residual
  void* grad_residual;  // or null
  const void* weight;   // [C] or null
  const void* bias;     // [C] or null
  void* running_mean;   // [C] or null
  void* running_var;    // [C] or null
  int64_t running_mean_stride, running_var_stride;
  double momentum, eps;
  void* statistics;    // [3,C]: mean, 1 / sqrt(variance + eps), shift
  void* coefficients;  // [2,C] of backward in training: slope and offset
  void* grad_weight;   // [C] or null
  void* grad_bias;     // [C] or null
  double* partial;     // batch_norm_partial_size() values
};

// Values of the workspace of the reductions.
int64_t batch_norm_partial_size(const BatchNormParams& params);

// Each launches on `stream`, waits for nothing and allocates nothing; the tensors are not empty.
// Statistics of the batch, which also moves the running ones.
cudaError_t launch_batch_norm_moments(const BatchNormParams& params, DType dtype, cudaStream_t stream);
// moments, [2,C]: mean and sum of squared distances from it.
cudaError_t launch_sync_batch_norm_moments(const BatchNormParams& params, double* moments, DType dtype,
                                           cudaStream_t stream);
// Statistics from the running ones.
cudaError_t launch_batch_norm_running(const BatchNormParams& params, DType dtype, cudaStream_t stream);
// result = activation((input - mean) * weight * invstd + shift + residual)
cudaError_t launch_batch_norm_normalize(const BatchNormParams& params, DType dtype, cudaStream_t stream);
// Gradients of weight and bias, and the coefficients.
cudaError_t launch_batch_norm_gradient_sums(const BatchNormParams& params, DType dtype, cudaStream_t stream);
// The coefficients from means, [2,C]: of the gradient before the activation, and of its product with x_hat.
cudaError_t launch_sync_batch_norm_coefficients(const BatchNormParams& params, const double* means,
                                                DType dtype, cudaStream_t stream);
// Gradients of input and residual; without coefficients those of evaluation.
cudaError_t launch_batch_norm_gradient(const BatchNormParams& params, DType dtype, cudaStream_t stream);

}  // namespace d2lfast::cuda
