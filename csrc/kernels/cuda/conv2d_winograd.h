#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../activation.h"

namespace d2lfast::cuda {

// Winograd's F(4x4, 3x3) (csrc/kernels/conv2d_winograd.h) in float32: transforms of filters and of source
// tiles, 36 matrix products, which are the caller's, and the transform of their tiles to results; for the
// weight gradient, transforms of source and gradient tiles, products over the tiles, and the transform to
// filters. S, R: source and result channels; T: tiles of 4x4 results of all images, by rows.
struct Conv2dWinogradParams {
  const float* source;    // [N,S,H,W], contiguous or channels_last
  const float* weight;    // [R,S,3,3], or transposed [S,R,3,3], which are turned around
  const float* bias;      // [R] or null
  const float* residual;  // as the result, added before the activation, or null
  float* result;          // [N,R,OH,OW], of the source's layout
  float* filters;         // [36,R,S]
  float* sources;         // [36,S,T], channels_last [36,T,S]
  float* products;        // [36,R,T], channels_last [36,T,R]; of the weight gradient [36,R,S]
  // Of the weight gradient: its factor beside the sources, that factor's transform, laid out as products of
  // results are, and itself.
  const float* gradient;  // [N,R,OH,OW]
  float* gradients;
  float* grad_weight;  // [R,S,3,3], contiguous
  Activation activation;
  int32_t batch, source_channels, result_channels;
  int32_t height, width, result_height, result_width;
  int32_t pad_h, pad_w;  // the first tile begins at -pad; they may be negative
  bool channels_last, transposed;

  int64_t tiles() const {
    return int64_t{batch} * ((int64_t{result_height} + 3) / 4) * ((int64_t{result_width} + 3) / 4);
  }
};

// Each launches on `stream`; nothing is empty, and tiles times channels are below kMaxIndex32. The first and
// the last are needed once for several batches.
cudaError_t launch_winograd_filters(const Conv2dWinogradParams& params, cudaStream_t stream);
cudaError_t launch_winograd_sources(const Conv2dWinogradParams& params, cudaStream_t stream);
// A tile with results that are not finite or nearly overflow is computed anew without the transforms.
cudaError_t launch_winograd_results(const Conv2dWinogradParams& params, cudaStream_t stream);
cudaError_t launch_winograd_gradients(const Conv2dWinogradParams& params, cudaStream_t stream);
// Of all batches together, with their products added up. A filter that is not finite or nearly overflows is
// computed anew.
cudaError_t launch_winograd_weight(const Conv2dWinogradParams& params, cudaStream_t stream);

}  // namespace d2lfast::cuda
