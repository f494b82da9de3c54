#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "../../kernels/cpu/isa.h"
#include "../../kernels/cross_entropy.h"
#include "../allocate.h"
#include "../cross_entropy.h"
#include "../dtype.h"
#include "operators.h"

D2LFAST_DECLARE_TABLES(CrossEntropyKernels, cross_entropy_kernels);

namespace d2lfast::ops {

namespace {

using at::Tensor;

const CrossEntropyKernels& kernels() { return D2LFAST_SELECT_TABLE(cross_entropy_kernels); }

// [N,C,...] as [N,D,C] with dense classes.
Tensor class_rows(const Tensor& input) {
  const Tensor rows = input.dim() == 2 ? input.unsqueeze(1) : input.movedim(1, -1).flatten(1, -2);
  return rows.stride(2) == 1 || rows.size(2) == 1 ? rows : rows.contiguous();
}

// [N,...] as [N,D].
Tensor positions(const Tensor& target) { return target.dim() == 1 ? target.unsqueeze(1) : target.flatten(1); }

// Rows go in the order in which they lie in memory: `outer` and `inner` are axes 0 and 1 of [N,D] or swapped.
struct Order {
  explicit Order(const Tensor& rows)
      : outer(rows.stride(0) >= rows.stride(1) || rows.size(1) == 1 ? 0 : 1), inner(1 - outer) {}
  int64_t outer, inner;
};

void set_rows(CrossEntropyRows& p, const Tensor& rows, const Tensor& target, const Order& order,
              int64_t ignore_index) {
  p.classes = rows.size(2);
  p.inner_rows = rows.size(order.inner);
  p.ignore_index = ignore_index;
  p.input = rows.const_data_ptr();
  p.input_outer = rows.stride(order.outer);
  p.input_inner = rows.stride(order.inner);
  p.target = target.const_data_ptr<int64_t>();
  p.target_outer = target.stride(order.outer);
  p.target_inner = target.stride(order.inner);
}

// A single number, without a call of torch.
void set(const Tensor& tensor, int64_t at, double value) {
  void* data = tensor.data_ptr();
  if (tensor.scalar_type() == at::kDouble) {
    static_cast<double*>(data)[at] = value;
  } else {
    static_cast<float*>(data)[at] = static_cast<float>(value);
  }
}

double number(const Tensor& tensor, int64_t at) {
  const void* data = tensor.const_data_ptr();
  return tensor.scalar_type() == at::kDouble ? static_cast<const double*>(data)[at]
                                             : static_cast<const float*>(data)[at];
}

// Rows that one task takes; the loss is summed by task, so this depends on the shape alone.
int64_t task_rows(int64_t classes) { return std::clamp<int64_t>((1 << 14) / classes, 1, 1024); }

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy_cpu(const Tensor& input, const Tensor& target, int64_t reduction,
                                             int64_t ignore_index) {
  check_cross_entropy(input, target, reduction);
  const int dtype = static_cast<int>(kernel_dtype(input, "cross_entropy"));
  const Tensor rows = class_rows(input), places = positions(target);
  const int64_t count = rows.size(0) * rows.size(1), size = task_rows(rows.size(2));
  const int64_t tasks = (count + size - 1) / size;
  const Tensor statistics =
      empty({2 * count + 1}, input.options().dtype(accumulator_type(input.scalar_type())));
  const Tensor losses = reduction == kNone ? empty(target.sizes(), input.options()) : Tensor();
  const Order order(rows);
  CrossEntropyForward p{};
  set_rows(p, rows, places, order, ignore_index);
  p.statistics = statistics.data_ptr();
  if (reduction == kNone) {
    const Tensor at = positions(losses);
    p.losses = losses.data_ptr();
    p.losses_outer = at.stride(order.outer);
    p.losses_inner = at.stride(order.inner);
  }
  std::vector<CrossEntropySum> sums(static_cast<size_t>(tasks));
  auto* kernel = kernels().forward[dtype];
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      sums[static_cast<size_t>(task)] = kernel(p, task * size, std::min(count, (task + 1) * size));
    }
  });
  double loss = 0;
  int64_t counted = 0;
  for (const CrossEntropySum& sum : sums) {
    if (sum.bad >= 0) {
      const int64_t outer = sum.bad / p.inner_rows, inner = sum.bad % p.inner_rows;
      TORCH_CHECK_INDEX(false, "Target ", p.target[outer * p.target_outer + inner * p.target_inner],
                        " is out of bounds.");
    }
    loss += sum.loss;
    counted += sum.count;
  }
  set(statistics, 2 * count, static_cast<double>(counted));
  if (reduction == kNone) return {losses, statistics};
  const Tensor total = empty({}, statistics.options());
  set(total, 0, reduction == kMean ? loss / static_cast<double>(counted) : loss);
  return {total.to(input.scalar_type()), statistics};
}

Tensor cross_entropy_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                  const Tensor& statistics, int64_t reduction, int64_t ignore_index) {
  check_cross_entropy(input, target, reduction);
  const int dtype = static_cast<int>(kernel_dtype(input, "cross_entropy"));
  const Tensor rows = class_rows(input), places = positions(target);
  const int64_t count = rows.size(0) * rows.size(1), size = task_rows(rows.size(2));
  // In the strides of the input, so that what made it gets its gradient as it likes it.
  Tensor grad_input = empty_like(input), grad_rows = class_rows(grad_input);
  const bool direct = grad_rows.is_alias_of(grad_input);
  const Order order(rows);
  CrossEntropyBackward p{};
  set_rows(p, rows, places, order, ignore_index);
  p.statistics = statistics.const_data_ptr();
  p.grad_input = grad_rows.data_ptr();
  p.grad_input_outer = grad_rows.stride(order.outer);
  p.grad_input_inner = grad_rows.stride(order.inner);
  Tensor grad_losses;
  if (reduction == kNone) {
    grad_losses = positions(grad_output.to(input.scalar_type()));
    p.grad_losses = grad_losses.const_data_ptr();
    p.grad_losses_outer = grad_losses.stride(order.outer);
    p.grad_losses_inner = grad_losses.stride(order.inner);
  } else {
    p.scale = number(grad_output.to(statistics.scalar_type()), 0);
    if (reduction == kMean) p.scale /= number(statistics, 2 * count);
  }
  auto* kernel = kernels().backward[dtype];
  at::parallel_for(0, (count + size - 1) / size, 1,
                   [&](int64_t begin, int64_t end) { kernel(p, begin * size, std::min(count, end * size)); });
  if (!direct) grad_input.copy_(grad_rows.view(input.movedim(1, -1).sizes()).movedim(-1, 1));
  return grad_input;
}

}  // namespace d2lfast::ops
