#include "recurrent_reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>

#include <vector>

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

struct State {
  Tensor h, c;
  State rows(int64_t begin, int64_t end) const {
    return {h.narrow(0, begin, end - begin), c.defined() ? c.narrow(0, begin, end - begin) : c};
  }
  static State join(const State& a, const State& b) {
    return {at::cat({a.h, b.h}), a.c.defined() ? at::cat({a.c, b.c}) : a.c};
  }
};

struct Direction {
  Tensor w_hh, b_hh, w_hr;
  std::string_view mode;

  State step(const Tensor& x, const State& s) const {
    const Tensor recurrent = at::linear(s.h, w_hh, b_hh.defined() ? Optional(b_hh) : Optional());
    if (mode == "tanh") return {at::tanh(x + recurrent), Tensor()};
    if (mode == "relu") return {at::relu(x + recurrent), Tensor()};
    if (mode == "gru") {
      const auto ih = x.chunk(3, 1), hh = recurrent.chunk(3, 1);
      const Tensor r = at::sigmoid(ih[0] + hh[0]), z = at::sigmoid(ih[1] + hh[1]);
      const Tensor n = at::tanh(ih[2] + r * hh[2]);
      return {(s.h - n) * z + n, Tensor()};
    }
    const auto gates = (x + recurrent).chunk(4, 1);
    const Tensor c = at::sigmoid(gates[1]) * s.c + at::sigmoid(gates[0]) * at::tanh(gates[2]);
    const Tensor h = at::sigmoid(gates[3]) * at::tanh(c);
    return {w_hr.defined() ? at::linear(h, w_hr) : h, c};
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> recurrent_reference(const Tensor& input, const Optional& batch_sizes,
                                                       const Tensor& hx, const Optional& cx,
                                                       at::TensorList weights, std::string_view mode,
                                                       bool bias, bool projected, bool reverse) {
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  const bool tokens = input.scalar_type() == at::kLong;
  const int64_t steps = packed ? batch_sizes->size(0) : input.size(0);
  const auto count = [&](int64_t t) {
    return packed ? batch_sizes->contiguous().const_data_ptr<int64_t>()[t] : hx.size(1);
  };
  const size_t each = 2 + (bias ? 2 : 0) + (projected ? 1 : 0);
  std::vector<Tensor> outputs, h_n, c_n;
  for (size_t index = 0; index * each < weights.size(); ++index) {
    const Tensor* w = &weights[index * each];
    const Direction direction{w[1], bias ? w[3] : Tensor(), projected ? w[each - 1] : Tensor(), mode};
    Tensor gates =
        tokens ? at::embedding(w[0].t(), input) : at::linear(input, w[0], bias ? Optional(w[2]) : Optional());
    if (tokens && bias) gates = gates + w[2];
    const auto at = static_cast<int64_t>(index);
    const State initial{hx.select(0, at), mode == "lstm" ? cx->select(0, at) : Tensor()};
    const bool backwards = reverse || index == 1;
    std::vector<Tensor> own(static_cast<size_t>(steps));
    std::vector<int64_t> offsets(1, 0);
    for (int64_t t = 0; t < steps; ++t) offsets.push_back(offsets.back() + count(t));
    std::vector<State> ended;
    State state = initial.rows(0, count(backwards ? steps - 1 : 0));
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t t = backwards ? steps - 1 - s : s, rows = count(t), now = state.h.size(0);
      if (rows < now) {
        ended.push_back(state.rows(rows, now));
        state = state.rows(0, rows);
      } else if (rows > now) {
        state = State::join(state, initial.rows(now, rows));
      }
      const Tensor x = packed ? gates.narrow(0, offsets[static_cast<size_t>(t)], rows) : gates.select(0, t);
      state = direction.step(x, state);
      own[static_cast<size_t>(t)] = state.h;
    }
    for (auto rows = ended.rbegin(); rows != ended.rend(); ++rows) state = State::join(state, *rows);
    outputs.push_back(packed ? at::cat(own) : at::stack(own));
    h_n.push_back(state.h);
    if (state.c.defined()) c_n.push_back(state.c);
  }
  return {at::cat(outputs, -1), at::stack(h_n), c_n.empty() ? at::zeros({0}, hx.options()) : at::stack(c_n)};
}

}  // namespace d2lfast::ops
