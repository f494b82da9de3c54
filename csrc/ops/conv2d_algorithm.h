#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../kernels/dtype.h"
#include "visible.h"

namespace d2lfast::ops {

// kBatch: vectors along the batch, for many small images. kWinograd: F(4x4, 3x3), group by group; larger or
// strided dense kernels cut into pieces of 3x3; kWinograd2x2: F(2x2, 3x3). kGemm: matrix products for 1x1
// kernels. For few channels per group on the CPU: vectors along channels (kChannels) or along columns of
// planes read in place (kPlanes). kDirect: our kernels on flat grids, on CUDA for few channels per group.
// kImplicitGemm: CUDA, dense. kAten: torch's own convolution (oneDNN on the CPU).
enum class Conv2dAlgorithm {
  kBatch,
  kWinograd,
  kWinograd2x2,
  kGemm,
  kChannels,
  kPlanes,
  kDirect,
  kImplicitGemm,
  kAten
};
enum class Conv2dPass { kForward, kGradInput, kGradWeight };

struct Conv2dShape {
  int64_t batch, channels, height, width;
  int64_t result_channels, kernel_h, kernel_w;
  std::array<int64_t, 2> stride, padding, dilation;
  int64_t groups;
  DType dtype;
  bool channels_last;
  int64_t cuda;       // 0 on the CPU, else a number of its own for each model of GPU
  bool tf32 = false;  // whether products of float32 may be rounded to it on the GPU

  int64_t result_height() const {
    return (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) / stride[0] + 1;
  }
  int64_t result_width() const {
    return (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) / stride[1] + 1;
  }
  // Height and width of the planes that a pass computes or, for the weight's gradient, sums over.
  std::array<int64_t, 2> plane(Conv2dPass pass) const {
    if (pass == Conv2dPass::kGradInput) return {height, width};
    return {result_height(), result_width()};
  }
  bool is_3x3() const { return kernel_h == 3 && kernel_w == 3 && stride[0] == 1 && stride[1] == 1; }
};

// "auto" asks what was measured (conv2d_tuning.h) or else the table. A name forces that algorithm where it
// can compute the pass and asks the table elsewhere. "forward/grad_input/grad_weight" names one for each
// pass. Raises ValueError for any other name.
D2LFAST_VISIBLE Conv2dAlgorithm choose_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                                        std::string_view requested);

// What `requested` says for one pass.
std::string_view requested_conv2d_algorithm(std::string_view requested, Conv2dPass pass);

// Whether an algorithm computes a pass and is allowed; `aten` always is.
bool conv2d_is_candidate(Conv2dAlgorithm algorithm, const Conv2dShape& shape, Conv2dPass pass);

// All of them, in the table's order.
std::vector<Conv2dAlgorithm> conv2d_candidates(const Conv2dShape& shape, Conv2dPass pass);

// Whether the table may choose Winograd's algorithm, whose rounding errors are larger. True at first.
bool winograd_allowed();
void allow_winograd(bool allowed);

const char* conv2d_algorithm_name(Conv2dAlgorithm algorithm);
std::optional<Conv2dAlgorithm> conv2d_algorithm_named(std::string_view name);

// The names in the table's order.
std::vector<std::string> conv2d_algorithm_names();

}  // namespace d2lfast::ops
