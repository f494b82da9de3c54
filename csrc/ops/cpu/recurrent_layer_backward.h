#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

#include "../allocate.h"
#include "recurrent_layer.h"
#include "scratch.h"

namespace d2lfast::ops {

// Gradients of one direction's parameters before their rows are in torch's order; each in one vector, so that
// the sums of blocks can be added up in a fixed order.
struct WeightSums {
  int64_t w_ih = 0, w_hh = 0, bias = 0, w_hr = 0, table = 0, size = 0;
};

struct BackwardDirection {
  at::Tensor w_ih, w_hh, w_hr;  // packed for products with gradients
  Rows saved, cells, y, grad_y;
  char *h_0, *c_0, *grad_h, *grad_c;
  bool reversed;
};

// Columns [from, from + count) of the gradients before the activations are rows [to, ...) of a weight.
struct WeightPart {
  int64_t from, count, to;
};

class RecurrentBackward {
 public:
  RecurrentBackward(const CPURecurrentLayer& layer, const at::Tensor& input, bool packed,
                    const at::Tensor& hx, const at::Tensor& cx, const at::Tensor& output,
                    const at::Tensor& saved, const at::Tensor& cells, const at::Tensor& grad_output,
                    const at::Tensor& grad_h, const at::Tensor& grad_c, std::array<bool, 4> mask)
      : l_(layer),
        packed_(packed),
        want_input_(mask[0] && !layer.tokens),
        want_weights_(mask[3]),
        kernels_(recurrent_sequence_kernels()),
        input_(input),
        hx_(hx),
        cx_(cx),
        output_(output),
        grad_output_(grad_output) {
    const auto options = layer.options();
    grad_hx = copy_or_zeros(grad_h, {layer.directions, layer.batch, layer.state});
    const bool lstm = layer.mode == RecurrentMode::kLSTM;
    grad_cx =
        lstm ? copy_or_zeros(grad_c, {layer.directions, layer.batch, layer.hidden}) : empty({0}, options);
    grad_input = want_input_ ? (packed ? empty({layer.rows, layer.inputs}, options)
                                       : empty({layer.steps, layer.batch, layer.inputs}, options))
                             : empty({0}, options);
    if (!layer.tokens) x_ = rows_of(layer, input, packed);
    grad_x_ = want_input_ ? rows_of(layer, grad_input, packed) : Rows{};
    const int64_t gates = layer.gates(), hidden = layer.hidden;
    if (layer.mode == RecurrentMode::kGRU) {
      parts_ih_ = {{hidden, 2 * hidden, 0}, {0, hidden, 2 * hidden}};
      parts_hh_ = {{hidden, 3 * hidden, 0}};
    } else {
      parts_ih_ = parts_hh_ = {{0, gates, 0}};
    }
    for (int64_t d = 0; d < layer.directions; ++d) add_direction(d, saved, cells);
    if (want_weights_) {
      sums_.w_hh = gates * layer.inputs;
      sums_.bias = sums_.w_hh + gates * layer.state;
      sums_.w_hr = sums_.bias + layer.gradients();
      sums_.table = sums_.w_hr + (layer.projected ? layer.state * hidden : 0);
      sums_.size = sums_.table;
    }
  }

  void run() {
    if (l_.rows == 0) {
      total_ = zeros({l_.directions, sums_.size}, l_.options());
      if (want_input_) grad_input.zero_();
      return;
    }
    const int64_t block = l_.block_rows();
    if (block > 0 && l_.small()) {
      run_small(block);
    } else {
      run_large(block);
    }
  }

