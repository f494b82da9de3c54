#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

#include "../allocate.h"
#include "operators.h"
#include "recurrent_layer.h"
#include "scratch.h"

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// One direction's packed weights and the places of its operands and results.
struct Direction {
  Tensor w_ih, w_hh, w_hr, bias, projected_input;
  Rows projected, y, saved, cells;
  char *h_0, *c_0, *h_n, *c_n;
  bool reversed, one_hot;
};

class Forward {
 public:
  Forward(const CPURecurrentLayer& layer, const Tensor& input, bool packed, const Tensor& hx,
          const Tensor& cx, bool save)
      : l_(layer), packed_(packed), save_(save), kernels_(recurrent_sequence_kernels()) {
    const auto options = layer.options();
    const int64_t width = layer.directions * layer.state;
    output = packed ? empty({layer.rows, width}, options) : empty({layer.steps, layer.batch, width}, options);
    h_n = empty({layer.directions, layer.batch, layer.state}, options);
    const bool lstm = layer.mode == RecurrentMode::kLSTM;
    c_n = lstm ? empty({layer.directions, layer.batch, layer.hidden}, options) : empty({0}, options);
    saved = save ? empty({layer.directions, layer.rows, layer.saved()}, options) : empty({0}, options);
    cells = save && lstm ? empty({layer.directions, layer.rows, layer.hidden}, options) : empty({0}, options);
    hx_ = hx;
    cx_ = cx;
    input_ = input;
    for (int64_t d = 0; d < layer.directions; ++d) add_direction(d);
  }

