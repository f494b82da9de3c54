#pragma once

#include <ATen/core/Tensor.h>

namespace d2lfast::ops {

// torch's numbers of the reductions.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

inline void check_cross_entropy(const at::Tensor& input, const at::Tensor& target, int64_t reduction) {
  TORCH_CHECK(reduction >= kNone && reduction <= kSum, "unknown reduction ", reduction);
  TORCH_CHECK(input.dim() >= 2 && target.dim() == input.dim() - 1 &&
                  target.sym_size(0) == input.sym_size(0) &&
                  target.sym_sizes().slice(1) == input.sym_sizes().slice(2),
              "expected logits [N,C,...] and class numbers [N,...], got ", input.sym_sizes(), " and ",
              target.sym_sizes());
  TORCH_CHECK(target.scalar_type() == at::kLong, "class numbers must be int64, got ",
              toString(target.scalar_type()));
  TORCH_CHECK(input.sym_size(1) > 0, "there must be at least one class");
  TORCH_CHECK(input.device() == target.device(),
              "Expected all tensors to be on the same device, but got logits on ", input.device(),
              " and class numbers on ", target.device());
}

}  // namespace d2lfast::ops
