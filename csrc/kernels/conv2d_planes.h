#pragma once

#include <cstdint>

#include "conv2d.h"

namespace d2lfast {

// Grouped and depthwise convolution of planes (NCHW), with the vectors along the columns of a result row.
//
// A register tile is some result channels x rows x vectors. Source rows are read in place: taps above and
// below the image are skipped, the columns beside it are masked. Only elements that need a conversion, the
// derivative of an activation, or a column step are copied, one group's planes at a time; a step of s
// columns splits a row into s parts, in which a tap's columns are adjacent.

struct PlanesTap {
  int64_t column;  // of the part, for result column 0
  int64_t width;   // of the part
  int64_t start;   // of the part in the source row
};

struct Conv2dPlanesParams {
  int64_t groups, source_channels, result_channels;  // channels of one group
  const void* source;                                // [N,G*C,H,W], contiguous
  const void* activated;  // null, or the forward output: elements are source * activation'(activated)
  Activation source_activation;
  int64_t height, width, part_width;  // part_width * step columns make a copied row
  int64_t step;                       // of rows and columns
  bool copied;                        // the planes are read from the copy
  int64_t taps_h, taps_w;
  const int64_t* tap_row;  // source row of result row 0
  const PlanesTap* tap;    // [taps_w]
  const void* weight;      // [G][M][C][taps_h][taps_w], accumulator type
  const void* bias;        // [G*M] accumulator type, or null
  const void* residual;    // null, or laid out as the result: added before the activation
  Activation activation;
  void* result;  // [N,G*M,rows,cols], contiguous
  int64_t rows, cols;
  bool stream;  // planes of the result are whole vectors, to be stored past the caches; M == 1
};

// Weight gradient of depthwise layers of step 1: square windows, source and gradient as above.
struct Conv2dPlanesWeightParams {
  Conv2dPlanesParams forward;
  const void* gradient;  // [N,C,rows,cols], contiguous
  const void* activated;
  Activation activation;
};

struct Conv2dPlanesKernels {
  int64_t lanes[kNumDTypes];
  // Rows [begin, end) of one group of one image, all of them to be stored past the caches. `scratch`:
  // rows * cols accumulators for that, and C * H * step * part_width where the planes are copied.
  void (*group[kNumDTypes])(const Conv2dPlanesParams& params, int64_t image, int64_t group, int64_t begin,
                            int64_t end, void* scratch);
  // One plane; adds to `partial`, [taps_h * taps_w] and then the sum of the gradient. `scratch`: a plane of
  // the gradient, left there where it is activated or of 16 bits, and one of the source.
  void (*weight[kNumDTypes])(const Conv2dPlanesWeightParams& params, int64_t image, int64_t channel,
                             void* partial, void* scratch);
  bool (*knows_window)(int64_t taps_h, int64_t taps_w);  // of the weight gradient
};

}  // namespace d2lfast
