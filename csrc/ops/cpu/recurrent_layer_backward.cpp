#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "recurrent_layer.h"
#include "scratch.h"

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Gradients of one direction's parameters before their rows are in torch's order; each in one vector, so that
// the sums of blocks can be added up in a fixed order.
struct Sums {
  int64_t w_ih = 0, w_hh = 0, bias = 0, w_hr = 0, table = 0, size = 0;
};

struct Direction {
  Tensor w_ih, w_hh, w_hr;  // packed for products with gradients
  Rows saved, cells, y, grad_y;
  char *h_0, *c_0, *grad_h, *grad_c;
  bool reversed;
};

// Columns [from, from + count) of the gradients before the activations are rows [to, ...) of a weight.
struct Part {
  int64_t from, count, to;
};

class Backward {
 public:
  Backward(const RecurrentLayer& layer, const Tensor& input, bool packed, const Tensor& hx, const Tensor& cx,
           const Tensor& output, const Tensor& saved, const Tensor& cells, const Tensor& grad_output,
           const Tensor& grad_h, const Tensor& grad_c, std::array<bool, 4> mask)
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
        lstm ? copy_or_zeros(grad_c, {layer.directions, layer.batch, layer.hidden}) : at::empty({0}, options);
    grad_input = want_input_ ? (packed ? at::empty({layer.rows, layer.inputs}, options)
                                       : at::empty({layer.steps, layer.batch, layer.inputs}, options))
                             : at::empty({0}, options);
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
    total_ = at::zeros({l_.directions, sums_.size + table_size()}, l_.options());
    if (l_.rows == 0) {
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
  void weight_gradients(int64_t d, std::vector<Tensor>& to, at::ScalarType type) const {
    const int64_t gates = l_.gates(), hidden = l_.hidden;
    const Tensor sums = total_.select(0, d);
    Tensor w_ih = sums.narrow(0, sums_.w_ih, gates * l_.inputs).view({gates, l_.inputs});
    if (table_size() > 0) {
      const Tensor table = sums.narrow(0, sums_.table, table_size()).view({l_.inputs, l_.gradients()}).t();
      w_ih = w_ih.clone();
      for (const Part& part : parts_ih_) {
        w_ih.narrow(0, part.to, part.count).add_(table.narrow(0, part.from, part.count));
      }
    }
    to.push_back(own(w_ih, type));
    to.push_back(own(sums.narrow(0, sums_.w_hh, gates * l_.state).view({gates, l_.state}), type));
    if (l_.weights[static_cast<size_t>(d)].b_ih.defined()) {
      const Tensor bias = sums.narrow(0, sums_.bias, l_.gradients());
      for (const auto* parts : {&parts_ih_, &parts_hh_}) {
        Tensor grad = at::empty({gates}, l_.options());
        for (const Part& part : *parts) {
          grad.narrow(0, part.to, part.count).copy_(bias.narrow(0, part.from, part.count));
        }
        to.push_back(grad.to(type));
      }
    }
    if (l_.projected) {
      to.push_back(own(sums.narrow(0, sums_.w_hr, l_.state * hidden).view({l_.state, hidden}), type));
    }
  }

  Tensor grad_input, grad_hx, grad_cx;

 private:
  // A gradient is a tensor of its own: a view would keep the others alive, and share their version.
  static Tensor own(const Tensor& part, at::ScalarType type) {
    return part.scalar_type() == type ? part.clone() : part.to(type);
  }
  char* offset(const Tensor& tensor, int64_t elements) const {
    return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())) + elements * bytes();
  }
  int64_t bytes() const { return static_cast<int64_t>(l_.bytes()); }
  int64_t table_size() const { return want_weights_ && one_hot_ ? l_.inputs * l_.gradients() : 0; }

  Tensor copy_or_zeros(const Tensor& tensor, at::IntArrayRef shape) const {
    if (!tensor.defined()) return at::zeros(shape, l_.options());
    Tensor copy = at::empty(shape, l_.options());
    copy.copy_(tensor);
    return copy;
  }

  Rows own_rows(const Tensor& tensor, int64_t d, int64_t width) const {
    Rows rows;
    if (tensor.dim() < 3) return rows;
    rows.data = offset(tensor, d * l_.rows * width);
    rows.layer = &l_;
    rows.packed = true;
    rows.row = width;
    return rows;
  }

  void add_direction(int64_t d, const Tensor& saved, const Tensor& cells) {
    const RecurrentWeights& w = l_.weights[static_cast<size_t>(d)];
    Direction to;
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
  Tensor packed_rows(const Tensor& weight, const std::vector<Part>& parts) const {
    const int64_t rows = weight.size(0);
    Tensor packed = at::empty({rows * l_.padded(weight.size(1))}, l_.options());
    if (parts.empty()) {
      threaded_pack_rows(l_, weight, 0, rows, packed.data_ptr());
    } else {
      for (const Part& part : parts) {
        threaded_pack_rows(l_, weight.narrow(0, part.to, part.count), part.from, rows, packed.data_ptr());
      }
    }
    return packed;
  }

  RecurrentStepBackward step_of(const Direction& d, int64_t t) const {
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
  void step(const Direction& d, RecurrentStepBackward p, int64_t t, int64_t begin, int64_t end, int64_t first,
            int64_t last) const {
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
  PanelProduct state_product(const Direction& d, const char* grad_gates) const {
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

  PanelProduct input_product(const Direction& d, const char* grad_gates) const {
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
    panel_kernels().product[l_.type](p, begin, end, 0, l_.panels(p.columns));
  }

  // Packs the state before step t, rows [begin, end), as rows from `first` on of panels of `total` rows.
  void pack_state(const Direction& d, int64_t t, int64_t begin, int64_t end, int64_t first, int64_t total,
                  void* to, int64_t panel_begin, int64_t panel_end) const {
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
      panel_kernels().pack_rows[l_.type](p, panel_begin, panel_end);
    }
    if (split < end) {
      p.inner = end - split;
      p.first = first + split - begin;
      p.matrix = d.h_0 + split * l_.state * bytes();
      p.matrix_row = l_.state;
      panel_kernels().pack_rows[l_.type](p, panel_begin, panel_end);
    }
  }

  // weight gradient[parts] += gradients^T panels, over `inner` rows.
  void add_weight(const char* grad_gates, int64_t inner, const void* panels, int64_t columns,
                  const std::vector<Part>& parts, char* to) const {
    PanelProduct p{};
    p.inner = inner;
    p.columns = columns;
    p.a_row = 1;
    p.a_inner = l_.gradients();
    p.b = panels;
    p.b_total = inner;
    p.c_row = columns;
    p.accumulate = true;
    for (const Part& part : parts) {
      p.a = grad_gates + part.from * bytes();
      p.c = to + part.to * columns * bytes();
      all_panels(p, 0, part.count);
    }
  }

  // LSTM with a projection: the gradient of the hidden values before it, and of its weight.
  void project(const Direction& d, int64_t t, int64_t begin, int64_t end, char* grad_hidden, char* hidden,
               char* panels, char* sums) const;
  PanelProduct projection_product(const Direction& d, char* to) const;
  void hidden_values(const Direction& d, int64_t t, int64_t begin, int64_t end, char* to) const;

  void run_small(int64_t block) {
    const int64_t blocks = (l_.batch + block - 1) / block;
    one_hot_ = l_.tokens || l_.inputs >= 8;
    const int64_t size = sums_.size + table_size();
    // The directions add to the same gradient of the input, one after the other.
    const int64_t tasks = want_input_ ? blocks : blocks * l_.directions;
    Tensor sums = at::zeros({l_.directions, blocks, size}, l_.options());
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
    total_ = at::zeros({l_.directions, size}, l_.options());
    for (int64_t d = 0; want_weights_ && d < l_.directions; ++d) {
      panel_kernels().add_rows[l_.type](offset(sums, d * blocks * size), size, blocks, size,
                                        offset(total_, d * size));
    }
  }

  void run_block(int64_t index, int64_t begin, int64_t end, char* sums) const {
    const Direction& d = directions_[static_cast<size_t>(index)];
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
      pack_state(d, t, begin, stop, 0, count, state_panels, 0, l_.panels(l_.state));
      add_weight(gradients, count, state_panels, l_.state, parts_hh_, sums + sums_.w_hh * bytes());
      panel_kernels().add_rows[l_.type](gradients, width, count, width, sums + sums_.bias * bytes());
      add_input_weight(t, begin, count, gradients, ones, input_panels, sums);
    }
  }

  void add_input_weight(int64_t t, int64_t begin, int64_t count, const char* gradients, int64_t* ones,
                        char* panels, char* sums) const {
    const char* x = l_.tokens ? nullptr : x_.at(t) + begin * x_.row * bytes();
    const int64_t* places =
        l_.tokens ? input_.const_data_ptr<int64_t>() + l_.offsets[static_cast<size_t>(t)] + begin
        : one_hot_ && panel_kernels().find_ones[l_.type](x, x_.row, count, l_.inputs, ones) ? ones
                                                                                            : nullptr;
    if (places != nullptr) {
      return panel_kernels().scatter_rows[l_.type](gradients, l_.gradients(), count, l_.gradients(), places,
                                                   sums + sums_.table * bytes());
    }
    PackRows pack{};
    pack.inner = pack.total = count;
    pack.columns = l_.inputs;
    pack.matrix = x;
    pack.matrix_row = x_.row;
    pack.packed = panels;
    panel_kernels().pack_rows[l_.type](pack, 0, l_.panels(l_.inputs));
    add_weight(gradients, count, panels, l_.inputs, parts_ih_, sums + sums_.w_ih * bytes());
  }

  void run_large(int64_t block);
  void large_weight_gradients(const Tensor& gradients, const Tensor& grad_projected, const Tensor& hidden);
  void threaded_add_weight(const char* a, int64_t a_row, const void* panels, int64_t columns,
                           const std::vector<Part>& parts, char* to) const;

  const RecurrentLayer& l_;
  const bool packed_, want_input_, want_weights_;
  const RecurrentSequenceKernels& kernels_;
  Tensor input_, hx_, cx_, output_, grad_output_, total_;
  Rows x_, grad_x_;
  std::vector<Part> parts_ih_, parts_hh_;
  std::vector<Direction> directions_;
  Sums sums_;
  bool one_hot_ = false;
};

// carry [rows,P] += the gradient of step t's output.
void add_output_gradient(const RecurrentLayer& layer, char* carry, const char* grad, int64_t grad_row,
                         int64_t begin, int64_t end) {
  if (grad == nullptr) return;
  const auto add = [&]<typename T>(T* to, const T* from) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < layer.state; ++j) to[row * layer.state + j] += from[row * grad_row + j];
    }
  };
  if (layer.type == 0) {
    add(reinterpret_cast<double*>(carry), reinterpret_cast<const double*>(grad));
  } else {
    add(reinterpret_cast<float*>(carry), reinterpret_cast<const float*>(grad));
  }
}

