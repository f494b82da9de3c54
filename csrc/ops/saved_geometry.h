#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <initializer_list>
#include <vector>

#include "layout.h"

namespace d2lfast::ops {

// What backward of pooling needs of the input, which is its size and layout, and of the window: pairs of one
// value for each axis. All in one list, as each saved item costs forward and backward a fraction of a
// microsecond.
class SavedGeometry {
 public:
  static void save(torch::autograd::AutogradContext* ctx, const at::Tensor& input,
                   std::initializer_list<c10::SymIntArrayRef> pairs = {}) {
    std::vector<c10::SymInt> values;
    values.reserve(1 + 2 * pairs.size() + input.dim());
    values.emplace_back(static_cast<int64_t>(is_channels_last(layout_of(input))));
    for (const auto& pair : pairs) values.insert(values.end(), pair.begin(), pair.begin() + kAxes);
    for (const auto& size : input.sym_sizes()) values.push_back(size);
    ctx->saved_data[kName] = std::move(values);
  }

  SavedGeometry(torch::autograd::AutogradContext* ctx, size_t pairs)
      : values_(ctx->saved_data[kName].toSymIntVector()), size_begin_(1 + kAxes * pairs) {}

  bool channels_last() const { return values_[0].guard_int(__FILE__, __LINE__) != 0; }
  c10::SymIntArrayRef pair(size_t i) const { return all().slice(1 + kAxes * i, kAxes); }
  c10::SymIntArrayRef image_size() const { return all().slice(values_.size() - kAxes, kAxes); }

  // A stand-in for the input, for torch's backward operators, which look at its size and layout alone.
  at::Tensor like_input(const at::Tensor& grad_output) const {
    return at::empty_symint(all().slice(size_begin_), grad_output.options(), layout(channels_last()));
  }

 private:
  static constexpr const char* kName = "geometry";
  static constexpr size_t kAxes = 2;

  c10::SymIntArrayRef all() const { return values_; }

  std::vector<c10::SymInt> values_;
  size_t size_begin_;
};

}  // namespace d2lfast::ops
