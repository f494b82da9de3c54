#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// 1x1 convolutions of contiguous images [N,C,P], P pixels of a plane, as matrix products without a copy of
// the images: the pixels of all images are the columns.

struct GemmImages {
  const void* data;
  const void* activated;  // null, or of the same shape: the elements are data * f'(activated)
  Activation activation;
  int64_t batch, channels, pixels;
};

// result [N,M,P] = weight [M,C] x source, by columns.
struct Conv2dGemmParams {
  GemmImages source;
  const void* weight;  // element (m, c) at m * weight_result + c * weight_source
  int64_t weight_result, weight_source;
  int64_t weight_size;  // elements from the first on that may be read
  void* packed;         // [M*C] accumulators: the row blocks of the weight
  int64_t depth;        // channels of the source that are multiplied together
  const void* bias;
  const void* residual;  // null, or laid out as the result: added before the activation
  Activation activation;
  void* result;
  int64_t result_channels;
};

// gradient [M,C] = sum over the pixels of gradients [N,M,P] and sources [N,C,P].
struct Conv2dGemmWeightParams {
  GemmImages source, gradient;
  int64_t block;   // pixels, within an image, of one step of the sum
  int64_t panels;  // column panels of an item
};

// Images of as many panels are read in place, several at a time.
constexpr int64_t kGemmPanelsInPlace = 4;

struct Conv2dGemmKernels {
  int64_t columns[kNumDTypes];  // of a panel: two vectors
  int64_t rows;                 // of the largest register tile
  // Row blocks [begin, end) of ceil(M / rows).
  void (*pack[kNumDTypes])(const Conv2dGemmParams& params, int64_t begin, int64_t end);
  // Columns [begin, end) of the N*P: whole images or a run within one. The caller's next are [end, next_end).
  // scratch: (M + min(depth, C)) * (end - begin, in whole panels) accumulators.
  void (*product[kNumDTypes])(const Conv2dGemmParams& params, int64_t begin, int64_t end, int64_t next_end,
                              void* scratch);
  // Columns of the gradient from panel `panel` on, over the steps [begin, end) of N * ceil(P / block).
  // sums: [panels][M][columns]; bias_sums: null or [M]; both are overwritten.
  // scratch: panels * (block + lanes) * columns + M * (block + lanes) accumulators.
  void (*weight[kNumDTypes])(const Conv2dGemmWeightParams& params, int64_t panel, int64_t begin, int64_t end,
                             void* sums, void* bias_sums, void* scratch);
};

}  // namespace d2lfast
