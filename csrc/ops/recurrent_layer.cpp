#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "autocast.h"
#include "differentiable.h"
#include "gradient_guard.h"
#include "optional_tensor.h"
#include "recurrent_reference.h"

// Schemas, autograd and autocast of recurrent layers over whole sequences.

namespace d2lfast::ops {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Layer = std::tuple<Tensor, Tensor, Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

Layer call_layer(const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                 at::TensorList weights, std::string_view mode, bool bias, bool projected, bool reverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_recurrent_layer", "")
                             .typed<decltype(call_layer)>();
  return op.call(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
}

Forward call_forward(const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                     at::TensorList weights, std::string_view mode, bool bias, bool projected, bool reverse,
                     bool save) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_recurrent_layer_forward", "")
                             .typed<decltype(call_forward)>();
  return op.call(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse, save);
}

Backward call_backward(const Optional& grad_output, const Optional& grad_h, const Optional& grad_c,
                       const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                       at::TensorList weights, const Tensor& output, const Tensor& saved, const Tensor& cells,
                       std::string_view mode, bool bias, bool projected, bool reverse,
                       std::array<bool, 4> mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_recurrent_layer_backward", "")
                             .typed<decltype(call_backward)>();
  const GradientGuard guard;
  return op.call(grad_output, grad_h, grad_c, input, batch_sizes, hx, cx, weights, output, saved, cells, mode,
                 bias, projected, reverse, mask);
}

class RecurrentLayerFunction : public torch::autograd::Function<RecurrentLayerFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& input, const Optional& batch_sizes,
                               const Variable& hx, const Optional& cx, at::TensorList weights,
                               std::string_view mode, bool bias, bool projected, bool reverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, h_n, c_n, saved, cells] =
        call_forward(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse, true);
    ctx->set_materialize_grads(false);
    variable_list kept{input, batch_sizes.value_or(Tensor()), hx, cx.value_or(Tensor()), output, saved,
                       cells};
    kept.insert(kept.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(kept));
    // One entry, as each costs a fraction of a microsecond in both passes.
    ctx->saved_data["layer"] =
        (std::string(mode) += bias ? 'b' : '-').append({projected ? 'p' : '-', reverse ? 'r' : '-'});
    if (mode != "lstm") ctx->mark_non_differentiable({c_n});
    return {output, h_n, c_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kept = ctx->get_saved_variables();
    const auto &input = kept[0], &hx = kept[2];
    const Optional batch_sizes = optional_of(kept[1]), cx = optional_of(kept[3]);
    const variable_list weights(kept.begin() + 7, kept.end());
    const std::string layer = ctx->saved_data["layer"].toStringRef();
    const std::string mode = layer.substr(0, layer.size() - 3);
    const std::string_view flags = std::string_view(layer).substr(mode.size());
    const bool bias = flags[0] == 'b', projected = flags[1] == 'p', reverse = flags[2] == 'r';
    // One place for each argument, and for each tensor of the list.
    variable_list result(8 + weights.size());
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    // Whether a gradient is wanted is counted over the tensors that were given.
    size_t place = 0;
    const bool want_input = ctx->needs_input_grad(place++);
    place += batch_sizes.has_value();
    const bool want_h = ctx->needs_input_grad(place++);
    const bool want_c = cx.has_value() && ctx->needs_input_grad(place++);
    std::vector<bool> want_weight;
    bool any_weight = false;
    for (size_t i = 0; i < weights.size(); ++i) {
      want_weight.push_back(ctx->needs_input_grad(place++));
      any_weight = any_weight || want_weight.back();
    }
    // Of batches (is_grads_batched) torch has no fallback for an operator of lists of tensors.
    constexpr c10::DispatchKeySet kBatched{c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched};
    const bool batched = std::any_of(grads.begin(), grads.end(), [&](const Tensor& grad) {
      return grad.defined() && grad.key_set().has_any(kBatched);
    });
    if (at::GradMode::is_enabled() || batched) {
      replay(grads, input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse,
             {want_input, want_h, want_c}, want_weight, result);
      return result;
    }
    auto [grad_input, grad_h, grad_c, grad_weights] =
        call_backward(optional_of(grads[0]), optional_of(grads[1]), optional_of(grads[2]), input, batch_sizes,
                      hx, cx, weights, kept[4], kept[5], kept[6], mode, bias, projected, reverse,
                      {want_input, want_h, want_c, any_weight});
    if (want_input) result[0] = grad_input;
    if (want_h) result[2] = grad_h;
    if (want_c) result[3] = grad_c;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (want_weight[i]) result[4 + i] = grad_weights[i];
    }
    return result;
  }

 private:
  // The gradient of the same layer from torch's operators, which has a gradient with create_graph. Aliases
  // keep the paths apart that lead from one argument to another.
  static void replay(const variable_list& grads, const Tensor& input, const Optional& batch_sizes,
                     const Tensor& hx, const Optional& cx, const variable_list& weights,
                     std::string_view mode, bool bias, bool projected, bool reverse, std::array<bool, 3> want,
                     const std::vector<bool>& want_weight, variable_list& result) {
    const bool create_graph = at::GradMode::is_enabled();
    const at::AutoGradMode recording(true);
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    variable_list leaves;
    std::vector<size_t> places;
    const auto leaf = [&](const Tensor& tensor, bool wanted, size_t place) {
      if (!wanted) return tensor;
      leaves.push_back(at::alias(tensor));
      places.push_back(place);
      return leaves.back();
    };
    const Tensor x = leaf(input, want[0], 0), h = leaf(hx, want[1], 2);
    const Optional c = cx.has_value() ? Optional(leaf(*cx, want[2], 3)) : cx;
    variable_list w;
    for (size_t i = 0; i < weights.size(); ++i) w.push_back(leaf(weights[i], want_weight[i], 4 + i));
    const auto [output, h_n, c_n] =
        recurrent_reference(x, batch_sizes, h, c, w, mode, bias, projected, reverse);
    variable_list outputs, given;
    const std::array<Tensor, 3> all{output, h_n, c_n};
    for (size_t i = 0; i < 3; ++i) {
      if (!grads[i].defined() || !all[i].requires_grad()) continue;
      outputs.push_back(all[i]);
      given.push_back(grads[i]);
    }
    const auto found = torch::autograd::grad(outputs, leaves, given, true, create_graph, true);
    for (size_t i = 0; i < places.size(); ++i) result[places[i]] = found[i];
  }
};

