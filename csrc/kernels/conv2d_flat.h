#pragma once

#include <cstdint>

#include "conv2d.h"

namespace d2lfast {

// Grouped convolution of planes (NCHW) whose rows are as long as the result's, once a step of s has split
// them into s x s parts: a tap is then one distance from every result position, whatever its row, and
// vectors run across the ends of rows. A mask for each vector and tap blanks what lies outside of the image.

struct Conv2dFlatParams {
  int64_t groups, source_channels, result_channels;  // channels of one group
  const void* source;                                // [N,G*C,H,W], contiguous
  const void* activated;  // null, or the forward output: elements are source * activation'(activated)
  Activation source_activation;
  int64_t height, width;
  int64_t step;                   // of rows and columns
  bool copied;                    // the planes are read from a copy, split into parts
  int64_t row_stride, part_size;  // of the copy
  int64_t channel_stride;         // of the planes that are read
  int64_t taps, taps_w;           // of a window, of one row of it
  const int64_t* offset;          // [taps] from a result position to the source's
  const uint16_t* mask;           // [vectors + kFlatSpareVectors][taps], bit i of lane i
  const uint8_t* uniform;         // [vectors + kFlatSpareVectors], whether the rows of a window share masks
  const void* weight;             // [G][C][taps][M], accumulator type
  const void* bias;               // [G*M] accumulator type, or null
  const void* residual;           // null, or laid out as the result: added before the activation
  Activation activation;
  void* result;  // [N,G*M,size], contiguous
  int64_t size;
  bool stream;  // vectors of the result are aligned, to be stored past the caches
};
constexpr int64_t kFlatSpareVectors = 8;

struct Conv2dFlatWeightParams {
  Conv2dFlatParams forward;  // geometry and source of the forward pass
  const void* gradient;      // [N,G*M,size], contiguous
  const void* activated;     // the forward output or null
  Activation activation;
};

// The data gradient of a step of s: each of s x s phases is a pass of its own over the same source, and gives
// every s-th row and column of the result.
struct Conv2dFlatPhases {
  int64_t step;
  const Conv2dFlatParams* phase;  // [step][step], of equal sources, `result` and `stream` unused
  int64_t phase_width;            // columns of a phase's rows
  void* result;                   // [N,G*M,height,width], contiguous
  int64_t height, width;
};

struct Conv2dFlatKernels {
  int64_t lanes[kNumDTypes];
  // One group of one image. `scratch`: C * channel_stride accumulators where the planes are copied.
  void (*group[kNumDTypes])(const Conv2dFlatParams& params, int64_t image, int64_t group, void* scratch);
  // One group of one image. `scratch`: step * step * M * size accumulators, of the largest phase, a vector
  // and those of a copy.
  void (*phases[kNumDTypes])(const Conv2dFlatPhases& params, int64_t image, int64_t group, void* scratch);
  // The gradient of one group's weight, [M][C][taps], and bias, [M] or null, over images [begin, end).
  // `scratch`: M * (C * taps + 1) * lanes + M * size accumulators and those of a copy.
  void (*weight[kNumDTypes])(const Conv2dFlatWeightParams& params, int64_t begin, int64_t end, int64_t group,
                             void* weight, void* bias, void* scratch);
};

}  // namespace d2lfast
