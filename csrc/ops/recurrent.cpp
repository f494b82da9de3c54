#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "activation.h"
#include "autocast.h"
#include "differentiable.h"
#include "gradient_guard.h"
#include "optional_tensor.h"

// Schemas, autograd and autocast of the recurrent cells.

namespace d2lfast::ops {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Pair = std::tuple<Tensor, Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;
using Mask = std::array<bool, 6>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using LSTMGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor call_rnn(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const Optional& b_ih, const Optional& b_hh, std::string_view nonlinearity) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("d2lfast::rnn_cell", "").typed<decltype(call_rnn)>();
  return op.call(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity);
}

Tensor call_gru(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                const Optional& b_ih, const Optional& b_hh) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("d2lfast::gru_cell", "").typed<decltype(call_gru)>();
  return op.call(input, hx, w_ih, w_hh, b_ih, b_hh);
}

Pair call_lstm(const Tensor& input, const Tensor& hx, const Tensor& cx, const Tensor& w_ih,
               const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("d2lfast::lstm_cell", "").typed<decltype(call_lstm)>();
  return op.call(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
}

Triple call_gru_forward(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                        const Optional& b_ih, const Optional& b_hh) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_gru_cell_forward", "")
                             .typed<decltype(call_gru_forward)>();
  return op.call(input, hx, w_ih, w_hh, b_ih, b_hh);
}

Triple call_lstm_forward(const Tensor& input, const Tensor& hx, const Tensor& cx, const Tensor& w_ih,
                         const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_lstm_cell_forward", "")
                             .typed<decltype(call_lstm_forward)>();
  return op.call(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
}

Grads call_rnn_backward(const Tensor& grad, const Tensor& input, const Tensor& hx, const Tensor& w_ih,
                        const Tensor& w_hh, const Tensor& output, std::string_view nonlinearity, Mask mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_rnn_cell_backward", "")
                             .typed<decltype(call_rnn_backward)>();
  const GradientGuard guard;
  return op.call(grad, input, hx, w_ih, w_hh, output, nonlinearity, mask);
}

Grads call_gru_backward(const Tensor& grad, const Tensor& input, const Tensor& hx, const Tensor& w_ih,
                        const Tensor& w_hh, const Tensor& gates, const Tensor& candidate, Mask mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_gru_cell_backward", "")
                             .typed<decltype(call_gru_backward)>();
  const GradientGuard guard;
  return op.call(grad, input, hx, w_ih, w_hh, gates, candidate, mask);
}

LSTMGrads call_lstm_backward(const Optional& grad_h, const Optional& grad_c, const Tensor& input,
                             const Tensor& hx, const Tensor& cx, const Tensor& w_ih, const Tensor& w_hh,
                             const Tensor& gates, const Tensor& cell, std::array<bool, 7> mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("d2lfast::_lstm_cell_backward", "")
                             .typed<decltype(call_lstm_backward)>();
  const GradientGuard guard;
  return op.call(grad_h, grad_c, input, hx, cx, w_ih, w_hh, gates, cell, mask);
}

// needs_input_grad counts the tensors that were given, the biases last.
template <size_t kCount>
std::array<bool, kCount> grad_mask(AutogradContext* ctx, const Variable& b_ih, const Variable& b_hh) {
  std::array<bool, kCount> mask{};
  size_t given_tensors = 0;
  for (; given_tensors < kCount - 2; ++given_tensors)
    mask[given_tensors] = ctx->needs_input_grad(given_tensors);
  if (b_ih.defined()) mask[kCount - 2] = ctx->needs_input_grad(given_tensors++);
  if (b_hh.defined()) mask[kCount - 1] = ctx->needs_input_grad(given_tensors);
  return mask;
}

// The gradients of the two products and their biases from differentiable operators. `at` is the place of
// w_ih among the gradients; input and hx are the first two.
void product_gradients(variable_list& grads, const Tensor& grad_ih, const Tensor& grad_hh,
                       const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                       const bool* mask, int at) {
  if (mask[0]) grads[0] = grad_ih.mm(w_ih);
  if (mask[1]) grads[1] = grad_hh.mm(w_hh);
  if (mask[at]) grads[at] = grad_ih.t().mm(input);
  if (mask[at + 1]) grads[at + 1] = grad_hh.t().mm(hx);
  if (mask[at + 2]) grads[at + 2] = grad_ih.sum(0);
  if (mask[at + 3]) grads[at + 3] = grad_hh.sum(0);
}

class RNNCellFunction : public torch::autograd::Function<RNNCellFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const Variable& hx,
                          const Variable& w_ih, const Variable& w_hh, const Optional& b_ih,
                          const Optional& b_hh, std::string_view nonlinearity) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Variable output = call_rnn(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity);
    ctx->save_for_backward({input, hx, w_ih, w_hh, b_ih.value_or(Tensor()), b_hh.value_or(Tensor()), output});
    ctx->saved_data["nonlinearity"] = std::string(nonlinearity);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(7);
    const Tensor& grad = grad_outputs[0];
    if (!grad.defined()) return grads;
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &hx = saved[1], &w_ih = saved[2], &w_hh = saved[3], &output = saved[6];
    const auto mask = grad_mask<6>(ctx, saved[4], saved[5]);
    const auto& nonlinearity = ctx->saved_data["nonlinearity"].toStringRef();
    if (at::GradMode::is_enabled()) {
      // create_graph: the gradient from differentiable operators.
      const Tensor grad_gates = activation_backward(grad, output, parse_activation(nonlinearity));
      product_gradients(grads, grad_gates, grad_gates, input, hx, w_ih, w_hh, mask.data(), 2);
      return grads;
    }
    std::tie(grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]) =
        call_rnn_backward(grad, input, hx, w_ih, w_hh, output, nonlinearity, mask);
    for (int i = 0; i < 6; ++i) {
      if (!mask[i]) grads[i] = Variable();
    }
    return grads;
  }
};

