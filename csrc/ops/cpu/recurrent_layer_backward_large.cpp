#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "../allocate.h"
#include "recurrent_layer_backward.h"

namespace d2lfast::ops {

using at::Tensor;

namespace {

// carry [rows,P] += the gradient of step t's output.
void add_output_gradient(const CPURecurrentLayer& layer, char* carry, const char* grad, int64_t grad_row,
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

}  // namespace

PanelProduct RecurrentBackward::projection_product(const BackwardDirection& d, char* to) const {
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

void RecurrentBackward::hidden_values(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end,
                                      char* to) const {
  kernels_.lstm_hidden[l_.type](d.saved.at(t), d.saved.row, d.cells.at(t), l_.hidden, begin, end, to);
}

void RecurrentBackward::project(const BackwardDirection& d, int64_t t, int64_t begin, int64_t end,
                                char* grad_hidden, char* hidden, char* panels, char* sums) const {
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
  panel_product_kernels().pack_rows[l_.type](pack, 0, l_.panels(l_.hidden));
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
void RecurrentBackward::run_large(int64_t block) {
  const int64_t width = l_.gradients();
  const Tensor gradients = empty({l_.directions, l_.rows, width}, l_.options());
  Tensor grad_hidden, grad_projected, hidden;
  if (l_.projected) {
    grad_hidden = empty({l_.directions, l_.batch, l_.hidden}, l_.options());
    grad_projected = empty({l_.directions, l_.rows, l_.state}, l_.options());
    hidden = empty({l_.directions, l_.rows, l_.hidden}, l_.options());
  }
  const auto begin_step = [&](int64_t index, int64_t t) {
    const BackwardDirection& d = directions_[static_cast<size_t>(index)];
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
    const BackwardDirection& d = directions_[static_cast<size_t>(index)];
    add_output_gradient(l_, d.grad_h, d.grad_y.at(t), d.grad_y.row, begin, end);
    std::memcpy(own_rows(grad_projected, index, l_.state).at(t) + begin * l_.state * bytes(),
                d.grad_h + begin * l_.state * bytes(),
                static_cast<size_t>((end - begin) * l_.state * bytes()));
    hidden_values(d, t, begin, end, own_rows(hidden, index, l_.hidden).at(t));
  };
  const auto time = [&](const BackwardDirection& d, int64_t s) { return d.reversed ? l_.steps - 1 - s : s; };
  if (block > 0) {
    const int64_t blocks = (l_.batch + block - 1) / block;
    at::parallel_for(0, blocks * l_.directions, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t index = task / blocks, begin = task % blocks * block;
        const BackwardDirection& d = directions_[static_cast<size_t>(index)];
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
        const BackwardDirection& d = directions_[static_cast<size_t>(index)];
        const int64_t t = time(d, s), count = l_.counts[static_cast<size_t>(t)];
        project_step(index, t, 0, count);
        threaded_product(l_, projection_product(d, offset(grad_hidden, index * l_.batch * l_.hidden)), count);
      }
      at::parallel_for(0, l_.directions * chunks, grain(l_.batch * chunk * 16),
                       [&](int64_t first, int64_t last) {
                         for (int64_t task = first; task < last; ++task) {
                           const int64_t index = task / chunks, unit = task % chunks * chunk;
                           const BackwardDirection& d = directions_[static_cast<size_t>(index)];
                           const int64_t t = time(d, s);
                           step(d, begin_step(index, t), t, 0, l_.counts[static_cast<size_t>(t)], unit,
                                std::min(unit + chunk, l_.hidden));
                         }
                       });
      const int64_t cost = l_.batch * l_.gates() * 4 * l_.lanes / 2;
      at::parallel_for(0, l_.directions * panels, grain(cost), [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t index = task / panels, panel = task % panels;
          const BackwardDirection& d = directions_[static_cast<size_t>(index)];
          const int64_t t = time(d, s);
          const PanelProduct p = state_product(d, own_rows(gradients, index, width).at(t));
          panel_product_kernels().product[l_.type](p, 0, l_.counts[static_cast<size_t>(t)], panel, panel + 1);
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

void RecurrentBackward::large_weight_gradients(const Tensor& gradients, const Tensor& grad_projected,
                                               const Tensor& hidden) {
  const int64_t width = l_.gradients();
  Tensor ones, x_panels;
  one_hot_ = l_.tokens;
  if (l_.tokens) {
    ones = input_;
  } else {
    const Tensor x = input_.contiguous().view({l_.rows, l_.inputs});
    if (l_.inputs >= 8) {
      ones = empty({l_.rows}, at::kLong);
      one_hot_ = panel_product_kernels().find_ones[l_.type](x.const_data_ptr(), l_.inputs, l_.rows, l_.inputs,
                                                            ones.mutable_data_ptr<int64_t>());
    }
    if (!one_hot_) {
      x_panels = empty({l_.rows * l_.padded(l_.inputs)}, l_.options());
      threaded_pack_rows(l_, x, 0, l_.rows, x_panels.data_ptr());
    }
  }
  total_ = zeros({l_.directions, sums_.size + table_size()}, l_.options());
  Tensor state_panels = empty({l_.rows * l_.padded(l_.state)}, l_.options());
  for (int64_t index = 0; index < l_.directions; ++index) {
    const BackwardDirection& d = directions_[static_cast<size_t>(index)];
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
      panel_product_kernels().add_rows[l_.type](columns, width, l_.rows, count,
                                                sums + (sums_.bias + begin) * bytes());
    });
    if (one_hot_) {
      // All of the columns: the rows of the table are as wide as the gradients.
      panel_product_kernels().scatter_rows[l_.type](
          from, width, l_.rows, width, ones.const_data_ptr<int64_t>(), sums + sums_.table * bytes());
    }
    if (l_.projected) {
      Tensor panels = empty({l_.rows * l_.padded(l_.hidden)}, l_.options());
      threaded_pack_rows(l_, hidden.select(0, index), 0, l_.rows, panels.data_ptr());
      threaded_add_weight(offset(grad_projected, index * l_.rows * l_.state), l_.state,
                          panels.const_data_ptr(), l_.hidden, {{0, l_.state, 0}},
                          sums + sums_.w_hr * bytes());
    }
  }
}

// Weight gradient [parts, columns] += a^T panels over all rows: a slice of a few columns of `a` is copied
// together, as its rows lie far apart.
void RecurrentBackward::threaded_add_weight(const char* a, int64_t a_row, const void* panels, int64_t columns,
                                            const std::vector<WeightPart>& parts, char* to) const {
  constexpr int64_t kWidth = 48, kSlice = 512;
  for (const WeightPart& part : parts) {
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

}  // namespace d2lfast::ops
