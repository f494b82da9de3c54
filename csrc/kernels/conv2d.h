#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// Direct convolution on flat grids, without an im2col buffer.
//
// The source planes of a band of output rows are copied into zero-padded planes in which the elements
// that one kernel tap meets lie side by side: stride s splits a plane into s x s sub-planes ("source
// phases"). In such a grid a tap is a constant offset, an output row follows the one before it at a
// distance of `grid_width`, and the vectors run over all rows of a band without a break. The columns
// beyond an output row are computed and dropped.
//
// The data gradient is the same computation: its source is the output gradient, and each residue of
// the input position modulo the stride is a phase of the result with the kernel taps that reach it.

struct Strides4 {
  int64_t n, c, h, w;
};

// Planes [N,G*C,H,W] to be copied into grids. `activated`, if not null, has the logical shape of `data`;
// the elements are then gradient * activation'(activated).
struct Conv2dSource {
  const void* data;
  Strides4 strides;
  const void* activated;
  Strides4 activated_strides;
  Activation activation;
  int64_t channels;  // C, of one group
  int64_t height, width;
  int64_t pad_top, pad_left;  // grid row 0 of phase 0 is source row -pad_top
  int64_t step_h, step_w;
  int64_t phases;            // source phases in use, at most step_h * step_w
  const int64_t* phase_row;  // [phases] first source row of a phase, relative to -pad_top
  const int64_t* phase_col;  // [phases]
  int64_t grid_rows;         // rows of a phase for a full band
  int64_t grid_width;
  int64_t phase_stride;    // elements between the phases of one plane
  int64_t channel_stride;  // elements between planes; slack at their end included
};

// The part of the result that one set of taps produces.
struct Conv2dPhase {
  int64_t row, col;            // first result element
  int64_t row_step, col_step;  // distance of neighbours in the result
  int64_t rows, cols;          // extent
  int64_t taps;
  const int64_t* tap_offset;  // [taps] offsets into a plane's grid
  const int64_t* tap_weight;  // [taps] offsets into a weight's KH x KW part
  void* packed;               // [blocks][C][taps][tile] accumulator type, of group 0
  int64_t packed_group;       // elements between groups
};

struct Conv2dParams {
  int64_t batch, groups;
  Conv2dSource source;
  const void* weight;                    // element (group, m, c, tap)
  int64_t weight_group;                  // elements between groups
  int64_t weight_result, weight_source;  // elements between result and source channels
  const void* bias;                      // [G*M] or null, of the tensors' dtype
  const void* residual;                  // null, or laid out as the result: added before the activation
  Activation activation;
  void* result;  // [N,G*M,...], written once
  Strides4 result_strides;
  int64_t result_channels;  // M, of one group
  int64_t phases;
  const Conv2dPhase* phase;
  int64_t tile;       // channels of a register tile
  int64_t band_rows;  // phase rows of a work item
  int64_t bands;
};

// Weight gradient: dot products of the output gradient's planes with shifted source planes, over a range
// of images. The results are of accumulator type and added to: `partial_bias` [G*M] and `partial`, which is
// [G,M,C*taps] for dot products and [G,C*taps,partial_width] for outer products.
struct Conv2dWeightParams {
  int64_t groups;
  Conv2dSource source;
  Conv2dSource gradient;  // step 1, no padding, grid_width of `source`
  int64_t band_rows, bands;
  int64_t taps;
  const int64_t* tap_offset;
  int64_t vectors;        // length of a band's dot product, in vectors
  int64_t outer_vectors;  // vectors of gradients in an outer product's tile; 0: dot products
  int64_t partial_width;  // M, rounded up to whole tiles
};

struct Conv2dKernels {
  int64_t lanes[kNumDTypes];                       // of an accumulator vector
  int64_t (*tile)(DType dtype, int64_t channels);  // register tile for M result channels
  int64_t (*tile_columns)(DType dtype, int64_t tile);
  // Kind of the weight gradient for M gradient planes, C*taps products and the pixels of a band.
  int64_t (*outer_vectors)(DType dtype, int64_t channels, int64_t products, int64_t pixels);
  // Packs the weights of one group of one phase.
  void (*pack[kNumDTypes])(const Conv2dParams& params, int64_t phase, int64_t group);
  // One work item. `grid`: source.channels * channel_stride accumulators. `sums`: tile rows of
  // `sums_stride` accumulators. Neither needs to be initialised.
  void (*band[kNumDTypes])(const Conv2dParams& params, int64_t image, int64_t group, int64_t band, void* grid,
                           void* sums, int64_t sums_stride);
  // Images [begin, end) of one group. `grid` holds the source's planes, the gradient's, and for outer
  // products the pixels of one tile's planes.
  void (*weight[kNumDTypes])(const Conv2dWeightParams& params, int64_t begin, int64_t end, int64_t group,
                             void* grid, void* partial, void* partial_bias);
};

}  // namespace d2lfast
