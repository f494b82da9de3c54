#pragma once

#include <cstdint>

#include "conv2d.h"

namespace d2lfast {

// Convolution with the vectors along the result's channels: grouped and depthwise layers in channels_last,
// and layers of few input channels (stems) in both layouts.
//
// A block is one vector of result channels. Where a block covers whole groups, a source pixel's channels
// are loaded once and permuted so that each lane meets channel c of its own group; where a block lies
// inside one group, the source channel is broadcast. Nothing is copied: taps outside of the image are
// skipped row by row, and read zeros column by column.

enum class ChannelsMode : int { kVertical = 0, kPermuted = 1, kBroadcast = 2 };

struct ChannelsBlock {
  int64_t channel;  // first result channel; blocks may overlap, in which case they compute equal values
  int64_t source;   // source channel of the vector that is loaded, or the first channel of the group
};

// Source elements [N,G*C,H,W] with any strides; the channels are adjacent where they are loaded as vectors
// or go through an activation.
struct ChannelsSource {
  const void* data;
  Strides4 strides;
  int64_t height, width;
  const void* activated;  // if not null, the forward output: elements are data * activation'(activated)
  Strides4 activated_strides;
  Activation activation;
};

// The part of the result that one set of taps produces: pixels (row + i * row_step, col + j * col_step),
// which meet the source at (i * step_h + tap_row[k], j * step_w + tap_col[l]).
struct ChannelsPhase {
  int64_t row, col, row_step, col_step;
  int64_t rows, cols;
  int64_t step_h, step_w;
  int64_t taps_h, taps_w;
  const int64_t* tap_row;
  const int64_t* tap_col;
  const int64_t* kernel_row;  // positions in the weight
  const int64_t* kernel_col;
  void* packed;  // [blocks][taps_h][C][taps_w][lanes] accumulator type
};

struct Conv2dChannelsParams {
  ChannelsMode mode;
  int64_t groups;
  ChannelsSource source;
  int64_t source_channels;  // C, of one group
  int64_t result_channels;  // of all groups
  const void* weight;       // element (result channel m of group g, c, y, x)
  int64_t weight_group, weight_result, weight_source, weight_h, weight_w;
  const void* bias;      // [result_channels] or null, of accumulator type
  const void* residual;  // null, or laid out as the result: added before the activation
  Activation activation;
  void* result;
  Strides4 result_strides;  // s.c == 1, or s.w == 1 where tiles are transposed as they are stored
  int64_t blocks;
  const ChannelsBlock* block;
  const int32_t* permutation;  // kPermuted: [blocks][C][lanes] lanes of the vector that is loaded
  const void* zeros;           // of accumulator type, as many as the source's channels
  int64_t phases;
  const ChannelsPhase* phase;
  bool stream;  // every block of every result pixel is aligned to a vector; to be stored past the caches
};

// The source rows that rows [begin, end) of every phase meet.
struct ChannelsRows {
  int64_t top, bottom;
};
inline ChannelsRows channels_source_rows(const Conv2dChannelsParams& p, int64_t begin, int64_t end) {
  ChannelsRows met{p.source.height, 0};
  for (int64_t f = 0; f < p.phases; ++f) {
    const ChannelsPhase& phase = p.phase[f];
    const int64_t last = (end < phase.rows ? end : phase.rows) - 1;
    for (int64_t k = 0; k < phase.taps_h && begin <= last; ++k) {
      const int64_t top = begin * phase.step_h + phase.tap_row[k];
      const int64_t bottom = last * phase.step_h + phase.tap_row[k] + 1;
      if (top < met.top) met.top = top;
      if (bottom > met.bottom) met.bottom = bottom;
    }
  }
  if (met.top < 0) met.top = 0;
  if (met.bottom > p.source.height) met.bottom = p.source.height;
  return met;
}

// Gradients of the weight and the bias over result rows. The sums are of accumulator type and added to.
struct Conv2dChannelsWeightParams {
  Conv2dChannelsParams forward;  // phase 0, blocks, source: of the forward pass
  const void* gradient;          // [N,M,H',W'] in channels_last
  Strides4 gradient_strides;
  const void* activated;  // the forward output, of the gradient's strides, or null
  Activation activation;
  // Null, or rows of an image's gradient from `wide_top` on, [rows][W'][M], of accumulator type and through
  // the activation's derivative: what `band` has left in its scratch.
  const void* wide;
  int64_t wide_top;
};

struct Conv2dChannelsKernels {
  int64_t lanes[kNumDTypes];
  int64_t most_taps;  // taps_h * taps_w at most
  void (*pack[kNumDTypes])(const Conv2dChannelsParams& params, int64_t phase, int64_t block);
  // Rows [begin, end) of all phases of one image. `scratch`: where the source is activated or of 16 bits, the
  // rows of it that these meet, of accumulator type; they are left there.
  void (*band[kNumDTypes])(const Conv2dChannelsParams& params, int64_t image, int64_t begin, int64_t end,
                           void* scratch);
};

struct Conv2dChannelsWeightKernels {
  // Result rows [begin, end) of one image. `partial`: like `packed`, or null; `bias`: [blocks][lanes] or
  // null. `scratch`: a row of the gradient where it is activated or of 16 bits, and where it is of 16 bits as
  // many rows of the source as a result row spans, of accumulator type.
  void (*weight[kNumDTypes])(const Conv2dChannelsWeightParams& params, int64_t image, int64_t begin,
                             int64_t end, void* partial, void* bias, void* scratch);
};

}  // namespace d2lfast
