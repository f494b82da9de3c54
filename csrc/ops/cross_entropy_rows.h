#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/cross_entropy.h"
#include "cross_entropy.h"
#include "dtype.h"

// The operands of the cross-entropy as rows, for all devices.
namespace d2lfast::ops {

// [N,C,...] as [N,D,C] with dense classes.
inline at::Tensor class_rows(const at::Tensor& input) {
  const at::Tensor rows = input.dim() == 2 ? input.unsqueeze(1) : input.movedim(1, -1).flatten(1, -2);
  return rows.stride(2) == 1 || rows.size(2) == 1 ? rows : rows.contiguous();
}

// [N,...] as [N,D].
inline at::Tensor class_positions(const at::Tensor& target) {
  return target.dim() == 1 ? target.unsqueeze(1) : target.flatten(1);
}

// Rows go in the order in which they lie in memory: `outer` and `inner` are axes 0 and 1 of [N,D] or swapped.
struct RowOrder {
  explicit RowOrder(const at::Tensor& rows)
      : outer(rows.stride(0) >= rows.stride(1) || rows.size(1) == 1 ? 0 : 1), inner(1 - outer) {}
  int64_t outer, inner;
};

// The operands of a pass, checked, and what its parameters take from them.
template <typename Params>
struct CrossEntropyCall {
  CrossEntropyCall(const at::Tensor& input, const at::Tensor& target, int64_t reduction, int64_t ignore_index)
      : dtype((check_cross_entropy(input, target, reduction), kernel_dtype(input, "cross_entropy"))),
        rows(class_rows(input)),
        places(class_positions(target)),
        count(rows.size(0) * rows.size(1)),
        order(rows) {
    p.classes = rows.size(2);
    p.inner_rows = rows.size(order.inner);
    p.ignore_index = ignore_index;
    p.input = rows.const_data_ptr();
    p.input_outer = rows.stride(order.outer);
    p.input_inner = rows.stride(order.inner);
    p.target = places.const_data_ptr<int64_t>();
    p.target_outer = places.stride(order.outer);
    p.target_inner = places.stride(order.inner);
  }

  DType dtype;
  at::Tensor rows, places;
  int64_t count;  // rows
  RowOrder order;
  Params p{};
};

inline void set_losses(CrossEntropyForward& p, const at::Tensor& losses, const RowOrder& order) {
  const at::Tensor places = class_positions(losses);
  p.losses = losses.data_ptr();
  p.losses_outer = places.stride(order.outer);
  p.losses_inner = places.stride(order.inner);
}

// `grad_losses`: [N,D].
inline void set_grad_losses(CrossEntropyBackward& p, const at::Tensor& grad_losses, const RowOrder& order) {
  p.grad_losses = grad_losses.const_data_ptr();
  p.grad_losses_outer = grad_losses.stride(order.outer);
  p.grad_losses_inner = grad_losses.stride(order.inner);
}

// The gradient in the strides of the input, so that what made it gets its gradient as it likes it.
class RowGradient {
 public:
  explicit RowGradient(const at::Tensor& tensor) : tensor_(tensor), rows_(class_rows(tensor)) {}

  void set(CrossEntropyBackward& p, const RowOrder& order) const {
    p.grad_input = rows_.data_ptr();
    p.grad_input_outer = rows_.stride(order.outer);
    p.grad_input_inner = rows_.stride(order.inner);
  }
  // After the kernel: classes that are not dense are copied.
  at::Tensor finish() const {
    if (!rows_.is_alias_of(tensor_)) {
      tensor_.copy_(rows_.view(tensor_.movedim(1, -1).sizes()).movedim(-1, 1));
    }
    return tensor_;
  }

 private:
  at::Tensor tensor_, rows_;
};

}  // namespace d2lfast::ops