PanelProduct Backward::projection_product(const Direction& d, char* to) const {
  PanelProduct p{};
  p.inner = l_.state;
  p.columns = l_.hidden;
  p.a = d.grad_h;
  p.a_row = l_.state;
  p.a_inner = 1;
  p.b = d.w_hr.const_data_ptr();
  p.b_total = l_.state;
  p.c = to;
  p.c_row = l_.hidden;
  return p;
}

void Backward::hidden_values(const Direction& d, int64_t t, int64_t begin, int64_t end, char* to) const {
  kernels_.lstm_hidden[l_.type](d.saved.at(t), d.saved.row, d.cells.at(t), l_.hidden, begin, end, to);
}

void Backward::project(const Direction& d, int64_t t, int64_t begin, int64_t end, char* grad_hidden,
                       char* hidden, char* panels, char* sums) const {
  add_output_gradient(l_, d.grad_h, d.grad_y.at(t), d.grad_y.row, begin, end);
  all_panels(projection_product(d, grad_hidden - begin * l_.hidden * bytes()), begin, end);
  if (sums == nullptr) return;
  hidden_values(d, t, begin, end, hidden - begin * l_.hidden * bytes());
  PackRows pack{};
  pack.inner = pack.total = end - begin;
  pack.columns = l_.hidden;
  pack.matrix = hidden;
  pack.matrix_row = l_.hidden;
  pack.packed = panels;
  panel_kernels().pack_rows[l_.type](pack, 0, l_.panels(l_.hidden));
  PanelProduct p{};
  p.inner = p.b_total = end - begin;
  p.columns = p.c_row = l_.hidden;
  p.a = d.grad_h + begin * l_.state * bytes();
  p.a_row = 1;
  p.a_inner = l_.state;
  p.b = panels;
  p.c = sums + sums_.w_hr * bytes();
  p.accumulate = true;
  all_panels(p, 0, l_.state);
}