Layer layer_autograd(const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                     at::TensorList weights, std::string_view mode, bool bias, bool projected, bool reverse) {
  if (differentiable(input, hx, cx, weights)) {
    auto outputs =
        RecurrentLayerFunction::apply(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
    return {std::move(outputs[0]), std::move(outputs[1]), std::move(outputs[2])};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_layer(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
}

// As torch does: on the CPU the GRU's state, which is blended with the gates, keeps its dtype.
template <c10::DeviceType device>
Layer layer_autocast(const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Optional& cx,
                     at::TensorList weights, std::string_view mode, bool bias, bool projected, bool reverse) {
  const Autocast cast(device);
  std::vector<Tensor> cast_weights;
  for (const Tensor& weight : weights) cast_weights.push_back(cast(weight));
  auto [output, h_n, c_n] =
      call_layer(cast(input), batch_sizes, cast(hx), cast(cx), cast_weights, mode, bias, projected, reverse);
  if (device == c10::DeviceType::CPU && mode == "gru" && hx.scalar_type() == at::kFloat) {
    return {output.to(at::kFloat), h_n.to(at::kFloat), c_n};
  }
  return {output, h_n, c_n};
}

// The public operators, of one layer and direction.

std::vector<Tensor> weight_list(std::initializer_list<Tensor> weights, const Optional& b_ih,
                                const Optional& b_hh) {
  std::vector<Tensor> list(weights);
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "a layer has both biases or none");
  if (b_ih.has_value()) {
    list.push_back(*b_ih);
    list.push_back(*b_hh);
  }
  return list;
}

void check_state(const Tensor& state) {
  TORCH_CHECK(state.dim() == 2, "Expected hidden to be 2D, got ", state.dim(), "D instead");
}

std::tuple<Tensor, Tensor> rnn_layer(const Tensor& input, const Optional& batch_sizes, const Tensor& hx,
                                     const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                     const Optional& b_hh, std::string_view nonlinearity, bool reverse) {
  TORCH_CHECK(nonlinearity == "tanh" || nonlinearity == "relu", "Unknown nonlinearity: ", nonlinearity);
  check_state(hx);
  auto [output, h_n, c_n] =
      call_layer(input, batch_sizes, hx.unsqueeze(0), {}, weight_list({w_ih, w_hh}, b_ih, b_hh), nonlinearity,
                 b_ih.has_value(), false, reverse);
  return {output, h_n.squeeze(0)};
}

std::tuple<Tensor, Tensor> gru_layer(const Tensor& input, const Optional& batch_sizes, const Tensor& hx,
                                     const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                     const Optional& b_hh, bool reverse) {
  check_state(hx);
  auto [output, h_n, c_n] =
      call_layer(input, batch_sizes, hx.unsqueeze(0), {}, weight_list({w_ih, w_hh}, b_ih, b_hh), "gru",
                 b_ih.has_value(), false, reverse);
  return {output, h_n.squeeze(0)};
}

Layer lstm_layer(const Tensor& input, const Optional& batch_sizes, const Tensor& hx, const Tensor& cx,
                 const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh,
                 const Optional& w_hr, bool reverse) {
  check_state(hx);
  check_state(cx);
  auto weights = weight_list({w_ih, w_hh}, b_ih, b_hh);
  if (w_hr.has_value()) weights.push_back(*w_hr);
  auto [output, h_n, c_n] = call_layer(input, batch_sizes, hx.unsqueeze(0), cx.unsqueeze(0), weights, "lstm",
                                       b_ih.has_value(), w_hr.has_value(), reverse);
  return {output, h_n.squeeze(0), c_n.squeeze(0)};
}

// All layers.

Tensor state_of(const Optional& given, const Tensor& like, const char* what, c10::SymInt layers,
                c10::SymInt batch, c10::SymInt width) {
  if (!given.has_value()) return at::zeros_symint({layers, batch, width}, like.options());
  TORCH_CHECK(given->dim() == 3 && given->sym_size(0) == layers && given->sym_size(1) == batch &&
                  given->sym_size(2) == width,
              "Expected ", what, " size (", layers, ", ", batch, ", ", width, "), got ", given->sym_sizes());
  return *given;
}

Layer recurrent(const Tensor& given_input, const Optional& batch_sizes, const Optional& hx,
                const Optional& cx, at::TensorList weights, std::string_view mode, int64_t num_layers,
                bool bias, double dropout, bool training, bool bidirectional, bool batch_first,
                bool projected) {
  const bool packed = batch_sizes.has_value(), lstm = mode == "lstm";
  const bool tokens = given_input.scalar_type() == at::kLong;
  const size_t directions = bidirectional ? 2 : 1;
  const size_t each = directions * (2 + (bias ? 2 : 0) + (projected ? 1 : 0));
  TORCH_CHECK(weights.size() == each * static_cast<size_t>(num_layers), "expected ",
              each * static_cast<size_t>(num_layers), " weights, but got ", weights.size());
  const int64_t dims = (packed ? 2 : 3) - tokens;
  TORCH_CHECK(given_input.dim() == dims, "input must have ", dims, " dimensions, got ", given_input.dim());
  TORCH_CHECK(tokens || given_input.sym_size(-1) == weights[0].sym_size(1),
              "input.size(-1) must be equal to input_size. Expected ", weights[0].sym_size(1), ", got ",
              given_input.sym_size(-1));
  Tensor input = batch_first && !packed ? given_input.transpose(0, 1) : given_input;
  // Once for both passes.
  if (tokens) input = input.contiguous();
  const auto layers = c10::SymInt(static_cast<int64_t>(directions) * num_layers);
  TORCH_CHECK(!packed || hx.has_value(), "a packed sequence comes with its initial state");
  const auto batch = packed ? hx->sym_size(1) : input.sym_size(1);
  const Tensor& like = tokens ? weights[0] : input;
  const Tensor h = state_of(hx, like, "hidden", layers, batch, weights[1].sym_size(1));
  Tensor c;
  if (lstm) {
    const auto hidden = weights[0].sym_size(0) / 4;
    c = state_of(cx, like, hx.has_value() ? "hidden[1]" : "cell", layers, batch, hidden);
  }
  if (num_layers == 1) {
    auto [output, h_n, c_n] = call_layer(input, batch_sizes, h, lstm ? Optional(c) : Optional(), weights,
                                         mode, bias, projected, false);
    return {batch_first && !packed ? output.transpose(0, 1) : output, h_n, c_n};
  }
  const auto count = static_cast<int64_t>(directions);
  std::vector<Tensor> h_n, c_n;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const auto part = [&](const Tensor& state) { return state.narrow(0, layer * count, count); };
    auto [output, h_last, c_last] =
        call_layer(input, batch_sizes, part(h), lstm ? Optional(part(c)) : Optional(),
                   weights.slice(static_cast<size_t>(layer) * each, each), mode, bias, projected, false);
    h_n.push_back(h_last);
    c_n.push_back(c_last);
    input = output;
    if (dropout > 0 && training && layer + 1 < num_layers) input = at::dropout(input, dropout, true);
  }
  return {batch_first && !packed ? input.transpose(0, 1) : input, at::cat(h_n), lstm ? at::cat(c_n) : c_n[0]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "rnn_layer(Tensor input, Tensor? batch_sizes, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, str nonlinearity='tanh', bool reverse=False) -> (Tensor output, Tensor h_n)",
      rnn_layer);
  m.def(
      "gru_layer(Tensor input, Tensor? batch_sizes, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, bool reverse=False) -> (Tensor output, Tensor h_n)",
      gru_layer);
  m.def(
      "lstm_layer(Tensor input, Tensor? batch_sizes, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, "
      "Tensor? b_ih, Tensor? b_hh, Tensor? w_hr=None, bool reverse=False) -> "
      "(Tensor output, Tensor h_n, Tensor c_n)",
      lstm_layer);
  m.def(
      "_recurrent(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, str mode, "
      "int num_layers, bool bias, float dropout, bool training, bool bidirectional, bool batch_first, "
      "bool projected) -> (Tensor output, Tensor h_n, Tensor c_n)",
      recurrent);
  m.def(
      "_recurrent_layer(Tensor input, Tensor? batch_sizes, Tensor hx, Tensor? cx, Tensor[] weights, str "
      "mode, "
      "bool bias, bool projected, bool reverse) -> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def(
      "_recurrent_layer_forward(Tensor input, Tensor? batch_sizes, Tensor hx, Tensor? cx, Tensor[] weights, "
      "str mode, bool bias, bool projected, bool reverse, bool save) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor saved, Tensor cells)");
  m.def(
      "_recurrent_layer_backward(Tensor? grad_output, Tensor? grad_h, Tensor? grad_c, Tensor input, "
      "Tensor? batch_sizes, Tensor hx, Tensor? cx, Tensor[] weights, Tensor output, Tensor saved, "
      "Tensor cells, str mode, bool bias, bool projected, bool reverse, bool[4] output_mask) -> "
      "(Tensor, Tensor, Tensor, Tensor[])");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("_recurrent_layer", layer_autograd);
  for (const char* name : {"_recurrent_layer_forward", "_recurrent_layer_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(d2lfast, AutocastCPU, m) {
  m.impl("_recurrent_layer", layer_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(d2lfast, AutocastCUDA, m) {
  m.impl("_recurrent_layer", layer_autocast<c10::DeviceType::CUDA>);
}

}  // namespace d2lfast::ops
