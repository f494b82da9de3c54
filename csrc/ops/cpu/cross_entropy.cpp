#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "../../kernels/cpu/isa.h"
#include "../../kernels/cross_entropy.h"
#include "../allocate.h"
#include "../cross_entropy_rows.h"
#include "operators.h"

D2LFAST_DECLARE_TABLES(CrossEntropyKernels, cross_entropy_kernels);

namespace d2lfast::ops {

namespace {

using at::Tensor;

const CrossEntropyKernels& kernels() { return D2LFAST_SELECT_TABLE(cross_entropy_kernels); }

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
  CrossEntropyCall<CrossEntropyForward> call(input, target, reduction, ignore_index);
  CrossEntropyForward& p = call.p;
  const int64_t count = call.count, size = task_rows(p.classes);
  const int64_t tasks = (count + size - 1) / size;
  const Tensor statistics =
      empty({2 * count + 1}, input.options().dtype(accumulator_type(input.scalar_type())));
  const Tensor losses = reduction == kNone ? empty(target.sizes(), input.options()) : Tensor();
  p.statistics = statistics.data_ptr();
  if (reduction == kNone) set_losses(p, losses, call.order);
  std::vector<CrossEntropySum> sums(static_cast<size_t>(tasks));
  auto* kernel = kernels().forward[static_cast<int>(call.dtype)];
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
  CrossEntropyCall<CrossEntropyBackward> call(input, target, reduction, ignore_index);
  CrossEntropyBackward& p = call.p;
  const int64_t count = call.count, size = task_rows(p.classes);
  const RowGradient gradient(empty_like(input));
  p.statistics = statistics.const_data_ptr();
  gradient.set(p, call.order);
  Tensor grad_losses;
  if (reduction == kNone) {
    grad_losses = class_positions(grad_output.to(input.scalar_type()));
    set_grad_losses(p, grad_losses, call.order);
  } else {
    p.scale = number(grad_output.to(statistics.scalar_type()), 0);
    if (reduction == kMean) p.scale /= number(statistics, 2 * count);
  }
  auto* kernel = kernels().backward[static_cast<int>(call.dtype)];
  at::parallel_for(0, (count + size - 1) / size, 1,
                   [&](int64_t begin, int64_t end) { kernel(p, begin * size, std::min(count, end * size)); });
  return gradient.finish();
}

}  // namespace d2lfast::ops