// Gradients of the gates of all steps first, then each weight's gradient as one product.
void Backward::run_large(int64_t block) {
  const int64_t width = l_.gradients();
  const Tensor gradients = at::empty({l_.directions, l_.rows, width}, l_.options());
  Tensor grad_hidden, grad_projected, hidden;
  if (l_.projected) {
    grad_hidden = at::empty({l_.directions, l_.batch, l_.hidden}, l_.options());
    grad_projected = at::empty({l_.directions, l_.rows, l_.state}, l_.options());
    hidden = at::empty({l_.directions, l_.rows, l_.hidden}, l_.options());
  }
  const auto begin_step = [&](int64_t index, int64_t t) {
    const Direction& d = directions_[static_cast<size_t>(index)];
    RecurrentStepBackward p = step_of(d, t);
    p.grad_gates = own_rows(gradients, index, width).at(t);
    p.grad_gates_row = width;
    if (l_.projected) {
      p.grad_h = offset(grad_hidden, index * l_.batch * l_.hidden);
      p.grad_h_row = l_.hidden;
    }
    return p;
  };
  // Rows [begin, end) of what precedes the gates' gradients in a projected layer.
  const auto project_step = [&](int64_t index, int64_t t, int64_t begin, int64_t end) {
    const Direction& d = directions_[static_cast<size_t>(index)];
    add_output_gradient(l_, d.grad_h, d.grad_y.at(t), d.grad_y.row, begin, end);
    std::memcpy(own_rows(grad_projected, index, l_.state).at(t) + begin * l_.state * bytes(),
                d.grad_h + begin * l_.state * bytes(),
                static_cast<size_t>((end - begin) * l_.state * bytes()));
    hidden_values(d, t, begin, end, own_rows(hidden, index, l_.hidden).at(t));
  };
  const auto time = [&](const Direction& d, int64_t s) { return d.reversed ? l_.steps - 1 - s : s; };
  if (block > 0) {
    const int64_t blocks = (l_.batch + block - 1) / block;
    at::parallel_for(0, blocks * l_.directions, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t index = task / blocks, begin = task % blocks * block;
        const Direction& d = directions_[static_cast<size_t>(index)];
        for (int64_t s = l_.steps - 1; s >= 0; --s) {
          const int64_t t = time(d, s);
          const int64_t stop = std::min({begin + block, l_.batch, l_.counts[static_cast<size_t>(t)]});
          if (stop <= begin) continue;
          const RecurrentStepBackward p = begin_step(index, t);
          if (l_.projected) {
            project_step(index, t, begin, stop);
            all_panels(projection_product(d, static_cast<char*>(p.grad_h)), begin, stop);
          }
          step(d, p, t, begin, stop, 0, l_.hidden);
          all_panels(state_product(d, static_cast<const char*>(p.grad_gates)), begin, stop);
        }
      }
    });
  } else {
    const int64_t chunk = 2 * l_.lanes, chunks = (l_.hidden + chunk - 1) / chunk;
    const int64_t panels = l_.panels(l_.state);
    const auto grain = [&](int64_t cost) {
      return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, cost));
    };
    for (int64_t s = l_.steps - 1; s >= 0; --s) {
      for (int64_t index = 0; l_.projected && index < l_.directions; ++index) {
        const Direction& d = directions_[static_cast<size_t>(index)];
        const int64_t t = time(d, s), count = l_.counts[static_cast<size_t>(t)];
        project_step(index, t, 0, count);
        threaded_product(l_, projection_product(d, offset(grad_hidden, index * l_.batch * l_.hidden)), count);
      }
      at::parallel_for(0, l_.directions * chunks, grain(l_.batch * chunk * 16),
                       [&](int64_t first, int64_t last) {
                         for (int64_t task = first; task < last; ++task) {
                           const int64_t index = task / chunks, unit = task % chunks * chunk;
                           const Direction& d = directions_[static_cast<size_t>(index)];
                           const int64_t t = time(d, s);
                           step(d, begin_step(index, t), t, 0, l_.counts[static_cast<size_t>(t)], unit,
                                std::min(unit + chunk, l_.hidden));
                         }
                       });
      const int64_t cost = l_.batch * l_.gates() * 4 * l_.lanes / 2;
      at::parallel_for(0, l_.directions * panels, grain(cost), [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t index = task / panels, panel = task % panels;
          const Direction& d = directions_[static_cast<size_t>(index)];
          const int64_t t = time(d, s);
          const PanelProduct p = state_product(d, own_rows(gradients, index, width).at(t));
          panel_kernels().product[l_.type](p, 0, l_.counts[static_cast<size_t>(t)], panel, panel + 1);
        }
      });
    }
  }
  for (int64_t index = 0; want_input_ && index < l_.directions; ++index) {
    PanelProduct p =
        input_product(directions_[static_cast<size_t>(index)], offset(gradients, index * l_.rows * width));
    p.c = grad_input.data_ptr();
    p.c_row = l_.inputs;
    p.accumulate = index > 0;
    threaded_product(l_, p, l_.rows);
  }
  if (want_weights_) large_weight_gradients(gradients, grad_projected, hidden);
}

