#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "batch_norm.h"

namespace d2lfast::ops {

void check_sync_batch_norm_means(const at::Tensor& means, const at::Tensor& input) {
  TORCH_CHECK(means.dim() == 2 && means.size(0) == 2 && means.size(1) == input.size(1) &&
                  means.scalar_type() == at::kDouble && means.device() == input.device(),
              "expected float64 means of ", input.size(1), " channels on ", input.device(), ", but got ",
              means.toString(), " of size ", means.sizes(), " on ", means.device());
}

}  // namespace d2lfast::ops

// The parts of a batch normalisation whose statistics are taken over several processes; d2lfast/nn/sync.py
// puts them together. Normalisation and the sums of the gradient are those of batch_norm_act in evaluation.
TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  // [2,C], float64: a channel's mean, and its sum of squared distances from it.
  m.def("_sync_batch_norm_moments(Tensor input) -> Tensor");
  // The gradients of the input and of the residual (if wanted) from `means`, [2,C]: over all processes, of
  // the gradient before the activation and of its product with the normalised input.
  m.def(
      "_sync_batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor statistics, "
      "Tensor? output, Tensor? mask, str activation, Tensor means, bool wants_residual) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("_sync_batch_norm_moments", torch::autograd::autogradNotImplementedFallback());
  m.impl("_sync_batch_norm_backward", torch::autograd::autogradNotImplementedFallback());
}