  void run() {
    if (l_.rows == 0) return;
    const int64_t block = l_.block_rows();
    prepare_input(block);
    if (block > 0) {
      const int64_t blocks = (l_.batch + block - 1) / block;
      const int64_t cost = block * l_.steps * l_.gates() * (l_.inputs + l_.state);
      const int64_t grain = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, cost));
      at::parallel_for(0, blocks * l_.directions, grain, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task % blocks * block;
          run_block(directions_[static_cast<size_t>(task / blocks)], row, std::min(row + block, l_.batch));
        }
      });
    } else {
      run_units();
    }
    for (const Direction& direction : directions_) finish(direction, 0, l_.batch);
  }

  Tensor output, h_n, c_n, saved, cells;

 private:
  char* offset(const Tensor& tensor, int64_t elements) const {
    return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())) + elements * bytes();
  }
  int64_t bytes() const { return static_cast<int64_t>(l_.bytes()); }

  // Rows of one direction in a tensor that keeps the directions apart.
  Rows own_rows(const Tensor& tensor, int64_t d, int64_t width) const {
    Rows rows;
    if (tensor.dim() < 3) return rows;
    rows.data = offset(tensor, d * l_.rows * width);
    rows.layer = &l_;
    rows.packed = true;
    rows.row = width;
    return rows;
  }

  void add_direction(int64_t d) {
    const RecurrentWeights& w = l_.weights[static_cast<size_t>(d)];
    Direction to;
    to.reversed = l_.reversed(d);
    to.one_hot = false;
    to.y = rows_of(l_, output, packed_);
    to.y.data += d * l_.state * bytes();
    to.saved = own_rows(saved, d, l_.saved());
    to.cells = own_rows(cells, d, l_.hidden);
    const int64_t at = d * l_.batch;
    to.h_0 = offset(hx_, at * l_.state);
    to.h_n = offset(h_n, at * l_.state);
    const bool lstm = l_.mode == RecurrentMode::kLSTM;
    to.c_0 = lstm ? offset(cx_, at * l_.hidden) : nullptr;
    to.c_n = lstm ? offset(c_n, at * l_.hidden) : nullptr;
    to.w_hh = pack_gates(l_.mode, l_.hidden, w.w_hh);
    const int64_t biases = gates_of(l_.mode) == 3 ? 4 : gates_of(l_.mode);
    to.bias = empty({biases * l_.padded(l_.hidden)}, l_.options());
    kernels_.pack_bias[l_.type](l_.mode, l_.hidden, w.b_ih.defined() ? w.b_ih.const_data_ptr() : nullptr,
                                w.b_hh.defined() ? w.b_hh.const_data_ptr() : nullptr, to.bias.data_ptr());
    if (l_.projected) to.w_hr = pack_gates(RecurrentMode::kTanh, l_.state, w.w_hr);
    directions_.push_back(std::move(to));
  }

  Tensor pack_gates(RecurrentMode mode, int64_t hidden, const Tensor& weight) const {
    const int64_t gates = gates_of(mode);
    Tensor packed = empty({gates * l_.padded(hidden) * weight.size(1)}, l_.options());
    PackGates params{};
    params.mode = mode;
    params.hidden = hidden;
    params.inner = weight.size(1);
    params.weight = weight.const_data_ptr();
    params.weight_row = weight.size(1);
    params.packed = packed.data_ptr();
    const int64_t panels = gates == 1 ? l_.panels(hidden) : l_.vectors(hidden);
    const int64_t cost = std::max<int64_t>(1, params.inner * 4 * l_.lanes);
    at::parallel_for(0, panels, std::max<int64_t>(1, (1 << 15) / cost),
                     [&](int64_t begin, int64_t end) { kernels_.pack_gates[l_.type](params, begin, end); });
    return packed;
  }

  // Small layers multiply the input within the step, or gather for one-hot rows and tokens; others multiply
  // the whole sequence first, into the place where the step leaves what it saves.
  void prepare_input(int64_t block) {
    const bool small = l_.small() && block > 0;
    if (small) {
      if (!l_.tokens) x_ = rows_of(l_, input_, packed_);
      for (size_t d = 0; d < directions_.size(); ++d) {
        Direction& to = directions_[d];
        to.w_ih = pack_gates(l_.mode, l_.hidden, l_.weights[d].w_ih);
        to.one_hot = l_.tokens || (l_.inputs >= 8 && finite(l_.weights[d].w_ih));
      }
      return;
    }
    const Tensor x = input_.contiguous();
    Tensor ones;
    bool one_hot = l_.tokens;
    if (!l_.tokens && l_.inputs >= 8) {
      ones = empty({l_.rows}, at::kLong);
      one_hot = panel_product_kernels().find_ones[l_.type](x.const_data_ptr(), l_.inputs, l_.rows, l_.inputs,
                                                           ones.mutable_data_ptr<int64_t>());
    }
    if (l_.tokens) ones = x.view({-1});
    for (size_t d = 0; d < directions_.size(); ++d) {
      Direction& to = directions_[d];
      const Tensor& w_ih = l_.weights[d].w_ih;
      if (one_hot && (l_.tokens || finite(w_ih))) {
        to.projected_input = l_.rows < l_.inputs ? w_ih.index_select(1, ones).t().contiguous()
                                                 : w_ih.t().contiguous().index_select(0, ones);
        to.projected = own_rows(to.projected_input.unsqueeze(0), 0, l_.gates());
        continue;
      }
      if (to.saved.data != nullptr && l_.saved() > 0) {
        to.projected = to.saved;
      } else if (l_.saved() == 0) {
        to.projected = to.y;
      } else {
        to.projected_input = empty({1, l_.rows, l_.gates()}, l_.options());
        to.projected = own_rows(to.projected_input, 0, l_.gates());
      }
      const Tensor packed = pack_gates(RecurrentMode::kTanh, l_.gates(), w_ih);
      PanelProduct product{};
      product.inner = l_.inputs;
      product.columns = l_.gates();
      product.a = x.const_data_ptr();
      product.a_row = l_.inputs;
      product.a_inner = 1;
      product.b = packed.const_data_ptr();
      product.b_total = l_.inputs;
      product.c = to.projected.data;
      product.c_row = to.projected.row;
      threaded_product(l_, product, l_.rows);
    }
  }

  RecurrentStep step_of(const Direction& d, int64_t t) const {
    RecurrentStep p{};
    p.mode = l_.mode;
    p.inputs = l_.inputs;
    p.state = l_.state;
    p.hidden = l_.hidden;
    p.w_hh = d.w_hh.const_data_ptr();
    p.bias = d.bias.const_data_ptr();
    if (d.w_ih.defined()) {
      p.w_ih = d.w_ih.const_data_ptr();
      p.x = x_.at(t);
      p.x_row = x_.row;
    } else {
      p.projected = d.projected.at(t);
      p.projected_row = d.projected.row;
    }
    p.y = d.y.at(t);
    p.y_row = d.y.row;
    p.h_row = d.y.row;
    p.c_row = p.cell_row = l_.hidden;
    p.cell = d.cells.data != nullptr ? d.cells.at(t) : d.c_n;
    p.saved = d.saved.at(t);
    p.saved_row = d.saved.row;
    return p;
  }

  // Step t for rows [begin, end) and unit panels [first, last): rows that continue and rows that begin.
  void step(const Direction& d, RecurrentStep p, int64_t t, int64_t begin, int64_t end, int64_t first,
            int64_t last) const {
    const Before state = before(l_, d.reversed, t);
    const int64_t split = std::clamp(state.carried, begin, end);
    if (begin < split) {
      p.h = d.y.at(state.from);
      p.h_row = d.y.row;
      p.c = d.cells.data != nullptr ? d.cells.at(state.from) : d.c_n;
      kernels_.step[l_.type](p, begin, split, first, last);
    }
    if (split < end) {
      p.h = d.h_0;
      p.h_row = l_.state;
      p.c = d.c_0;
      kernels_.step[l_.type](p, split, end, first, last);
    }
  }

  PanelProduct projection(const Direction& d, const void* from, int64_t t) const {
    PanelProduct product{};
    product.inner = l_.hidden;
    product.columns = l_.state;
    product.a = from;
    product.a_row = l_.hidden;
    product.a_inner = 1;
    product.b = d.w_hr.const_data_ptr();
    product.b_total = l_.hidden;
    product.c = d.y.at(t);
    product.c_row = d.y.row;
    return product;
  }

  void run_block(const Direction& d, int64_t begin, int64_t end) const {
    const int64_t rows = end - begin, panels = l_.unit_panels();
    const int64_t hidden_bytes = l_.projected ? rows * l_.hidden * bytes() : 0;
    char* scratch = static_cast<char*>(thread_scratch(static_cast<size_t>(hidden_bytes + rows * 8)));
    auto* ones = reinterpret_cast<int64_t*>(scratch + hidden_bytes);
    for (int64_t s = 0; s < l_.steps; ++s) {
      const int64_t t = d.reversed ? l_.steps - 1 - s : s;
      const int64_t stop = std::min(end, l_.counts[static_cast<size_t>(t)]);
      if (stop <= begin) continue;
      RecurrentStep p = step_of(d, t);
      if (d.one_hot) set_ones(p, t, begin, stop, ones);
      if (l_.projected) {
        p.y = scratch - begin * l_.hidden * bytes();
        p.y_row = l_.hidden;
      }
      step(d, p, t, begin, stop, 0, panels);
      if (l_.projected) {
        panel_product_kernels().product[l_.type](projection(d, p.y, t), begin, stop, 0, l_.panels(l_.state));
      }
    }
  }

  void set_ones(RecurrentStep& p, int64_t t, int64_t begin, int64_t end, int64_t* ones) const {
    if (l_.tokens) {
      p.ones = tokens_at(t);
    } else if (panel_product_kernels().find_ones[l_.type](
                   static_cast<const char*>(p.x) + begin * p.x_row * bytes(), p.x_row, end - begin, l_.inputs,
                   ones)) {
      p.ones = ones - begin;
    }
  }

  const int64_t* tokens_at(int64_t t) const {
    return input_.const_data_ptr<int64_t>() + l_.offsets[static_cast<size_t>(t)];
  }

  // Threads split the units; each step waits for the one before.
  void run_units() const {
    const int64_t panels = l_.unit_panels(), tasks = panels * l_.directions;
    Tensor hidden;
    if (l_.projected) hidden = empty({l_.directions, l_.batch, l_.hidden}, l_.options());
    for (int64_t s = 0; s < l_.steps; ++s) {
      at::parallel_for(0, tasks, grain(l_.state), [&](int64_t begin, int64_t end) {
        for (int64_t index = 0; index < l_.directions; ++index) {
          const int64_t first = std::max(begin, index * panels), last = std::min(end, (index + 1) * panels);
          if (first >= last) continue;
          const Direction& d = directions_[static_cast<size_t>(index)];
          const int64_t t = d.reversed ? l_.steps - 1 - s : s;
          RecurrentStep p = step_of(d, t);
          if (l_.projected) {
            p.y = offset(hidden, index * l_.batch * l_.hidden);
            p.y_row = l_.hidden;
          }
          step(d, p, t, 0, l_.counts[static_cast<size_t>(t)], first - index * panels, last - index * panels);
        }
      });
      for (int64_t index = 0; l_.projected && index < l_.directions; ++index) {
        const Direction& d = directions_[static_cast<size_t>(index)];
        const int64_t t = d.reversed ? l_.steps - 1 - s : s;
        threaded_product(l_, projection(d, offset(hidden, index * l_.batch * l_.hidden), t),
                         l_.counts[static_cast<size_t>(t)]);
      }
    }
  }

  int64_t grain(int64_t inner) const {
    const int64_t cost = std::max<int64_t>(1, l_.batch * inner * kPanelVectors * l_.lanes);
    return std::max<int64_t>(1, (1 << 16) / cost);
  }

  // The final states, from where the sequences end.
  void finish(const Direction& d, int64_t begin, int64_t end) const {
    int64_t t = d.reversed ? 0 : l_.steps - 1;
    for (int64_t row = begin; row < end; ++row) {
      while (l_.counts[static_cast<size_t>(t)] <= row) --t;
      std::memcpy(d.h_n + row * l_.state * bytes(), d.y.at(t) + row * d.y.row * bytes(),
                  static_cast<size_t>(l_.state * bytes()));
      if (d.cells.data != nullptr) {
        std::memcpy(d.c_n + row * l_.hidden * bytes(), d.cells.at(t) + row * l_.hidden * bytes(),
                    static_cast<size_t>(l_.hidden * bytes()));
      }
    }
  }

  const CPURecurrentLayer& l_;
  const bool packed_, save_;
  const RecurrentSequenceKernels& kernels_;
  Tensor hx_, cx_, input_;
  Rows x_;
  std::vector<Direction> directions_;
};

