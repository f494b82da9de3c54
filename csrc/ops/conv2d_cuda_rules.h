#pragma once

#include <algorithm>

#include "conv2d_algorithm.h"

// What the CUDA algorithms compute, and where the table takes them. Nothing has been measured on a GPU yet:
// the rules are the cases in which cuDNN is known to fall short (PyTorch issues 70954, 73764, 75747) and
// layers so small that a launch is most of their time.
namespace d2lfast::ops {

inline bool cuda_direct_computes(const Conv2dShape& s) {
  constexpr int64_t kMaxTaps = 256, kMaxImage = int64_t{1} << 30;
  if (!s.cuda || s.kernel_h * s.kernel_w > kMaxTaps) return false;
  const auto fits = [&](int64_t channels, int64_t height, int64_t width) {
    // Counted in 32 bits: 4 pixels of a row by a channel (channels_last), and blocks of 256 pixels (NCHW).
    const int64_t items = s.channels_last ? height * ((width + 3) / 4) : (height * width + 255) / 256;
    return channels * height * width <= kMaxImage && s.batch * channels * items <= kMaxImage;
  };
  return fits(s.channels, s.height, s.width) && fits(s.result_channels, s.result_height(), s.result_width());
}

inline bool cuda_direct_wins(const Conv2dShape& s, Conv2dPass pass) {
  const int64_t channels = s.channels / s.groups, results = s.result_channels / s.groups;
  const bool halves = s.dtype == DType::kBFloat16 || s.dtype == DType::kFloat16;
  if (pass == Conv2dPass::kGradWeight) {
    // On tensor cores, as long as the windows of a few neighbouring pixels fit into shared memory.
    const int64_t rows = (s.kernel_h - 1) * s.dilation[0] + 1;
    const int64_t columns = (s.kernel_w - 1) * s.dilation[1] + 1 + 8 * s.stride[1];
    const bool products = halves && std::max(rows, columns) <= 1024 && rows * columns <= 1024;
    if (s.groups > 1) return std::max(channels, results) <= (products ? 32 : 8);
    return channels * results <= 128 || (products && channels <= 8 && results <= 128);
  }
  // On tensor cores, as long as a group's weights fit into shared memory; first layers' are shared out, of
  // which cuDNN multiplies 8 channels of 16 bits, but 4 of floats.
  const bool first = pass == Conv2dPass::kForward && s.groups == 1 && channels <= 4;
  const int64_t most_weights = int64_t{1} << (s.tf32 ? 14 : first ? 16 : 15);
  const bool products = (halves || s.tf32) && channels * results * s.kernel_h * s.kernel_w <= most_weights;
  if (s.groups > 1) return std::max(channels, results) <= (products ? 32 : 8);
  // A dense layer's data gradient has few channels as rows of fragments, or a thread's, for many products.
  if (pass == Conv2dPass::kGradInput && results > 32) return false;
  // Else on the float units, 35 TFLOP/s by computation, where cuDNN's tensor cores have 200 in TF32: unless
  // the result's bytes take as long, or a few microseconds are all.
  const int64_t terms = channels * s.kernel_h * s.kernel_w;
  const double flops = 2.0 * static_cast<double>(s.batch * s.result_height() * s.result_width()) *
                       static_cast<double>(terms * results);
  if (s.tf32 && !products && terms > 32 && flops > 2e8) return false;
  return channels <= 8 && results <= (products ? 128 : 64);
}

// F(4x4, 3x3) in float32. An image's tiles are numbered in 32 bits.
inline bool cuda_winograd_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (!s.cuda || s.groups != 1 || s.dtype != DType::kFloat32) return false;
  if (!s.is_3x3() || s.dilation[0] != 1 || s.dilation[1] != 1) return false;
  const auto [height, width] = s.plane(pass);
  constexpr int64_t kMost = int64_t{1} << 28;
  return ((height + 3) / 4) * ((width + 3) / 4) * std::max(s.channels, s.result_channels) <= kMost &&
         s.channels * s.result_channels <= kMost;
}

// Dense layers whose channels fill 16-byte vectors.
inline bool cuda_implicit_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (!s.cuda || s.groups != 1 || s.dtype == DType::kFloat64) return false;
  constexpr int64_t kMaxImage = int64_t{1} << 30;
  const int64_t lanes = s.dtype == DType::kFloat32 ? 4 : 8;
  const int64_t pixels = s.batch * s.result_height() * s.result_width();
  if (s.channels * s.height * s.width > kMaxImage ||
      s.result_channels * s.result_height() * s.result_width() > kMaxImage) {
    return false;
  }
  switch (pass) {
    case Conv2dPass::kForward:
      return s.channels % lanes == 0;
    case Conv2dPass::kGradInput:
      return s.result_channels % lanes == 0;
    default:
      return s.channels % lanes == 0 && s.result_channels % lanes == 0 && pixels <= kMaxImage;
  }
}

}  // namespace d2lfast::ops
