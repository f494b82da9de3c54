#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "../../kernels/cuda/recurrent_cluster.h"
#include "../../kernels/cuda/recurrent_grid.h"
#include "../dtype.h"
#include "../recurrent_layer.h"
#include "../recurrent_reference.h"
#include "recurrent_products.h"
#include "runtime.h"

// Layers over whole sequences: the products that do not wait for a state go over all steps at once; the
// recurrence is one persistent kernel for each direction, of blocks with sequences of their own or of
// blocks that share out the units, of a cluster or of the whole grid.

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

cuda::LayerMode mode_of(const RecurrentLayer& layer) { return static_cast<cuda::LayerMode>(layer.mode); }

// Which persistent kernel takes a layer: clusters with the recurrent weight in registers, blocks that keep it
// in shared memory alone, or all blocks of a grid together.
enum class Kernel { kCluster, kAlone, kGrid, kNone };

Kernel kernel_of(cuda::LayerMode mode, int64_t hidden, int64_t batch, DType dtype) {
  if (cuda::recurrent_cluster_fits(mode, hidden, dtype, recurrent_tf32())) return Kernel::kCluster;
  if (cuda::recurrent_layer_fits(mode, hidden, dtype)) return Kernel::kAlone;
  return cuda::recurrent_grid_workspace(mode, hidden, batch, dtype) > 0 ? Kernel::kGrid : Kernel::kNone;
}

Tensor device_vector(const std::vector<int64_t>& values, const Tensor& like) {
  return at::tensor(values, at::kLong).to(like.device());
}

// The parts of a call that forward and backward share.
struct Call {
  RecurrentLayer layer;
  DType dtype;
  Kernel kernel;
  bool packed;
  Tensor input;            // [rows,inputs], undefined for tokens
  Tensor tokens;           // [rows]
  Tensor counts, offsets;  // of packed sequences, on the device
  Tensor hx, cx;
  std::vector<Tensor> weights;
  int64_t each;

  Call(const Tensor& x, const Optional& batch_sizes, const Tensor& h, const Optional& c, at::TensorList given,
       std::string_view mode, bool bias, bool projected, bool reverse)
      : layer(describe_recurrent_layer(x, batch_sizes, h, c, given, mode, bias, projected, reverse)),
        dtype(kernel_dtype(h, "d2lfast::_recurrent_layer")),
        kernel(projected ? Kernel::kNone : kernel_of(mode_of(layer), layer.hidden, layer.batch, dtype)),
        packed(batch_sizes.has_value() && batch_sizes->defined()),
        hx(h.contiguous()),
        weights(given.begin(), given.end()),
        each(bias ? 4 : 2) {
    if (layer.mode == RecurrentMode::kLSTM) cx = c->contiguous();
    if (layer.tokens) {
      tokens = x.reshape({layer.rows});
    } else {
      input = x.reshape({layer.rows, layer.inputs});
    }
    if (packed) {
      counts = device_vector(layer.counts, h);
      offsets = device_vector(layer.offsets, h);
    }
  }

  // Whether a persistent kernel takes the layer; else torch's operators compute it step by step (`aten`).
  bool fits() const { return kernel != Kernel::kNone; }

  void launch(const cuda::RecurrentLayerParams& p, bool backward) const {
    const cudaStream_t stream = current_stream();
    if (kernel == Kernel::kCluster) {
      const auto run = backward ? cuda::launch_recurrent_cluster_backward : cuda::launch_recurrent_cluster;
      C10_CUDA_CHECK(run(p, dtype, stream));
      return;
    }
    if (kernel == Kernel::kAlone) {
      const auto run = backward ? cuda::launch_recurrent_layer_backward : cuda::launch_recurrent_layer;
      C10_CUDA_CHECK(run(p, dtype, stream));
      return;
    }
    const int64_t exchanged =
        cuda::recurrent_grid_workspace(mode_of(layer), layer.hidden, layer.batch, dtype);
    const Tensor workspace = at::empty({exchanged}, hx.options().dtype(layer.compute));
    const auto run = backward ? cuda::launch_recurrent_grid_backward : cuda::launch_recurrent_grid;
    C10_CUDA_CHECK(run(p, workspace.mutable_data_ptr(), dtype, stream));
  }

  const Tensor& weight(int64_t direction, int64_t i) const {
    return weights[static_cast<size_t>(direction * each + i)];
  }
  bool bias() const { return each == 4; }
  Tensor narrow(const Tensor& tensor) const { return tensor.to(hx.scalar_type()); }

  // The input of the products as numbers.
  Tensor rows() const { return layer.tokens ? narrow(at::one_hot(tokens, layer.inputs)) : input; }

