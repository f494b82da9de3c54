#include "conv2d_algorithm.h"

#include <c10/util/Exception.h>

namespace d2lfast::ops {

namespace {

// What the rules below look at.
struct Traits {
  int64_t group_channels;
  bool dense, depthwise, strided;
  int64_t pixels;  // of a result plane
};

Traits traits_of(const Conv2dShape& s) {
  return {s.channels / s.groups, s.groups == 1, s.groups > 1 && s.groups == s.channels,
          s.stride[0] > 1 || s.stride[1] > 1, s.result_height() * s.result_width()};
}

// Where the direct kernels measured faster than oneDNN in float32 on AVX-512. oneDNN is near the machine's
// peak for dense layers of many channels; it falls short for few channels, groups in NCHW, and the input
// gradient of strided layers.
bool direct_float32(const Conv2dShape& s, Conv2dPass pass) {
  const Traits t = traits_of(s);
  switch (pass) {
    case Conv2dPass::kForward:
      if (s.channels_last) return s.channels == 1 && s.result_channels <= 8;
      return t.dense ? t.group_channels <= 4 || (t.strided && s.kernel_h * s.kernel_w == 1) : !t.strided;
    case Conv2dPass::kGradInput:
      if (s.channels_last) return t.dense && t.group_channels <= 8;
      return t.dense ? t.strided || t.group_channels <= 8 : !t.strided;
    default:
      if (s.channels_last) {
        if (!t.dense) return !t.depthwise && !t.strided;
        if (t.group_channels <= 4) return t.strided || (t.group_channels == 1 && s.result_channels <= 8);
        return t.pixels >= 784;
      }
      return !t.strided && (!t.dense || t.group_channels <= 8);
  }
}

// bfloat16: oneDNN multiplies pairs with AVX512-BF16, at twice the rate of the direct kernels.
bool direct_bfloat16(const Conv2dShape& s, Conv2dPass pass) {
  const Traits t = traits_of(s);
  switch (pass) {
    case Conv2dPass::kForward:
      if (s.channels_last) return s.channels == 1 && !t.strided;
      return t.dense ? t.group_channels == 1 : !t.strided;
    case Conv2dPass::kGradInput:
      if (s.channels_last) return t.dense && t.group_channels <= 8;
      return t.dense ? t.group_channels <= 4 : !t.strided;
    default:
      if (s.channels_last) return !t.dense && !t.depthwise && t.group_channels <= 4 && !t.strided;
      return !t.dense || (t.group_channels == 1 && !t.strided);
  }
}

Conv2dAlgorithm from_table(const Conv2dShape& s, Conv2dPass pass) {
  bool direct = false;
  if (s.cuda) {
    direct = false;
  } else if (s.dtype == DType::kFloat32) {
    direct = direct_float32(s, pass);
  } else if (s.dtype == DType::kBFloat16) {
    direct = direct_bfloat16(s, pass);
  } else {
    // torch has no oneDNN path for float64, and none for float16 without AVX512-FP16. Its GEMM wins the
    // weight gradient of many channels on small planes.
    const Traits t = traits_of(s);
    direct = s.dtype == DType::kFloat16 || pass != Conv2dPass::kGradWeight || t.group_channels < 256 ||
             t.pixels > 196;
  }
  return direct ? Conv2dAlgorithm::kDirect : Conv2dAlgorithm::kAten;
}

}  // namespace

Conv2dAlgorithm choose_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                        std::string_view requested) {
  if (requested == "auto") return from_table(shape, pass);
  if (requested == "direct") return Conv2dAlgorithm::kDirect;
  if (requested == "aten") return Conv2dAlgorithm::kAten;
  TORCH_CHECK_VALUE(false, "algorithm must be one of 'auto', 'direct', 'aten', but got '", requested, "'");
}

const char* conv2d_algorithm_name(Conv2dAlgorithm algorithm) {
  return algorithm == Conv2dAlgorithm::kDirect ? "direct" : "aten";
}

}  // namespace d2lfast::ops
