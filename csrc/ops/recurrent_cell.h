#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "../kernels/recurrent.h"
#include "dtype.h"
#include "optional_tensor.h"

// The recurrent cells of every device. The matrix products are the vendor's (at::mm, at::addmm); biases,
// gates and state are one pointwise pass, which is a device's own.
namespace d2lfast::ops {

using at::Tensor;
using Optional = std::optional<Tensor>;
using CellGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Activation nonlinearity_of(std::string_view name) {
  if (name == "tanh") return Activation::kTanh;
  if (name == "relu") return Activation::kReLU;
  TORCH_CHECK(false, "Unknown nonlinearity: ", name);
}

struct CellShape {
  int64_t batch, hidden, gates;  // gates: G*H
  DType dtype;
};

// The errors of the products that torch's cells consist of.
inline void check_factors(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "mat1 and mat2 must have the same dtype, but got ",
              toString(a.scalar_type()), " and ", toString(b.scalar_type()));
  TORCH_CHECK(a.device() == b.device(), "Expected all tensors to be on the same device, but got ", a.device(),
              " and ", b.device());
}

inline void check_state(const Tensor& input, const Tensor& state, int64_t hidden) {
  TORCH_CHECK(state.dim() < 1 || input.size(0) == state.size(0), "Input batch size ", input.size(0),
              " doesn't match hidden0 batch size ", state.dim() < 1 ? 0 : state.size(0));
  TORCH_CHECK(state.dim() < 2 || state.size(1) == hidden, "hidden0 has inconsistent hidden_size: got ",
              state.dim() < 2 ? 0 : state.size(1), ", expected ", hidden);
  TORCH_CHECK(state.dim() == 2, "Expected hidden to be 2D, got ", state.dim(), "D instead");
}

inline CellShape check_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                            const Optional& b_ih, const Optional& b_hh, int64_t gates, const char* op) {
  input.size(1);  // torch's IndexError for one dimension
  TORCH_CHECK(input.dim() == 2, "Expected input to be 2D, got ", input.dim(), "D instead");
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2, "expected weights of 2 dimensions, but got ", w_ih.dim(),
              " and ", w_hh.dim());
  TORCH_CHECK(input.size(1) == w_ih.size(1), "input has inconsistent input_size: got ", input.size(1),
              " expected ", w_ih.size(1));
  TORCH_CHECK(input.is_floating_point(), op, " takes floating-point tensors, but got ",
              toString(input.scalar_type()));
  const CellShape shape{input.size(0), w_hh.size(1), gates * w_hh.size(1), kernel_dtype(input, op)};
  check_state(input, hx, shape.hidden);
  TORCH_CHECK(w_ih.size(0) == shape.gates && w_hh.size(0) == shape.gates, "expected weights of ", shape.gates,
              " rows, but got ", w_ih.size(0), " and ", w_hh.size(0));
  check_factors(input, w_ih);
  check_factors(hx, w_hh);
  check_factors(input, w_hh);
  for (const Optional* bias : {&b_ih, &b_hh}) {
    if (!given(*bias)) continue;
    TORCH_CHECK((*bias)->dim() == 1 && (*bias)->size(0) == shape.gates, "expected biases of ", shape.gates,
                " elements, but got a bias of size ", (*bias)->sizes());
    check_factors(input, **bias);
  }
  return shape;
}

inline Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// The strides of torch's result on the CPU, where its first operand is the state.
inline Tensor in_order_of(const Tensor& state, const Tensor& output) {
  const bool columns = state.size(0) > 1 && state.stride(0) > 0 && state.stride(0) < state.stride(1);
  return state.is_cpu() && columns ? output.t().contiguous().t() : output;
}

inline CellShape shape_of(const Tensor& input, const Tensor& w_hh, const char* op) {
  return {input.size(0), w_hh.size(1), w_hh.size(0), kernel_dtype(input, op)};
}

inline Tensor product_if(bool wanted, const Tensor& a, const Tensor& b) {
  return wanted ? at::mm(a, b) : nothing(a);
}

// Device: Guard, and the functions of RecurrentKernels by name for a whole batch.
template <typename Device>
struct RecurrentCells {
  // Sums of the rows of `grad` into two vectors, in an order that does not depend on the threads.
  static std::tuple<Tensor, Tensor> bias_gradients(const Tensor& grad, const CellShape& shape, bool first,
                                                   bool second) {
    Tensor a = first ? at::empty({shape.gates}, grad.options()) : nothing(grad);
    Tensor b = second ? at::empty({shape.gates}, grad.options()) : nothing(grad);
    if (!first && !second) return {a, b};
    Device::column_sums(shape.dtype, grad.const_data_ptr(), shape.batch, shape.gates,
                        first ? a.data_ptr() : nullptr, second ? b.data_ptr() : nullptr);
    return {a, b};
  }