  // Of the input, with b_ih, of accumulator type.
  Tensor products(int64_t d) const {
    if (layer.tokens) {
      const Tensor chosen = at::index_select(weight(d, 0).t(), 0, tokens).to(layer.compute);
      return (bias() ? chosen + weight(d, 2) : chosen).contiguous();
    }
    return times_transposed(input, weight(d, 0), bias() ? weight(d, 2) : Tensor());
  }

  // [rows,H] of one direction in a tensor of all.
  Tensor part(const Tensor& all, int64_t d) const {
    return all.reshape({layer.rows, layer.directions * layer.hidden})
        .narrow(1, d * layer.hidden, layer.hidden);
  }

  cuda::RecurrentLayerParams params(int64_t d, const Tensor& recurrent_weight) const {
    cuda::RecurrentLayerParams p{};
    p.mode = mode_of(layer);
    p.steps = static_cast<int32_t>(layer.steps);
    p.batch = static_cast<int32_t>(layer.batch);
    p.hidden = static_cast<int32_t>(layer.hidden);
    p.reversed = layer.reversed(d);
    p.tf32 = recurrent_tf32();
    if (packed) {
      p.counts = counts.const_data_ptr<int64_t>();
      p.offsets = offsets.const_data_ptr<int64_t>();
    }
    p.weight = recurrent_weight.const_data_ptr();
    p.h_0 = hx.select(0, d).const_data_ptr();
    if (cx.defined()) p.c_0 = cx.select(0, d).const_data_ptr();
    p.output_row = layer.directions * layer.hidden;
    return p;
  }
};

void* data(const Tensor& tensor) { return tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr; }