void Backward::large_weight_gradients(const Tensor& gradients, const Tensor& grad_projected,
                                      const Tensor& hidden) {
  const int64_t width = l_.gradients();
  Tensor ones, x_panels;
  one_hot_ = l_.tokens;
  if (l_.tokens) {
    ones = input_;
  } else {
    const Tensor x = input_.contiguous().view({l_.rows, l_.inputs});
    if (l_.inputs >= 8) {
      ones = at::empty({l_.rows}, at::kLong);
      one_hot_ = panel_kernels().find_ones[l_.type](x.const_data_ptr(), l_.inputs, l_.rows, l_.inputs,
                                                    ones.mutable_data_ptr<int64_t>());
    }
    if (!one_hot_) {
      x_panels = at::empty({l_.rows * l_.padded(l_.inputs)}, l_.options());
      threaded_pack_rows(l_, x, 0, l_.rows, x_panels.data_ptr());
    }
  }
  total_ = at::zeros({l_.directions, sums_.size + table_size()}, l_.options());
  Tensor state_panels = at::empty({l_.rows * l_.padded(l_.state)}, l_.options());
  for (int64_t index = 0; index < l_.directions; ++index) {
    const Direction& d = directions_[static_cast<size_t>(index)];
    char* sums = offset(total_, index * (sums_.size + table_size()));
    const char* from = offset(gradients, index * l_.rows * width);
    at::parallel_for(0, l_.panels(l_.state), 1, [&](int64_t first, int64_t last) {
      for (int64_t t = 0; t < l_.steps; ++t) {
        const auto at = static_cast<size_t>(t);
        pack_state(d, t, 0, l_.counts[at], l_.offsets[at], l_.rows, state_panels.data_ptr(), first, last);
      }
    });
    threaded_add_weight(from, width, state_panels.const_data_ptr(), l_.state, parts_hh_,
                        sums + sums_.w_hh * bytes());
    if (!one_hot_) {
      threaded_add_weight(from, width, x_panels.const_data_ptr(), l_.inputs, parts_ih_,
                          sums + sums_.w_ih * bytes());
    }
    const int64_t chunk = 4 * l_.lanes;
    at::parallel_for(0, (width + chunk - 1) / chunk, 1, [&](int64_t first, int64_t last) {
      const int64_t begin = first * chunk, count = std::min(last * chunk, width) - begin;
      const char* columns = from + begin * bytes();
      panel_kernels().add_rows[l_.type](columns, width, l_.rows, count,
                                        sums + (sums_.bias + begin) * bytes());
    });
    if (one_hot_) {
      // All of the columns: the rows of the table are as wide as the gradients.
      panel_kernels().scatter_rows[l_.type](from, width, l_.rows, width, ones.const_data_ptr<int64_t>(),
                                            sums + sums_.table * bytes());
    }
    if (l_.projected) {
      Tensor panels = at::empty({l_.rows * l_.padded(l_.hidden)}, l_.options());
      threaded_pack_rows(l_, hidden.select(0, index), 0, l_.rows, panels.data_ptr());
      threaded_add_weight(offset(grad_projected, index * l_.rows * l_.state), l_.state,
                          panels.const_data_ptr(), l_.hidden, {{0, l_.state, 0}},
                          sums + sums_.w_hr * bytes());
    }
  }
}