class GRUCellFunction : public torch::autograd::Function<GRUCellFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& input, const Variable& hx,
                          const Variable& w_ih, const Variable& w_hh, const Optional& b_ih,
                          const Optional& b_hh) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, gates, candidate] = call_gru_forward(input, hx, w_ih, w_hh, b_ih, b_hh);
    ctx->save_for_backward(
        {input, hx, w_ih, w_hh, b_ih.value_or(Tensor()), b_hh.value_or(Tensor()), gates, candidate});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(6);
    const Tensor& grad = grad_outputs[0];
    if (!grad.defined()) return grads;
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &hx = saved[1], &w_ih = saved[2], &w_hh = saved[3];
    const auto mask = grad_mask<6>(ctx, saved[4], saved[5]);
    if (at::GradMode::is_enabled()) {
      // create_graph: gates and gradient from differentiable operators.
      const auto ih = at::linear(input, w_ih, optional_of(saved[4])).chunk(3, 1);
      const auto hh = at::linear(hx, w_hh, optional_of(saved[5])).chunk(3, 1);
      const Tensor r = at::sigmoid(ih[0] + hh[0]), z = at::sigmoid(ih[1] + hh[1]);
      const Tensor n = at::tanh(ih[2] + r * hh[2]);
      const Tensor grad_n = grad * (1 - z) * (1 - n * n);
      const Tensor grad_z = grad * (hx - n) * (1 - z) * z;
      const Tensor grad_r = grad_n * hh[2] * (1 - r) * r;
      product_gradients(grads, at::cat({grad_r, grad_z, grad_n}, 1), at::cat({grad_r, grad_z, grad_n * r}, 1),
                        input, hx, w_ih, w_hh, mask.data(), 2);
      if (mask[1]) grads[1] = grads[1] + grad * z;
      return grads;
    }
    std::tie(grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]) =
        call_gru_backward(grad, input, hx, w_ih, w_hh, saved[6], saved[7], mask);
    for (int i = 0; i < 6; ++i) {
      if (!mask[i]) grads[i] = Variable();
    }
    return grads;
  }
};

class LSTMCellFunction : public torch::autograd::Function<LSTMCellFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& input, const Variable& hx,
                               const Variable& cx, const Variable& w_ih, const Variable& w_hh,
                               const Optional& b_ih, const Optional& b_hh) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, cell, gates] = call_lstm_forward(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {input, hx, cx, w_ih, w_hh, b_ih.value_or(Tensor()), b_hh.value_or(Tensor()), gates, cell});
    return {output, cell};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(7);
    Tensor grad_h = grad_outputs[0], grad_c = grad_outputs[1];
    if (!grad_h.defined() && !grad_c.defined()) return grads;
    const auto saved = ctx->get_saved_variables();
    const auto &input = saved[0], &hx = saved[1], &cx = saved[2], &w_ih = saved[3], &w_hh = saved[4];
    const auto mask = grad_mask<7>(ctx, saved[5], saved[6]);
    if (at::GradMode::is_enabled()) {
      // create_graph: gates and gradient from differentiable operators.
      const auto gates =
          (at::linear(input, w_ih, optional_of(saved[5])) + at::linear(hx, w_hh, optional_of(saved[6])))
              .chunk(4, 1);
      const Tensor i = at::sigmoid(gates[0]), f = at::sigmoid(gates[1]);
      const Tensor g = at::tanh(gates[2]), o = at::sigmoid(gates[3]);
      const Tensor squashed = at::tanh(f * cx + i * g);
      if (!grad_h.defined()) grad_h = at::zeros_like(grad_c);
      Tensor grad_cell = grad_h * o * (1 - squashed * squashed);
      if (grad_c.defined()) grad_cell = grad_cell + grad_c;
      const Tensor grad_gates = at::cat({grad_cell * g * (1 - i) * i, grad_cell * cx * (1 - f) * f,
                                         grad_cell * i * (1 - g * g), grad_h * squashed * (1 - o) * o},
                                        1);
      product_gradients(grads, grad_gates, grad_gates, input, hx, w_ih, w_hh, mask.data(), 3);
      if (mask[2]) grads[2] = grad_cell * f;
      return grads;
    }
    std::tie(grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]) = call_lstm_backward(
        optional_of(grad_h), optional_of(grad_c), input, hx, cx, w_ih, w_hh, saved[7], saved[8], mask);
    for (int i = 0; i < 7; ++i) {
      if (!mask[i]) grads[i] = Variable();
    }
    return grads;
  }
};

