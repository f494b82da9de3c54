#pragma once

#include <cstdint>

#include "dtype.h"

namespace d2lfast {

// A tensor is either contiguous [N,C,H,W] or channels_last [N,H,W,C]; `channels_last` holds for all tensors
// of a call. No pointer may alias another.

struct Window2d {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// A window's first maximum in row-major order wins; its last NaN, if there is one, beats every number.
struct MaxPool2dParams {
  const void* input;   // [N,C,H,W]
  void* output;        // [N,C,OH,OW], written once
  void* position;      // [N,C,OH,OW] of unsigned bytes or int32: kh * KW + kw of the winner; null: not wanted
  int position_bytes;  // 1 or 4
  int64_t n, c, h, w, oh, ow;
  Window2d window;
  bool channels_last;
};

struct MaxPool2dBackwardParams {
  const void* grad_output;  // [N,C,OH,OW]
  const void* position;     // [N,C,OH,OW]
  void* grad_input;         // [N,C,H,W], written once: each element gathers from the windows that cover it
  int position_bytes;
  int64_t n, c, h, w, oh, ow;
  Window2d window;
  bool channels_last;
  bool stream = false;  // channels_last: write past the caches
};

// Forward from `input` to `output`; backward from `output`'s gradient to `input`'s.
struct AvgPool2dParams {
  const void* source;  // forward [N,C,H,W], backward [N,C,OH,OW]
  void* result;        // forward [N,C,OH,OW], backward [N,C,H,W], written once
  int64_t n, c, h, w, oh, ow;
  Window2d window;  // dilation 1
  bool count_include_pad;
  int64_t divisor;  // 0: the window's size
  bool channels_last;
  bool stream = false;  // backward of channels_last: write past the caches
};

// Output row i covers the input rows [i * H / OH, ceil((i + 1) * H / OH)), columns alike.
struct AdaptivePool2dParams {
  const void* source;
  void* result;
  int64_t* indices;  // adaptive max only, [N,C,OH,OW]: written by forward, read by backward
  int64_t n, c, h, w, oh, ow;
  bool channels_last;
};

// Each kernel works on the items [begin, end): planes [N*C] of contiguous tensors; of channels_last ones the
// result's rows [N*OH] or [N*H], or images [N] for the gradient of the adaptive maximum. `scratch` holds as
// many floats (doubles for float64) as the function of that name says and need not be initialised; the
// gradient of the adaptive maximum wants a result's item. One table for each family and instruction set.
template <typename Params>
using Pool2dKernel = void (*)(const Params&, int64_t begin, int64_t end, void* scratch);

struct MaxPool2dKernels {
  Pool2dKernel<MaxPool2dParams> forward[kNumDTypes];
  int64_t (*scratch)(const MaxPool2dParams&);
};

struct MaxPool2dGradientKernels {
  Pool2dKernel<MaxPool2dBackwardParams> backward[kNumDTypes];
  int64_t (*scratch)(const MaxPool2dBackwardParams&);
};

struct AvgPool2dKernels {
  Pool2dKernel<AvgPool2dParams> forward[kNumDTypes], backward[kNumDTypes];
  int64_t (*forward_scratch)(const AvgPool2dParams&);
  int64_t (*backward_scratch)(const AvgPool2dParams&);
};

struct AdaptivePool2dKernels {
  Pool2dKernel<AdaptivePool2dParams> avg_forward[kNumDTypes], avg_backward[kNumDTypes];
  Pool2dKernel<AdaptivePool2dParams> max_forward[kNumDTypes], max_backward[kNumDTypes];
  int64_t (*scratch)(int64_t w, int64_t oh, int64_t ow);
  int64_t (*pixels_scratch)(int64_t h, int64_t w, int64_t oh, int64_t ow);
};

}  // namespace d2lfast