void* direction_data(const Tensor& tensor, int64_t d) {
  return tensor.dim() == 3 && tensor.numel() > 0 ? tensor.select(0, d).mutable_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
    at::TensorList weights, std::string_view mode, bool bias, bool projected, bool reverse, bool save) {
  const DeviceGuard guard(hx.device());
  const Call call(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
  const RecurrentLayer& l = call.layer;
  const bool lstm = l.mode == RecurrentMode::kLSTM;
  const int64_t width = l.directions * l.state;
  const auto options = hx.options();
  const Tensor output =
      call.packed ? at::empty({l.rows, width}, options) : at::empty({l.steps, l.batch, width}, options);
  const Tensor h_n = at::empty({l.directions, l.batch, l.state}, options);
  const Tensor c_n = lstm ? at::empty({l.directions, l.batch, l.hidden}, options) : at::empty({0}, options);
  const Tensor saved = save ? at::empty({l.directions, l.rows, l.saved()}, options) : at::empty({0}, options);
  const Tensor cells =
      save && lstm ? at::empty({l.directions, l.rows, l.hidden}, options) : at::empty({0}, options);
  if (l.rows == 0) return {output, h_n, c_n, saved, cells};
  if (!call.fits()) {
    // In float for 16-bit tensors, as the CPU's operator.
    const auto exact = [&](const Tensor& t) { return t.is_floating_point() ? t.to(l.compute) : t; };
    std::vector<Tensor> w;
    for (const Tensor& weight : weights) w.push_back(exact(weight));
    const auto [y, h, c] =
        recurrent_reference(exact(input), batch_sizes, exact(hx), lstm ? Optional(exact(*cx)) : Optional(), w,
                            mode, bias, projected, reverse);
    const at::ScalarType type = hx.scalar_type();
    // Nobody reads what is saved, but an operator's results are defined.
    return {y.to(type), h.to(type), c.to(type), saved.zero_(), cells.zero_()};
  }
  for (int64_t d = 0; d < l.directions; ++d) {
    const Tensor recurrent = call.weight(d, 1).contiguous(), products = call.products(d);
    const Tensor offset = bias ? call.weight(d, 3).contiguous() : Tensor();
    cuda::RecurrentLayerParams p = call.params(d, recurrent);
    p.products = products.const_data_ptr();
    p.bias = bias ? offset.const_data_ptr() : nullptr;
    p.output = call.part(output, d).mutable_data_ptr();
    p.h_n = direction_data(h_n, d);
    p.c_n = direction_data(c_n, d);
    p.saved = direction_data(saved, d);
    p.cells = direction_data(cells, d);
    call.launch(p, false);
  }
  return {output, h_n, c_n, saved, cells};
}

std::tuple<Tensor, Tensor, Tensor> layer(const Tensor& input, const Optional& batch_sizes, const Tensor& hx,
                                         const Optional& cx, at::TensorList weights, std::string_view mode,
                                         bool bias, bool projected, bool reverse) {
  const auto results =
      layer_forward(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse, false);
  return {std::get<0>(results), std::get<1>(results), std::get<2>(results)};
}

// The state before each step of direction d, [rows,H].
Tensor states_before(const Call& call, const Tensor& output, int64_t d) {
  const RecurrentLayer& l = call.layer;
  const Tensor first = call.hx.select(0, d), own = call.part(output, d);
  const bool reversed = l.reversed(d);
  if (!call.packed) {
    const int64_t kept = l.rows - l.batch;
    return reversed ? at::cat({own.narrow(0, l.batch, kept), first})
                    : at::cat({first, own.narrow(0, 0, kept)});
  }
  std::vector<int64_t> places;
  places.reserve(static_cast<size_t>(l.rows));
  for (int64_t t = 0; t < l.steps; ++t) {
    const int64_t from = reversed ? t + 1 : t - 1;
    const bool inside = from >= 0 && from < l.steps;
    for (int64_t i = 0; i < l.counts[static_cast<size_t>(t)]; ++i) {
      const bool carried = inside && i < l.counts[static_cast<size_t>(from)];
      places.push_back(carried ? l.offsets[static_cast<size_t>(from)] + i : l.rows + i);
    }
  }
  return at::index_select(at::cat({own, first}), 0, device_vector(places, first));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// Of a layer that the kernel does not take: through the graph of torch's operators, built again.
Gradients reference_gradients(const std::array<Optional, 3>& grads, const Tensor& input,
                              const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                              at::TensorList weights, std::string_view mode, bool bias, bool projected,
                              bool reverse, std::array<bool, 4> mask) {
  // Below the operators of autograd its keys are switched off.
  const c10::impl::LocalDispatchKeySet now = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet autograd = c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  const c10::impl::ForceDispatchKeyGuard keys(now.included_, now.excluded_ - autograd);
  const at::AutoGradMode enabled(true);
  const at::ScalarType type = hx.scalar_type(), compute = accumulator_type(type);
  const auto leaf = [&](const Tensor& t) { return t.detach().to(compute).requires_grad_(); };
  const bool tokens = input.scalar_type() == at::kLong, lstm = cx.has_value() && cx->defined();
  const Tensor x = tokens ? input : leaf(input), h = leaf(hx), c = lstm ? leaf(*cx) : Tensor();
  std::vector<Tensor> w;
  for (const Tensor& weight : weights) w.push_back(leaf(weight));
  const auto [y, h_n, c_n] = recurrent_reference(x, batch_sizes, h, lstm ? Optional(c) : Optional(), w, mode,
                                                 bias, projected, reverse);
  std::vector<Tensor> outputs, given, leaves{h};
  const std::array<Tensor, 3> results{y, h_n, c_n};
  for (size_t i = 0; i < 3; ++i) {
    if (!grads[i].has_value() || !grads[i]->defined() || (i == 2 && !lstm)) continue;
    outputs.push_back(results[i]);
    given.push_back(grads[i]->to(compute));
  }
  if (lstm) leaves.push_back(c);
  const size_t first_weight = leaves.size();
  leaves.insert(leaves.end(), w.begin(), w.end());
  if (!tokens) leaves.push_back(x);
  std::vector<Tensor> found = torch::autograd::grad(outputs, leaves, given, std::nullopt, false, true);
  for (size_t i = 0; i < found.size(); ++i) {
    found[i] = (found[i].defined() ? found[i] : at::zeros_like(leaves[i])).to(type);
  }
  const Tensor nothing = at::empty({0}, hx.options());
  std::vector<Tensor> grad_weights;
  if (mask[3]) {
    const auto begin = found.begin() + static_cast<std::ptrdiff_t>(first_weight);
    grad_weights.assign(begin, begin + static_cast<std::ptrdiff_t>(w.size()));
  }
  return {tokens || !mask[0] ? nothing : found.back(), found[0], lstm ? found[1] : nothing, grad_weights};
}

Gradients layer_backward(const Optional& grad_output, const Optional& grad_h, const Optional& grad_c,
                         const Tensor& input, const Optional& batch_sizes, const Tensor& hx,
                         const Optional& cx, at::TensorList weights, const Tensor& output,
                         const Tensor& saved, const Tensor& cells, std::string_view mode, bool bias,
                         bool projected, bool reverse, std::array<bool, 4> mask) {
  const DeviceGuard guard(hx.device());
  const Call call(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
  const RecurrentLayer& l = call.layer;
  const bool lstm = l.mode == RecurrentMode::kLSTM, gru = l.mode == RecurrentMode::kGRU;
  const auto options = hx.options();
  const bool wants_input = mask[0] && !l.tokens;
  std::vector<Tensor> grads;
  if (l.rows == 0) {
    for (const Tensor& weight : weights) {
      if (mask[3]) grads.push_back(at::zeros_like(weight));
    }
    return {at::empty(wants_input ? input.sizes() : at::IntArrayRef{0}, options), at::zeros_like(hx),
            lstm ? at::zeros_like(*cx) : at::empty({0}, options), grads};
  }
  if (!call.fits()) {
    return reference_gradients({grad_output, grad_h, grad_c}, input, batch_sizes, hx, cx, weights, mode, bias,
                               projected, reverse, mask);
  }
  const Tensor states = output.contiguous();
  const auto contiguous = [](const Optional& t) {
    return t.has_value() && t->defined() ? t->contiguous() : Tensor();
  };
  const Tensor grad_y = contiguous(grad_output), grad_last = contiguous(grad_h),
               grad_cell = contiguous(grad_c);
  const Tensor grad_hx = at::empty(hx.sizes(), options);
  const Tensor grad_cx = lstm ? at::empty(cx->sizes(), options) : at::empty({0}, options);
  Tensor grad_input = wants_input ? Tensor() : at::empty({0}, options);
  for (int64_t d = 0; d < l.directions; ++d) {
    const Tensor recurrent = call.weight(d, 1).contiguous();
    const Tensor gates = at::empty({l.rows, l.gates()}, options);
    const Tensor hidden_gates = gru ? at::empty_like(gates) : gates;
    cuda::RecurrentLayerParams p = call.params(d, recurrent);
    p.output = call.part(states, d).mutable_data_ptr();
    p.saved = direction_data(saved, d);
    p.cells = direction_data(cells, d);
    if (grad_y.defined()) {
      p.grad_output = call.part(grad_y, d).const_data_ptr();
      p.grad_output_row = p.output_row;
    }
    if (grad_last.defined()) p.grad_h = grad_last.select(0, d).const_data_ptr();
    if (grad_cell.defined() && lstm) p.grad_c = grad_cell.select(0, d).const_data_ptr();
    p.grad_gates = data(gates);
    p.grad_hidden_gates = data(hidden_gates);
    p.grad_h_0 = direction_data(grad_hx, d);
    p.grad_c_0 = direction_data(grad_cx, d);
    call.launch(p, true);
    if (wants_input) {
      const Tensor part = times_transposed(gates, call.weight(d, 0).t());
      grad_input = grad_input.defined() ? grad_input + part : part;
    }
    if (!mask[3]) continue;
    grads.push_back(call.narrow(transposed_times(gates, call.rows())));
    grads.push_back(call.narrow(transposed_times(hidden_gates, states_before(call, states, d))));
    if (bias) {
      grads.push_back(at::sum(gates, {0}));
      grads.push_back(gru ? at::sum(hidden_gates, {0}) : grads.back().clone());
    }
  }
  if (wants_input) grad_input = call.narrow(grad_input).view(input.sizes());
  return {grad_input, grad_hx, grad_cx, grads};
}

// What is expected to be fastest: "persistent_cluster", "persistent", "persistent_grid" or torch's own layer,
// "aten".
std::string algorithm(std::string_view mode_name, int64_t batch, int64_t hidden, at::ScalarType type,
                      bool training) {
  const DType dtype = type == at::kDouble  ? DType::kFloat64
                      : type == at::kFloat ? DType::kFloat32
                                           : DType::kFloat16;
  const auto mode = static_cast<cuda::LayerMode>(recurrent_mode(mode_name));
  switch (kernel_of(mode, hidden, batch, dtype)) {
    case Kernel::kCluster:
      if (cuda::recurrent_cluster_wins(mode, hidden, batch, dtype, recurrent_tf32(), training)) {
        return "persistent_cluster";
      }
      break;
    case Kernel::kAlone:
      return "persistent";
    case Kernel::kGrid:
      if (cuda::recurrent_grid_wins(mode, hidden, batch, dtype, training)) return "persistent_grid";
      break;
    case Kernel::kNone:
      break;
  }
  return "aten";
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "_cuda_recurrent_layer_algorithm(str mode, int batch, int hidden, ScalarType dtype, bool training) -> "
      "str",
      algorithm);
}

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("_recurrent_layer", layer);
  m.impl("_recurrent_layer_forward", layer_forward);
  m.impl("_recurrent_layer_backward", layer_backward);
}

}  // namespace d2lfast::ops
