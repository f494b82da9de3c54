#pragma once

#include <algorithm>

#include "conv2d_algorithm.h"

// What the CUDA algorithms compute, and where the table takes them. Nothing has been measured on a GPU yet:
// the rules are the cases in which cuDNN is known to fall short (PyTorch issues 70954, 73764, 75747) and
// layers so small that a launch is most of their time.
namespace d2lfast::ops {

inline bool cuda_direct_computes(const Conv2dShape& s) {
  constexpr int64_t kMaxTaps = 256, kMaxImage = int64_t{1} << 30;
  const int64_t source = s.channels * s.height * s.width;
  return s.cuda && s.kernel_h * s.kernel_w <= kMaxTaps && source <= kMaxImage &&
         s.result_channels * s.result_height() * s.result_width() <= kMaxImage;
}

inline bool cuda_direct_wins(const Conv2dShape& s, Conv2dPass pass) {
  const int64_t channels = s.channels / s.groups, results = s.result_channels / s.groups;
  if (s.groups > 1) return channels <= 8 && results <= 8;
  return pass == Conv2dPass::kGradWeight ? channels * results <= 128 : channels <= 8 && results <= 64;
}

// Tensor cores take 16-bit elements in vectors of 8 channels; the data gradient is a convolution of the
// gradient where the stride is 1.
inline bool cuda_implicit_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (!s.cuda || s.groups != 1 || (s.dtype != DType::kBFloat16 && s.dtype != DType::kFloat16)) return false;
  if (pass == Conv2dPass::kForward) return s.channels % 8 == 0;
  return pass == Conv2dPass::kGradInput && s.result_channels % 8 == 0 && s.stride[0] == 1 && s.stride[1] == 1;
}

}  // namespace d2lfast::ops