// Weight gradient [parts, columns] += a^T panels over all rows: a slice of a few columns of `a` is copied
// together, as its rows lie far apart.
void Backward::threaded_add_weight(const char* a, int64_t a_row, const void* panels, int64_t columns,
                                   const std::vector<Part>& parts, char* to) const {
  constexpr int64_t kWidth = 48, kSlice = 512;
  for (const Part& part : parts) {
    const int64_t chunks = (part.count + kWidth - 1) / kWidth;
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      char* copy = static_cast<char*>(thread_scratch(static_cast<size_t>(kWidth * kSlice * bytes())));
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk * kWidth, width = std::min(kWidth, part.count - begin);
        for (int64_t k = 0; k < l_.rows; k += kSlice) {
          const int64_t inner = std::min(kSlice, l_.rows - k);
          for (int64_t i = 0; i < inner; ++i) {
            std::memcpy(copy + i * width * bytes(), a + ((k + i) * a_row + part.from + begin) * bytes(),
                        static_cast<size_t>(width * bytes()));
          }
          PanelProduct p{};
          p.inner = inner;
          p.columns = p.c_row = columns;
          p.a = copy;
          p.a_row = 1;
          p.a_inner = width;
          p.b = panels;
          p.b_first = k;
          p.b_total = l_.rows;
          p.c = to + (part.to + begin) * columns * bytes();
          p.accumulate = true;
          all_panels(p, 0, width);
        }
      }
    });
  }
}

