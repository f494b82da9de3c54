#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// Convolution of small planes with the vectors along the batch: lane i belongs to image i of a group of
// `lanes` images, whose elements lie interleaved, [elements of an image][lanes]. Whatever the width of a
// plane and the number of its channels, no lane is wasted, and taps outside of the image are not computed.
// Dense layers, step 1. float32 arithmetic in every dtype.

// Interleaved planes; strides in floats.
struct BatchPlanes {
  int64_t channels, height, width;
  int64_t c, h, w;
};

// result[m][y][x] = sum over c, i, j of weight[m][c][i][j] * source[c][y + i - pad_h][x + j - pad_w].
struct Conv2dBatchParams {
  BatchPlanes source, result;
  int64_t kernel_h, kernel_w;
  int64_t pad_h, pad_w;  // negative: the source is cropped
  const float* weight;   // [M][C][KH][KW]
  const float* bias;     // [M] or null
  Activation activation;
};

struct Conv2dBatchKernels {
  int64_t lanes;
  // The width of a kernel that the tiles know, and the least width of a result.
  bool (*computes)(int64_t kernel_w, int64_t result_w);
  // `images` images of `size` elements, at most `lanes` of them, the others zero. `activated`: null or the
  // forward output, of the same layout; the elements are then data * activation'(activated).
  void (*interleave[kNumDTypes])(const void* data, const void* activated, Activation activation, int64_t size,
                                 int64_t images, float* interleaved);
  void (*separate[kNumDTypes])(const float* interleaved, int64_t size, int64_t images, void* data);
  // All of `result` [elements][lanes]. `residual`: null, or as the result, added before the activation.
  void (*result)(const Conv2dBatchParams& params, const float* source, const float* residual, float* result);
  // With `gradient` laid out as params.result: adds the gradients, lane by lane, to `weight`
  // [M][C][KH][KW][lanes] and `bias` [M][lanes], either of which may be null.
  void (*weight)(const Conv2dBatchParams& params, const float* source, const float* gradient, float* weight,
                 float* bias);
  // The sum of the lanes of `count` vectors, and of `chunks` of them at a distance of `stride` floats.
  void (*sum)(const float* sums, int64_t chunks, int64_t stride, int64_t count, float* to);
};

}  // namespace d2lfast