  static Tensor rnn_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                         const Optional& b_ih, const Optional& b_hh, std::string_view nonlinearity) {
    const typename Device::Guard guard(input.device());
    const Activation activation = nonlinearity_of(nonlinearity);
    const CellShape shape = check_cell(input, hx, w_ih, w_hh, b_ih, b_hh, 1, "d2lfast::rnn_cell");
    Tensor output = at::mm(input, w_ih.t());
    at::addmm_out(output, output, hx, w_hh.t());
    const Tensor bias_ih = contiguous_or_none(b_ih), bias_hh = contiguous_or_none(b_hh);
    RecurrentForward params{};
    params.hidden = shape.hidden;
    params.activation = activation;
    params.gates = output.data_ptr();
    params.b_ih = data_or_null(bias_ih);
    params.b_hh = data_or_null(bias_hh);
    Device::rnn_forward(shape.dtype, params, shape.batch);
    return output;
  }

  static std::tuple<Tensor, Tensor, Tensor> gru_cell_forward(const Tensor& input, const Tensor& hx,
                                                             const Tensor& w_ih, const Tensor& w_hh,
                                                             const Optional& b_ih, const Optional& b_hh) {
    const typename Device::Guard guard(input.device());
    const CellShape shape = check_cell(input, hx, w_ih, w_hh, b_ih, b_hh, 3, "d2lfast::gru_cell");
    Tensor gates = at::mm(input, w_ih.t());
    const Tensor hidden_gates = at::mm(hx, w_hh.t());
    const Tensor bias_ih = contiguous_or_none(b_ih), bias_hh = contiguous_or_none(b_hh);
    const Tensor state = hx.contiguous();
    Tensor output = at::empty({shape.batch, shape.hidden}, input.options());
    Tensor candidate = at::empty({shape.batch, shape.hidden}, input.options());
    RecurrentForward params{};
    params.hidden = shape.hidden;
    params.gates = gates.data_ptr();
    params.hidden_gates = hidden_gates.const_data_ptr();
    params.b_ih = data_or_null(bias_ih);
    params.b_hh = data_or_null(bias_hh);
    params.state = state.const_data_ptr();
    params.candidate = candidate.data_ptr();
    params.output = output.data_ptr();
    Device::gru_forward(shape.dtype, params, shape.batch);
    return {in_order_of(hx, output), gates, candidate};
  }

  static Tensor gru_cell(const Tensor& input, const Tensor& hx, const Tensor& w_ih, const Tensor& w_hh,
                         const Optional& b_ih, const Optional& b_hh) {
    return std::get<0>(gru_cell_forward(input, hx, w_ih, w_hh, b_ih, b_hh));
  }

  static std::tuple<Tensor, Tensor, Tensor> lstm_cell_forward(const Tensor& input, const Tensor& hx,
                                                              const Tensor& cx, const Tensor& w_ih,
                                                              const Tensor& w_hh, const Optional& b_ih,
                                                              const Optional& b_hh) {
    const typename Device::Guard guard(input.device());
    const CellShape shape = check_cell(input, hx, w_ih, w_hh, b_ih, b_hh, 4, "d2lfast::lstm_cell");
    check_state(input, cx, shape.hidden);
    check_factors(input, cx);
    Tensor gates = at::mm(input, w_ih.t());
    at::addmm_out(gates, gates, hx, w_hh.t());
    const Tensor bias_ih = contiguous_or_none(b_ih), bias_hh = contiguous_or_none(b_hh);
    const Tensor state = cx.contiguous();
    Tensor output = at::empty({shape.batch, shape.hidden}, input.options());
    Tensor cell = at::empty({shape.batch, shape.hidden}, input.options());
    RecurrentForward params{};
    params.hidden = shape.hidden;
    params.gates = gates.data_ptr();
    params.b_ih = data_or_null(bias_ih);
    params.b_hh = data_or_null(bias_hh);
    params.state = state.const_data_ptr();
    params.cell = cell.data_ptr();
    params.output = output.data_ptr();
    Device::lstm_forward(shape.dtype, params, shape.batch);
    return {output, cell, gates};
  }

  static std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& hx, const Tensor& cx,
                                              const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                                              const Optional& b_hh) {
    const typename Device::Guard guard(input.device());
    auto [output, cell, gates] = lstm_cell_forward(input, hx, cx, w_ih, w_hh, b_ih, b_hh);
    return {output, cell};
  }

  static CellGrads rnn_cell_backward(const Tensor& grad_output, const Tensor& input, const Tensor& hx,
                                     const Tensor& w_ih, const Tensor& w_hh, const Tensor& output,
                                     std::string_view nonlinearity, std::array<bool, 6> mask) {
    const typename Device::Guard guard(input.device());
    const CellShape shape = shape_of(input, w_hh, "d2lfast::rnn_cell");
    const Tensor grad = grad_output.contiguous(), activated = output.contiguous();
    Tensor grad_gates = at::empty({shape.batch, shape.hidden}, input.options());
    RecurrentBackward params{};
    params.hidden = shape.hidden;
    params.activation = nonlinearity_of(nonlinearity);
    params.grad_output = grad.const_data_ptr();
    params.gates = activated.const_data_ptr();
    params.grad_gates = grad_gates.data_ptr();
    Device::rnn_backward(shape.dtype, params, shape.batch);
    auto [grad_b_ih, grad_b_hh] = bias_gradients(grad_gates, shape, mask[4], mask[5]);
    const Tensor transposed = grad_gates.t();
    return {product_if(mask[0], grad_gates, w_ih),
            product_if(mask[1], grad_gates, w_hh),
            product_if(mask[2], transposed, input),
            product_if(mask[3], transposed, hx),
            grad_b_ih,
            grad_b_hh};
  }

  static CellGrads gru_cell_backward(const Tensor& grad_output, const Tensor& input, const Tensor& hx,
                                     const Tensor& w_ih, const Tensor& w_hh, const Tensor& gates,
                                     const Tensor& candidate, std::array<bool, 6> mask) {
    const typename Device::Guard guard(input.device());
    const CellShape shape = shape_of(input, w_hh, "d2lfast::gru_cell");
    const Tensor grad = grad_output.contiguous(), state = hx.contiguous(), activated = gates.contiguous(),
                 hidden_part = candidate.contiguous();
    Tensor grad_gates = at::empty({shape.batch, shape.gates}, input.options());
    Tensor grad_hidden_gates = at::empty({shape.batch, shape.gates}, input.options());
    Tensor grad_hx = at::empty({shape.batch, shape.hidden}, input.options());
    RecurrentBackward params{};
    params.hidden = shape.hidden;
    params.grad_output = grad.const_data_ptr();
    params.gates = activated.const_data_ptr();
    params.state = state.const_data_ptr();
    params.candidate = hidden_part.const_data_ptr();
    params.grad_gates = grad_gates.data_ptr();
    params.grad_hidden_gates = grad_hidden_gates.data_ptr();
    params.grad_state = grad_hx.data_ptr();
    Device::gru_backward(shape.dtype, params, shape.batch);
    if (mask[1]) at::addmm_out(grad_hx, grad_hx, grad_hidden_gates, w_hh);
    return {product_if(mask[0], grad_gates, w_ih),
            mask[1] ? grad_hx : nothing(input),
            product_if(mask[2], grad_gates.t(), input),
            product_if(mask[3], grad_hidden_gates.t(), hx),
            std::get<0>(bias_gradients(grad_gates, shape, mask[4], false)),
            std::get<0>(bias_gradients(grad_hidden_gates, shape, mask[5], false))};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell_backward(
      const Optional& grad_output, const Optional& grad_cell, const Tensor& input, const Tensor& hx,
      const Tensor& cx, const Tensor& w_ih, const Tensor& w_hh, const Tensor& gates, const Tensor& cell,
      std::array<bool, 7> mask) {
    const typename Device::Guard guard(input.device());
    const CellShape shape = shape_of(input, w_hh, "d2lfast::lstm_cell");
    const Tensor grad_h = contiguous_or_none(grad_output), grad_c = contiguous_or_none(grad_cell),
                 state = cx.contiguous(), activated = gates.contiguous(), new_cell = cell.contiguous();
    Tensor grad_gates = at::empty({shape.batch, shape.gates}, input.options());
    Tensor grad_cx = at::empty({shape.batch, shape.hidden}, input.options());
    RecurrentBackward params{};
    params.hidden = shape.hidden;
    params.grad_output = data_or_null(grad_h);
    params.grad_cell = data_or_null(grad_c);
    params.gates = activated.const_data_ptr();
    params.state = state.const_data_ptr();
    params.cell = new_cell.const_data_ptr();
    params.grad_gates = grad_gates.data_ptr();
    params.grad_state = grad_cx.data_ptr();
    Device::lstm_backward(shape.dtype, params, shape.batch);
    auto [grad_b_ih, grad_b_hh] = bias_gradients(grad_gates, shape, mask[5], mask[6]);
    const Tensor transposed = grad_gates.t();
    return {product_if(mask[0], grad_gates, w_ih),
            product_if(mask[1], grad_gates, w_hh),
            mask[2] ? grad_cx : nothing(input),
            product_if(mask[3], transposed, input),
            product_if(mask[4], transposed, hx),
            grad_b_ih,
            grad_b_hh};
  }

  static void register_all(torch::Library& m) {
    m.impl("rnn_cell", rnn_cell);
    m.impl("gru_cell", gru_cell);
    m.impl("lstm_cell", lstm_cell);
    m.impl("_gru_cell_forward", gru_cell_forward);
    m.impl("_lstm_cell_forward", lstm_cell_forward);
    m.impl("_rnn_cell_backward", rnn_cell_backward);
    m.impl("_gru_cell_backward", gru_cell_backward);
    m.impl("_lstm_cell_backward", lstm_cell_backward);
  }
};

}  // namespace d2lfast::ops
