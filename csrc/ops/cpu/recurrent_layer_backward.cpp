#include "recurrent_layer_backward.h"
#include "operators.h"

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Inner stride 1 in the dtype of the computation.
Tensor dense_rows(const Tensor& tensor, const CPURecurrentLayer& layer, bool packed) {
  const Tensor x = tensor.to(layer.compute);
  return (packed || x.size(-1) == 0 || x.stride(-1) != 1) && !x.is_contiguous() ? x.contiguous() : x;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent_layer_backward_cpu(
    const Optional& grad_output, const Optional& grad_h, const Optional& grad_c, const Tensor& input,
    const Optional& batch_sizes, const Tensor& hx, const Optional& cx, at::TensorList weights,
    const Tensor& output, const Tensor& saved, const Tensor& cells, std::string_view mode, bool bias,
    bool projected, bool reverse, std::array<bool, 4> mask) {
  const CPURecurrentLayer layer(
      describe_recurrent_layer(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse));
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  const auto given = [](const Optional& tensor) { return tensor.has_value() ? *tensor : Tensor(); };
  const Tensor grad = given(grad_output);
  const Tensor x = layer.tokens ? input.contiguous() : dense_rows(input, layer, packed);
  const bool lstm = layer.mode == RecurrentMode::kLSTM;
  // Alive until the end of the pass, which keeps pointers only.
  const Tensor kept = saved.to(layer.compute).contiguous(), states = cells.to(layer.compute).contiguous();
  RecurrentBackward backward(layer, x, packed, hx.to(layer.compute).contiguous(),
                             lstm ? cx->to(layer.compute).contiguous() : Tensor(),
                             output.to(layer.compute).contiguous(), kept, states,
                             grad.defined() ? dense_rows(grad, layer, packed) : Tensor(), given(grad_h),
                             given(grad_c), mask);
  backward.run();
  const auto type = hx.scalar_type();
  std::vector<Tensor> weight_gradients;
  for (int64_t d = 0; mask[3] && d < layer.directions; ++d) {
    backward.weight_gradients(d, weight_gradients, type);
  }
  return {backward.grad_input.to(type), backward.grad_hx.to(type), backward.grad_cx.to(type),
          std::move(weight_gradients)};
}

}  // namespace d2lfast::ops