  // Gradients of w_ih, w_hh, b_ih, b_hh, w_hr of direction d, as far as the layer has them.
  void weight_gradients(int64_t d, std::vector<at::Tensor>& to, at::ScalarType type) const {
    const int64_t gates = l_.gates(), hidden = l_.hidden;
    const int64_t size = sums_.size + table_size();
    const char* sums = offset(total_, d * size);
    at::Tensor w_ih = copy_of(sums + sums_.w_ih * bytes(), {gates, l_.inputs});
    if (table_size() > 0) {
      const at::Tensor table =
          total_.select(0, d).narrow(0, sums_.table, table_size()).view({l_.inputs, l_.gradients()}).t();
      for (const WeightPart& part : parts_ih_) {
        w_ih.narrow(0, part.to, part.count).add_(table.narrow(0, part.from, part.count));
      }
    }
    to.push_back(w_ih.to(type));
    to.push_back(copy_of(sums + sums_.w_hh * bytes(), {gates, l_.state}).to(type));
    if (l_.weights[static_cast<size_t>(d)].b_ih.defined()) {
      for (const auto* parts : {&parts_ih_, &parts_hh_}) {
        const at::Tensor grad = empty({gates}, l_.options());
        for (const WeightPart& part : *parts) {
          std::memcpy(offset(grad, part.to), sums + (sums_.bias + part.from) * bytes(),
                      static_cast<size_t>(part.count * bytes()));
        }
        to.push_back(grad.to(type));
      }
    }
    if (l_.projected) to.push_back(copy_of(sums + sums_.w_hr * bytes(), {l_.state, hidden}).to(type));
  }

  at::Tensor grad_input, grad_hx, grad_cx;