// Inner stride 1 in the dtype of the computation.
Tensor readable(const Tensor& tensor, const RecurrentLayer& layer, bool packed) {
  const Tensor x = tensor.to(layer.compute);
  return (packed || x.size(-1) == 0 || x.stride(-1) != 1) && !x.is_contiguous() ? x.contiguous() : x;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent_layer_backward(
    const Optional& grad_output, const Optional& grad_h, const Optional& grad_c, const Tensor& input,
    const Optional& batch_sizes, const Tensor& hx, const Optional& cx, at::TensorList weights,
    const Tensor& output, const Tensor& saved, const Tensor& cells, std::string_view mode, bool bias,
    bool projected, bool reverse, std::array<bool, 4> mask) {
  const RecurrentLayer layer =
      describe_recurrent_layer(input, batch_sizes, hx, cx, weights, mode, bias, projected, reverse);
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  const auto given = [](const Optional& tensor) { return tensor.has_value() ? *tensor : Tensor(); };
  const Tensor grad = given(grad_output);
  const Tensor x = layer.tokens ? input.contiguous() : readable(input, layer, packed);
  const bool lstm = layer.mode == RecurrentMode::kLSTM;
  Backward backward(layer, x, packed, hx.to(layer.compute).contiguous(),
                    lstm ? cx->to(layer.compute).contiguous() : Tensor(),
                    output.to(layer.compute).contiguous(), saved.contiguous(), cells.contiguous(),
                    grad.defined() ? readable(grad, layer, packed) : Tensor(), given(grad_h), given(grad_c),
                    mask);
  backward.run();
  const auto type = hx.scalar_type();
  std::vector<Tensor> weight_gradients;
  for (int64_t d = 0; mask[3] && d < layer.directions; ++d) {
    backward.weight_gradients(d, weight_gradients, type);
  }
  return {backward.grad_input.to(type), backward.grad_hx.to(type), backward.grad_cx.to(type),
          std::move(weight_gradients)};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, CPU, m) { m.impl("_recurrent_layer_backward", recurrent_layer_backward); }

}  // namespace d2lfast::ops
