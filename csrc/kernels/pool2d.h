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
};

// Output row i covers the input rows [i * H / OH, ceil((i + 1) * H / OH)), columns alike.
struct AdaptivePool2dParams {
  const void* source;
  void* result;
  int64_t* indices;  // adaptive max only, [N,C,OH,OW]: written by forward, read by backward
  int64_t n, c, h, w, oh, ow;
  bool channels_last;
};

// Each function works on the items [begin, end): planes [N*C] of contiguous tensors; of channels_last ones
// the result's rows [N*OH] or [N*H], or images [N] for adaptive_max_backward. `scratch` holds as many
// floats (doubles for float64) as the matching *_scratch says and need not be initialised; *_pixels_scratch
// is for channels_last gradients, the other channels_last passes need none.
struct Pool2dKernels {
  void (*max_forward[kNumDTypes])(const MaxPool2dParams&, int64_t begin, int64_t end, void* scratch);
  void (*max_backward[kNumDTypes])(const MaxPool2dBackwardParams&, int64_t begin, int64_t end, void* scratch);
  void (*avg_forward[kNumDTypes])(const AvgPool2dParams&, int64_t begin, int64_t end, void* scratch);
  void (*avg_backward[kNumDTypes])(const AvgPool2dParams&, int64_t begin, int64_t end, void* scratch);
  void (*adaptive_avg_forward[kNumDTypes])(const AdaptivePool2dParams&, int64_t begin, int64_t end,
                                           void* scratch);
  void (*adaptive_avg_backward[kNumDTypes])(const AdaptivePool2dParams&, int64_t begin, int64_t end,
                                            void* scratch);
  void (*adaptive_max_forward[kNumDTypes])(const AdaptivePool2dParams&, int64_t begin, int64_t end,
                                           void* scratch);
  void (*adaptive_max_backward[kNumDTypes])(const AdaptivePool2dParams&, int64_t begin, int64_t end,
                                            void* scratch);
  int64_t (*forward_scratch)(int64_t h, int64_t ow, const Window2d& window);
  int64_t (*backward_scratch)(int64_t w, int64_t oh, int64_t ow, const Window2d& window);
  int64_t (*pixels_scratch)(int64_t w, int64_t ow, const Window2d& window);
  int64_t (*adaptive_scratch)(int64_t w, int64_t oh);
  int64_t (*adaptive_pixels_scratch)(int64_t h, int64_t w, int64_t oh, int64_t ow);
};

}  // namespace d2lfast
