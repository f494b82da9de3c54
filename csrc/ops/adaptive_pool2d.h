#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/pool2d.h"
#include "layout.h"

namespace d2lfast::ops {

// Checks as torch does; the batched image.
inline at::Tensor check_adaptive(const char* op, const at::Tensor& input, at::IntArrayRef output_size,
                                 bool checks_channels) {
  TORCH_CHECK(output_size.size() == 2, op, ": output_size must be 2");
  TORCH_CHECK(output_size[0] >= 0 && output_size[1] >= 0, op,
              ": elements of output_size must be greater than or equal to 0 but received {", output_size[0],
              ", ", output_size[1], "}");
  TORCH_CHECK(input.dim() == 3 || input.dim() == 4, op, ": Expected 3D or 4D tensor, but got ",
              input.sizes());
  // torch's maximum refuses empty channels of a batch too, its mean does not.
  for (int64_t i = checks_channels ? 1 : input.dim() - 2; i < input.dim(); ++i) {
    TORCH_CHECK(input.size(i) > 0, op,
                ": Expected input to have non-zero size for non-batch dimensions, but input has sizes ",
                input.sizes(), " with dimension ", i, " being empty");
  }
  return batched(input);
}

// Dense tensors of the given layout, [N,C,H,W] and [N,C,OH,OW]: source and result, backward the other way
// round.
inline AdaptivePool2dParams adaptive_params(const at::Tensor& source, const at::Tensor& result,
                                            int64_t* indices, bool forward, bool channels_last) {
  const at::Tensor &image = forward ? source : result, &pooled = forward ? result : source;
  return {source.const_data_ptr(),
          result.mutable_data_ptr(),
          indices,
          image.size(0),
          image.size(1),
          image.size(2),
          image.size(3),
          pooled.size(2),
          pooled.size(3),
          channels_last};
}

}  // namespace d2lfast::ops
