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
  const void* bias;  // [G*M] or null
  void* result;      // [N,G*M,...], written once
  Activation activation;
  int64_t batch;
  int32_t groups, source_channels, result_channels;  // C and M, of one group
  Conv2dAxis h, w;
  bool channels_last, transposed;
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

// Dense, channels_last, 16-bit tensors with C % 8 == 0, on tensor cores.
struct Conv2dImplicitParams {
  const void* source;  // [N,H,W,C]
  const void* weight;  // [O,KH,KW,C]
  const void* bias;    // [O] or null
  void* result;        // [N,OH,OW,O]
  Activation activation;
  int64_t batch;
  int32_t source_channels, result_channels;
  Conv2dAxis h, w;
};

constexpr int64_t kMaxConv2dTaps = 256;  // of the direct kernels

// Each launches on `stream`, waits for nothing and allocates nothing; the tensors are not empty. An image of
// more than int32 elements is cudaErrorInvalidValue.
cudaError_t launch_conv2d_direct(const Conv2dDirectParams& params, DType dtype, cudaStream_t stream);
int32_t conv2d_weight_splits(const Conv2dWeightParams& params);
cudaError_t launch_conv2d_weight(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_conv2d_implicit(const Conv2dImplicitParams& params, DType dtype, cudaStream_t stream);

}  // namespace d2lfast::cuda
