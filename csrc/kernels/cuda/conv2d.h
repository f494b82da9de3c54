#pragma once

#include <cuda_runtime_api.h>

#include "../activation.h"
#include "../dtype.h"

namespace d2lfast::cuda {

// One axis of a convolution from `source` to `result` positions. Forward, a tap meets the source at
// r * stride - pad + tap * dilation; transposed (the data gradient), the source position s meets the result
// at s * stride - pad + tap * dilation.
struct Conv2dAxis {
  int32_t source, result, kernel, stride, pad, dilation;
};

// Tensors are dense, contiguous or channels_last.
struct Conv2dDirectParams {
  const void* source;  // [N,G*C,...]
  // NCHW: [G,M,C,taps], channels_last: [taps,C,G*M]
  const void* weight;
  const void* bias;      // [G*M] or null
  const void* residual;  // as the result, added before the activation, or null
  void* result;          // [N,G*M,...], written once
  Activation activation;
  int64_t batch;
  int32_t groups, source_channels, result_channels;  // C and M, of one group
  Conv2dAxis h, w;
  bool channels_last, transposed;
  bool tf32;  // whether float32 may be rounded to it
};

struct Conv2dWeightParams {
  const void* gradient;  // [N,G*M,...] of the output
  const void* source;    // [N,G*C,...]
  void* partial;         // [splits,G*M,C,taps] of accumulator type, written
  int64_t batch;
  int32_t groups, source_channels, result_channels;
  Conv2dAxis h, w;
  bool channels_last;
  int32_t splits;
};

// Dense, channels_last, with channels in multiples of 16 bytes. float32 is exact, or rounded to TF32 with
// `tf32`. Transposed, the data gradient: the source is the gradient of the output.
struct Conv2dImplicitParams {
  const void* source;    // [N,H,W,C]
  const void* weight;    // [O,KH,KW,C]
  const void* bias;      // [O] or null
  const void* residual;  // as the result, added before the activation, or null
  void* result;          // [N,OH,OW,O], written once
  Activation activation;
  int64_t batch;
  int32_t source_channels, result_channels;
  Conv2dAxis h, w;
  bool transposed, tf32;
};

struct Conv2dImplicitWeightParams {
  const void* gradient;  // [N,OH,OW,O] of the output
  const void* source;    // [N,H,W,C]
  float* partial;        // [splits,KH,KW,C,O], written
  int64_t batch;
  int32_t source_channels, result_channels;
  Conv2dAxis h, w;
  bool tf32;
  int32_t splits;
};

constexpr int64_t kMaxConv2dTaps = 256;  // of the direct kernels

// Each launches on `stream`, waits for nothing and allocates nothing; the tensors are not empty. An image of
// more than int32 elements is cudaErrorInvalidValue.
cudaError_t launch_conv2d_direct(const Conv2dDirectParams& params, DType dtype, cudaStream_t stream);
int32_t conv2d_weight_splits(const Conv2dWeightParams& params, DType dtype);
cudaError_t launch_conv2d_weight(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_conv2d_implicit(const Conv2dImplicitParams& params, DType dtype, cudaStream_t stream);
int32_t conv2d_implicit_weight_splits(const Conv2dImplicitWeightParams& params);
cudaError_t launch_conv2d_implicit_weight(const Conv2dImplicitWeightParams& params, DType dtype,
                                          cudaStream_t stream);
// Adds [splits,count] of accumulator type up, from the first to the last, into [count] of the tensors' type.
cudaError_t launch_add_parts(const void* partial, void* result, int32_t splits, int64_t count, DType dtype,
                             cudaStream_t stream);

}  // namespace d2lfast::cuda