// The last axis dense and, for packed input and tokens, everything.
Tensor readable(const Tensor& input, const CPURecurrentLayer& layer, bool packed) {
  if (layer.tokens) return input.contiguous();
  const Tensor x = input.to(layer.compute);
  return (packed || layer.inputs == 0 || x.stride(-1) != 1) && !x.is_contiguous() ? x.contiguous() : x;
}

void check_tokens(const Tensor& tokens, int64_t inputs) {
  const int64_t* data = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < inputs, "token ", data[i], " is out of range for input_size ",
                      inputs);
  }
}

}  // namespace

Results recurrent_layer_forward_cpu(const Tensor& input, const Optional& batch_sizes, const Tensor& hx,
                                    const Optional& cx, at::TensorList weights, std::string_view mode,
                                    bool bias, bool projected, bool reverse, bool save) {
  const CPURecurrentLayer layer(
      describe_recurrent_layer(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse));
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  const Tensor x = readable(input, layer, packed);
  if (layer.tokens) check_tokens(x, layer.inputs);
  const Tensor h = hx.to(layer.compute).contiguous();
  const Tensor c = layer.mode == RecurrentMode::kLSTM ? cx->to(layer.compute).contiguous() : Tensor();
  Forward forward(layer, x, packed, h, c, save);
  forward.run();
  const auto type = hx.scalar_type();
  return {forward.output.to(type), forward.h_n.to(type), forward.c_n.to(type), forward.saved.to(type),
          forward.cells.to(type)};
}

std::tuple<Tensor, Tensor, Tensor> recurrent_layer_cpu(const Tensor& input, const Optional& batch_sizes,
                                                       const Tensor& hx, const Optional& cx,
                                                       at::TensorList weights, std::string_view mode,
                                                       bool bias, bool projected, bool reverse) {
  auto [output, h_n, c_n, saved, cells] =
      recurrent_layer_forward_cpu(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse, false);
  return {output, h_n, c_n};
}

}  // namespace d2lfast::ops
