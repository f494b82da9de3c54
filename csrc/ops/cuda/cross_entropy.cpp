#include "../cross_entropy_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "../../kernels/cuda/cross_entropy.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

std::tuple<at::Tensor, at::Tensor> cross_entropy_cuda(const at::Tensor& input, const at::Tensor& target,
                                                      int64_t reduction, int64_t ignore_index) {
  CrossEntropyCall<cuda::CrossEntropyLoss> call(input, target, reduction, ignore_index);
  const DeviceGuard guard(input.device());
  cuda::CrossEntropyLoss& p = call.p;
  p.rows = call.count;
  p.mean = reduction == kMean;
  const auto options = input.options().dtype(accumulator_type(input.scalar_type()));
  at::Tensor statistics = at::empty({2 * p.rows + 1}, options);
  const at::Tensor loss = at::empty(reduction == kNone ? target.sizes() : at::IntArrayRef{}, input.options());
  p.statistics = statistics.mutable_data_ptr();
  const cudaStream_t stream = current_stream();
  if (reduction == kNone) {
    set_losses(p, loss, call.order);
    if (p.rows == 0) statistics.zero_();
    C10_CUDA_CHECK(cuda::launch_cross_entropy(p, call.dtype, stream));
    return {loss, statistics};
  }
  const at::Tensor partial = at::empty({cuda::cross_entropy_parts(p.rows, p.classes, call.dtype), 2},
                                       input.options().dtype(at::kDouble));
  p.partial = partial.mutable_data_ptr<double>();
  p.total = loss.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::launch_cross_entropy(p, call.dtype, stream));
  C10_CUDA_CHECK(cuda::launch_cross_entropy_sum(p, call.dtype, stream));
  return {loss, statistics};
}

at::Tensor cross_entropy_backward_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                                       const at::Tensor& target, const at::Tensor& statistics,
                                       int64_t reduction, int64_t ignore_index) {
  CrossEntropyCall<cuda::CrossEntropyGradient> call(input, target, reduction, ignore_index);
  const DeviceGuard guard(input.device());
  cuda::CrossEntropyGradient& p = call.p;
  const RowGradient gradient(at::empty_like(input));
  p.rows = call.count;
  p.mean = reduction == kMean;
  p.statistics = statistics.const_data_ptr();
  gradient.set(p, call.order);
  const at::Tensor grad = grad_output.to(input.scalar_type());
  const at::Tensor grad_losses = reduction == kNone ? class_positions(grad) : at::Tensor();
  if (reduction == kNone) {
    set_grad_losses(p, grad_losses, call.order);
  } else {
    p.grad_total = grad.const_data_ptr();
  }
  C10_CUDA_CHECK(cuda::launch_cross_entropy_gradient(p, call.dtype, current_stream()));
  return gradient.finish();
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("_cross_entropy", cross_entropy_cuda);
  m.impl("_cross_entropy_backward", cross_entropy_backward_cuda);
}

}  // namespace d2lfast::ops