Tensor rnn_autograd(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh, std::string_view nonlinearity) {
  if (differentiable(input, hx, w_ih, w_hh, b_ih, b_hh)) {
    return RNNCellFunction::apply(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_rnn(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity);
}

Tensor gru_autograd(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh) {
  if (differentiable(input, hx, w_ih, w_hh, b_ih, b_hh)) {
    return GRUCellFunction::apply(input, hx, w_ih, w_hh, b_ih, b_hh);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_gru(input, hx, w_ih, w_hh, b_ih, b_hh);
}

Pair lstm_autograd(const Tensor& input, const Tensor& hx, const Tensor& cx, const Tensor& w_ih,
                   const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh) {
  if (differentiable(input, hx, cx, w_ih, w_hh, b_ih, b_hh)) {
    auto outputs = LSTMCellFunction::apply(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
    return {std::move(outputs[0]), std::move(outputs[1])};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_lstm(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
}

// On the CPU torch casts the operands of the products only: the state that is blended with the gates
// decides the dtype of the result. On CUDA it casts all.
template <c10::DeviceType device>
Tensor like_state(Tensor result, const Tensor& state) {
  return device == c10::DeviceType::CPU && state.scalar_type() == at::kFloat ? result.to(at::kFloat) : result;
}

template <c10::DeviceType device>
Tensor rnn_autocast(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh, std::string_view nonlinearity) {
  const Autocast cast(device);
  return call_rnn(cast(input), cast(hx), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh), nonlinearity);
}

template <c10::DeviceType device>
Tensor gru_autocast(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh) {
  const Autocast cast(device);
  return like_state<device>(call_gru(cast(input), cast(hx), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh)),
                            hx);
}

template <c10::DeviceType device>
Pair lstm_autocast(const Tensor& input, const Tensor& hx, const Tensor& cx, const Tensor& w_ih,
                   const Tensor& w_hh, const Optional& b_ih, const Optional& b_hh) {
  const Autocast cast(device);
  auto [output, cell] =
      call_lstm(cast(input), cast(hx), cast(cx), cast(w_ih), cast(w_hh), cast(b_ih), cast(b_hh));
  return {like_state<device>(output, cx), like_state<device>(cell, cx)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(d2lfast, m) {
  m.def(
      "rnn_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "str nonlinearity) -> Tensor");
  m.def("gru_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> Tensor");
  m.def(
      "lstm_cell(Tensor input, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh) -> (Tensor, Tensor)");
  m.def(
      "_gru_cell_forward(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> "
      "(Tensor output, Tensor gates, Tensor candidate)");
  m.def(
      "_lstm_cell_forward(Tensor input, Tensor hx, Tensor cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh) -> (Tensor output, Tensor cell, Tensor gates)");
  m.def(
      "_rnn_cell_backward(Tensor grad_output, Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, "
      "Tensor output, str nonlinearity, bool[6] output_mask) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_gru_cell_backward(Tensor grad_output, Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, "
      "Tensor gates, Tensor candidate, bool[6] output_mask) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_lstm_cell_backward(Tensor? grad_output, Tensor? grad_cell, Tensor input, Tensor hx, Tensor cx, "
      "Tensor w_ih, Tensor w_hh, Tensor gates, Tensor cell, bool[7] output_mask) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2lfast, Autograd, m) {
  m.impl("rnn_cell", rnn_autograd);
  m.impl("gru_cell", gru_autograd);
  m.impl("lstm_cell", lstm_autograd);
  for (const char* name : {"_gru_cell_forward", "_lstm_cell_forward", "_rnn_cell_backward",
                           "_gru_cell_backward", "_lstm_cell_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

TORCH_LIBRARY_IMPL(d2lfast, AutocastCPU, m) {
  m.impl("rnn_cell", rnn_autocast<c10::DeviceType::CPU>);
  m.impl("gru_cell", gru_autocast<c10::DeviceType::CPU>);
  m.impl("lstm_cell", lstm_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(d2lfast, AutocastCUDA, m) {
  m.impl("rnn_cell", rnn_autocast<c10::DeviceType::CUDA>);
  m.impl("gru_cell", gru_autocast<c10::DeviceType::CUDA>);
  m.impl("lstm_cell", lstm_autocast<c10::DeviceType::CUDA>);
}

}  // namespace d2lfast::ops