 private:
  // A gradient is a tensor of its own: a view would keep the others alive, and share their version.
  at::Tensor copy_of(const char* from, at::IntArrayRef shape) const {
    const at::Tensor copy = empty(shape, l_.options());
    std::memcpy(offset(copy, 0), from, static_cast<size_t>(copy.numel() * bytes()));
    return copy;
  }
  char* offset(const at::Tensor& tensor, int64_t elements) const {
    return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())) + elements * bytes();
  }
  int64_t bytes() const { return static_cast<int64_t>(l_.bytes()); }
  int64_t table_size() const { return want_weights_ && one_hot_ ? l_.inputs * l_.gradients() : 0; }

  at::Tensor copy_or_zeros(const at::Tensor& tensor, at::IntArrayRef shape) const {
    if (!tensor.defined()) return zeros(shape, l_.options());
    at::Tensor copy = empty(shape, l_.options());
    copy.copy_(tensor);
    return copy;
  }

  Rows own_rows(const at::Tensor& tensor, int64_t d, int64_t width) const {
    Rows rows;
    if (tensor.dim() < 3) return rows;
    rows.data = offset(tensor, d * l_.rows * width);
    rows.layer = &l_;
    rows.packed = true;
    rows.row = width;
    return rows;
  }

  void add_direction(int64_t d, const at::Tensor& saved, const at::Tensor& cells) {
    const RecurrentWeights& w = l_.weights[static_cast<size_t>(d)];
    BackwardDirection to;
    to.reversed = l_.reversed(d);
    to.saved = own_rows(saved, d, l_.saved());
    to.cells = own_rows(cells, d, l_.hidden);
    to.y = rows_of(l_, output_, packed_);
    to.y.data += d * l_.state * bytes();
    to.grad_y = rows_of(l_, grad_output_, packed_);
    if (to.grad_y.data != nullptr) to.grad_y.data += d * l_.state * bytes();
    const int64_t at = d * l_.batch;
    to.h_0 = offset(hx_, at * l_.state);
    to.grad_h = offset(grad_hx, at * l_.state);
    const bool lstm = l_.mode == RecurrentMode::kLSTM;
    to.c_0 = lstm ? offset(cx_, at * l_.hidden) : nullptr;
    to.grad_c = lstm ? offset(grad_cx, at * l_.hidden) : nullptr;
    to.w_hh = packed_rows(w.w_hh, {});
    if (want_input_) to.w_ih = packed_rows(w.w_ih, parts_ih_);
    if (l_.projected) to.w_hr = packed_rows(w.w_hr, {});
    directions_.push_back(std::move(to));
  }

  // A weight packed for products from the left; its rows in the order of the gradients' columns.
  at::Tensor packed_rows(const at::Tensor& weight, const std::vector<WeightPart>& parts) const {
    const int64_t rows = weight.size(0);
    at::Tensor packed = empty({rows * l_.padded(weight.size(1))}, l_.options());
    if (parts.empty()) {
      threaded_pack_rows(l_, weight, 0, rows, packed.data_ptr());
    } else {
      for (const WeightPart& part : parts) {
        threaded_pack_rows(l_, weight.narrow(0, part.to, part.count), part.from, rows, packed.data_ptr());
      }
    }
    return packed;
  }

  RecurrentStepBackward step_of(const BackwardDirection& d, int64_t t) const {
    RecurrentStepBackward p{};
    p.mode = l_.mode;
    p.hidden = l_.hidden;
    if (!l_.projected) {
      p.grad_y = d.grad_y.at(t);
      p.grad_y_row = d.grad_y.row;
      p.grad_h = d.grad_h;
      p.grad_h_row = l_.state;
    }
    p.grad_c = d.grad_c;
    p.grad_c_row = p.c_row = p.cell_row = l_.hidden;
    p.saved = d.saved.at(t);
    p.saved_row = d.saved.row;
    p.cell = d.cells.at(t);
    return p;
  }

  // Step t for rows [begin, end) and units [first, last).
  void step(const BackwardDirection& d, RecurrentStepBackward p, int64_t t, int64_t begin, int64_t end,
            int64_t first, int64_t last) const {
    auto* kernel = kernels_.step_backward[l_.type];
    if (gates_of(l_.mode) == 1) {
      p.y = d.y.at(t);
      p.y_row = d.y.row;
      return kernel(p, begin, end, first, last);
    }
    const Before state = before(l_, d.reversed, t);
    const int64_t split = std::clamp(state.carried, begin, end);
    if (begin < split) {
      p.y = d.y.at(state.from);
      p.y_row = d.y.row;
      p.c = d.cells.at(state.from);
      kernel(p, begin, split, first, last);
    }
    if (split < end) {
      p.y = d.h_0;
      p.y_row = l_.state;
      p.c = d.c_0;
      kernel(p, split, end, first, last);
    }
  }

  // The gradient of the state before the step from that of the gates.
  PanelProduct state_product(const BackwardDirection& d, const char* grad_gates) const {
    PanelProduct p{};
    p.inner = l_.gates();
    p.columns = l_.state;
    p.a = grad_gates + parts_hh_[0].from * bytes();
    p.a_row = l_.gradients();
    p.a_inner = 1;
    p.b = d.w_hh.const_data_ptr();
    p.b_total = p.inner;
    p.c = d.grad_h;
    p.c_row = l_.state;
    p.accumulate = l_.mode == RecurrentMode::kGRU;
    return p;
  }

  PanelProduct input_product(const BackwardDirection& d, const char* grad_gates) const {
    PanelProduct p{};
    p.inner = l_.gates();
    p.columns = l_.inputs;
    p.a = grad_gates;
    p.a_row = l_.gradients();
    p.a_inner = 1;
    p.b = d.w_ih.const_data_ptr();
    p.b_total = p.inner;
    return p;
  }

  void all_panels(const PanelProduct& p, int64_t begin, int64_t end) const {
    panel_product_kernels().product[l_.type](p, begin, end, 0, l_.panels(p.columns));
  }

  // Packs the state before step t, rows [begin, end), as rows from `first` on of panels of `total` rows.
  void pack_state(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end, int64_t first,
                  int64_t total, void* to, int64_t panel_begin, int64_t panel_end) const {
    const Before state = before(l_, d.reversed, t);
    const int64_t split = std::clamp(state.carried, begin, end);
    PackRows p{};
    p.columns = l_.state;
    p.total = total;
    p.packed = to;
    if (begin < split) {
      p.inner = split - begin;
      p.first = first;
      p.matrix = d.y.at(state.from) + begin * d.y.row * bytes();
      p.matrix_row = d.y.row;
      panel_product_kernels().pack_rows[l_.type](p, panel_begin, panel_end);
    }
    if (split < end) {
      p.inner = end - split;
      p.first = first + split - begin;
      p.matrix = d.h_0 + split * l_.state * bytes();
      p.matrix_row = l_.state;
      panel_product_kernels().pack_rows[l_.type](p, panel_begin, panel_end);
    }
  }

  // The state before step t, rows [begin, end), where it lies as panels have it, or null.
  const char* whole_state(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end) const {
    const int64_t carried = before(l_, d.reversed, t).carried;
    if (carried < end && carried > begin) return nullptr;
    const int64_t row = carried >= end ? d.y.row : l_.state;
    const char* rows = carried >= end ? d.y.at(before(l_, d.reversed, t).from) : d.h_0;
    return is_packed(l_.state, row, l_.lanes) ? rows + begin * row * bytes() : nullptr;
  }

  // weight gradient[parts] += gradients^T panels, over `inner` rows.
  void add_weight(const char* grad_gates, int64_t inner, const void* panels, int64_t columns,
                  const std::vector<WeightPart>& parts, char* to) const {
    PanelProduct p{};
    p.inner = inner;
    p.columns = columns;
    p.a_row = 1;
    p.a_inner = l_.gradients();
    p.b = panels;
    p.b_total = inner;
    p.c_row = columns;
    p.accumulate = true;
    for (const WeightPart& part : parts) {
      p.a = grad_gates + part.from * bytes();
      p.c = to + part.to * columns * bytes();
      all_panels(p, 0, part.count);
    }
  }

  // LSTM with a projection: the gradient of the hidden values before it, and of its weight.
  void project(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end, char* grad_hidden,
               char* hidden, char* panels, char* sums) const;
  PanelProduct projection_product(const BackwardDirection& d, char* to) const;
  void hidden_values(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end, char* to) const;

  void run_small(int64_t block) {
    const int64_t blocks = (l_.batch + block - 1) / block;
    one_hot_ = l_.tokens || l_.inputs >= 8;
    const int64_t size = sums_.size + table_size();
    // The directions add to the same gradient of the input, one after the other.
    const int64_t tasks = want_input_ ? blocks : blocks * l_.directions;
    at::Tensor sums = zeros({l_.directions, blocks, size}, l_.options());
    const int64_t cost = 2 * block * l_.steps * l_.gates() * (l_.inputs + l_.state);
    const int64_t grain = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, cost));
    at::parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t begin = task % blocks * block, end = std::min(begin + block, l_.batch);
        const int64_t direction = want_input_ ? 0 : task / blocks;
        const int64_t stop = want_input_ ? l_.directions : direction + 1;
        for (int64_t d = direction; d < stop; ++d) {
          run_block(d, begin, end,
                    want_weights_ ? offset(sums, (d * blocks + task % blocks) * size) : nullptr);
        }
      }
    });
    if (blocks == 1) {
      total_ = sums.view({l_.directions, size});
      return;
    }
    total_ = zeros({l_.directions, size}, l_.options());
    for (int64_t d = 0; want_weights_ && d < l_.directions; ++d) {
      panel_product_kernels().add_rows[l_.type](offset(sums, d * blocks * size), size, blocks, size,
                                                offset(total_, d * size));
    }
  }

  // Asks for rows of the next step, whose place the processor does not guess.
  void fetch(const Rows& rows, int64_t t, int64_t begin, int64_t end) const {
    if (rows.data == nullptr) return;
    constexpr int64_t kLine = 64;
    const int64_t width = l_.state * bytes();
    const char* from = rows.at(t) + begin * rows.row * bytes();
    for (int64_t row = begin; row < end; ++row, from += rows.row * bytes()) {
      for (int64_t at = 0; at < width; at += kLine) __builtin_prefetch(from + at);
    }
  }

  void run_block(int64_t index, int64_t begin, int64_t end, char* sums) const {
    const BackwardDirection& d = directions_[static_cast<size_t>(index)];
    const int64_t rows = end - begin, width = l_.gradients();
    const int64_t state_size = l_.padded(l_.state), input_size = l_.padded(l_.inputs);
    const int64_t projected = l_.projected ? 2 * l_.hidden + l_.padded(l_.hidden) : 0;
    char* scratch = static_cast<char*>(thread_scratch(
        static_cast<size_t>(rows * (width + state_size + input_size + projected) * bytes() + rows * 8)));
    char* gradients = scratch;
    char* state_panels = gradients + rows * width * bytes();
    char* input_panels = state_panels + rows * state_size * bytes();
    char* hidden = input_panels + rows * input_size * bytes();
    auto* ones = reinterpret_cast<int64_t*>(hidden + rows * projected * bytes());
    const char* shifted = gradients - begin * width * bytes();
    for (int64_t s = l_.steps - 1; s >= 0; --s) {
      const int64_t t = d.reversed ? l_.steps - 1 - s : s;
      const int64_t stop = std::min(end, l_.counts[static_cast<size_t>(t)]), count = stop - begin;
      if (count <= 0) continue;
      fetch(d.grad_y, s > 0 ? (d.reversed ? t + 1 : t - 1) : t, begin, stop);
      RecurrentStepBackward p = step_of(d, t);
      p.grad_gates = const_cast<char*>(shifted);
      p.grad_gates_row = width;
      if (l_.projected) {
        p.grad_h = hidden - begin * l_.hidden * bytes();
        p.grad_h_row = l_.hidden;
        char* values = hidden + rows * l_.hidden * bytes();
        project(d, t, begin, stop, hidden, values, values + rows * l_.hidden * bytes(), sums);
      }
      step(d, p, t, begin, stop, 0, l_.hidden);
      all_panels(state_product(d, shifted), begin, stop);
      if (want_input_) {
        PanelProduct product = input_product(d, shifted);
        product.c = grad_x_.at(t);
        product.c_row = grad_x_.row;
        product.accumulate = index > 0;
        all_panels(product, begin, stop);
      }
      if (sums == nullptr) continue;
      const char* state = whole_state(d, t, begin, stop);
      if (state == nullptr) {
        pack_state(d, t, begin, stop, 0, count, state_panels, 0, l_.panels(l_.state));
        state = state_panels;
      }
      add_weight(gradients, count, state, l_.state, parts_hh_, sums + sums_.w_hh * bytes());
      panel_product_kernels().add_rows[l_.type](gradients, width, count, width, sums + sums_.bias * bytes());
      add_input_weight(t, begin, count, gradients, ones, input_panels, sums);
    }
  }

  void add_input_weight(int64_t t, int64_t begin, int64_t count, const char* gradients, int64_t* ones,
                        char* panels, char* sums) const {
    const char* x = l_.tokens ? nullptr : x_.at(t) + begin * x_.row * bytes();
    const int64_t* places =
        l_.tokens ? input_.const_data_ptr<int64_t>() + l_.offsets[static_cast<size_t>(t)] + begin
        : one_hot_ && panel_product_kernels().find_ones[l_.type](x, x_.row, count, l_.inputs, ones) ? ones
                                                                                                    : nullptr;
    if (places != nullptr) {
      return panel_product_kernels().scatter_rows[l_.type](gradients, l_.gradients(), count, l_.gradients(),
                                                           places, sums + sums_.table * bytes());
    }
    PackRows pack{};
    pack.inner = pack.total = count;
    pack.columns = l_.inputs;
    pack.matrix = x;
    pack.matrix_row = x_.row;
    pack.packed = panels;
    panel_product_kernels().pack_rows[l_.type](pack, 0, l_.panels(l_.inputs));
    add_weight(gradients, count, panels, l_.inputs, parts_ih_, sums + sums_.w_ih * bytes());
  }

  void run_large(int64_t block);
  void large_weight_gradients(const at::Tensor& gradients, const at::Tensor& grad_projected,
                              const at::Tensor& hidden);
  void threaded_add_weight(const char* a, int64_t a_row, const void* panels, int64_t columns,
                           const std::vector<WeightPart>& parts, char* to) const;

  const CPURecurrentLayer& l_;
  const bool packed_, want_input_, want_weights_;
  const RecurrentSequenceKernels& kernels_;
  at::Tensor input_, hx_, cx_, output_, grad_output_, total_;
  Rows x_, grad_x_;
  std::vector<WeightPart> parts_ih_, parts_hh_;
  std::vector<BackwardDirection> directions_;
  WeightSums sums_;
  bool one_hot_ = false;
};

}  // namespace d2lfast::ops
