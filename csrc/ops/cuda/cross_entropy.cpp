#include "../cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "../../kernels/cuda/cross_entropy.h"
#include "../cross_entropy_rows.h"
#include "../dtype.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

void check_devices(const at::Tensor& input, const at::Tensor& target) {
  TORCH_CHECK(input.device() == target.device(),
              "Expected all tensors to be on the same device, but got logits on ", input.device(),
              " and class numbers on ", target.device());
}

std::tuple<at::Tensor, at::Tensor> cross_entropy_cuda(const at::Tensor& input, const at::Tensor& target,
                                                      int64_t reduction, int64_t ignore_index) {
  check_cross_entropy(input, target, reduction);
  check_devices(input, target);
  const DeviceGuard guard(input.device());
  const DType dtype = kernel_dtype(input, "cross_entropy");
  const at::Tensor rows = class_rows(input), places = class_positions(target);
  cuda::CrossEntropyLoss p{};
  p.rows = rows.size(0) * rows.size(1);
  p.mean = reduction == kMean;
  const auto options = input.options().dtype(accumulator_type(input.scalar_type()));
  at::Tensor statistics = at::empty({2 * p.rows + 1}, options);
  const at::Tensor loss = at::empty(reduction == kNone ? target.sizes() : at::IntArrayRef{}, input.options());
  const RowOrder order(rows);
  set_rows(p, rows, places, order, ignore_index);
  p.statistics = statistics.mutable_data_ptr();
  const cudaStream_t stream = current_stream();
  if (reduction == kNone) {
    set_losses(p, loss, order);
    if (p.rows == 0) statistics.zero_();
    C10_CUDA_CHECK(cuda::launch_cross_entropy(p, dtype, stream));
    return {loss, statistics};
  }
  const at::Tensor partial =
      at::empty({cuda::cross_entropy_parts(p.rows, p.classes, dtype), 2}, input.options().dtype(at::kDouble));
  p.partial = partial.mutable_data_ptr<double>();
  p.total = loss.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::launch_cross_entropy(p, dtype, stream));
  C10_CUDA_CHECK(cuda::launch_cross_entropy_sum(p, dtype, stream));
  return {loss, statistics};
}

at::Tensor cross_entropy_backward_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& target, const at::Tensor& statistics,
                                       int64_t reduction, int64_t ignore_index) {
  check_cross_entropy(input, target, reduction);
  check_devices(input, target);
  const DeviceGuard guard(input.device());
  const DType dtype = kernel_dtype(input, "cross_entropy");
  const at::Tensor rows = class_rows(input), places = class_positions(target);
  const RowGradient gradient(at::empty_like(input));
  const RowOrder order(rows);
  cuda::CrossEntropyGradient p{};
  p.rows = rows.size(0) * rows.size(1);
  p.mean = reduction == kMean;
  set_rows(p, rows, places, order, ignore_index);
  p.statistics = statistics.const_data_ptr();
  gradient.set(p, order);
  const at::Tensor grad = grad_output.to(input.scalar_type());
  const at::Tensor grad_losses = reduction == kNone ? class_positions(grad) : at::Tensor();
  if (reduction == kNone) {
    set_grad_losses(p, grad_losses, order);
  } else {
    p.grad_total = grad.const_data_ptr();
  }
  C10_CUDA_CHECK(cuda::launch_cross_entropy_gradient(p, dtype, current_stream()));
  return gradient.finish();
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("_cross_entropy", cross_entropy_cuda);
  m.impl("_cross_entropy_backward", cross_entropy_backward_cuda);
}

}  // namespace d2lfast::ops
