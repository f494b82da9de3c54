#pragma once

#include <ATen/core/Tensor.h>

#include "visible.h"

namespace d2lfast::ops {

// Transformed filters of weights that inference meets again: opt-in, in all threads, at most kMostKeptBytes,
// the least recently used going first. What is kept belongs to a tensor, its storage and its version: it is
// not used after any write that the version counter sees, and is freed by the next convolution after the
// tensor has died. Writes that the counter does not see (through `.data` or numpy) are the caller's to avoid.
constexpr int64_t kMostKeptBytes = int64_t{512} << 20;

D2LFAST_VISIBLE bool filters_are_kept();
D2LFAST_VISIBLE void keep_filters_of_inference(bool keep);  // false: frees them

// While it lives, convolutions of this thread are inference if `inference` is true.
class InferenceGuard {
 public:
  explicit InferenceGuard(bool inference);
  InferenceGuard(const InferenceGuard&) = delete;
  InferenceGuard& operator=(const InferenceGuard&) = delete;
  ~InferenceGuard();

 private:
  bool before_;
};

// Whether filters of this weight are worth keeping: in inference, of a tensor that has a version counter and
// is held by others than this call.
bool keeps_filters(const at::Tensor& weight);

// The filters that were kept for the weight as it is now, undefined if there are none. `kind` tells
// transforms apart. `size` elements.
at::Tensor kept_filters(const at::Tensor& weight, const void* kind, int64_t size);
void keep_filters(const at::Tensor& weight, const void* kind, const at::Tensor& filters);

}  // namespace d2lfast::ops
