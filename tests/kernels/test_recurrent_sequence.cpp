#include <algorithm>

#include "recurrent_sequence_problem.h"

D2LFAST_DECLARE_TABLES(PanelKernels, panel_product_kernels);
D2LFAST_DECLARE_TABLES(RecurrentSequenceKernels, recurrent_sequence_kernels);

namespace d2lfast::test {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
size_t at(int64_t i) { return static_cast<size_t>(i); }

// One direction of a layer over packed sequences, with every call whole or in pieces.
class Sequence {
 public:
  Sequence(const RecurrentSequenceKernels& table, const PanelKernels& panels, const SequenceProblem& p,
           Random random, bool whole, Agreement& agreement, std::string what)
      : table_(table),
        panels_(panels),
        p_(p),
        dtype_(static_cast<DType>(p.type)),
        lanes_(panels.lanes[p.type]),
        gates_(gates_of(p.mode)),
        random_(random),
        whole_(whole),
        agreement_(agreement),
        what_(std::move(what)),
        w_ih_(dtype_, gates_ * p.hidden, p.inputs, p.gap),
        w_hh_(dtype_, gates_ * p.hidden, p.state, p.gap),
        w_hr_(dtype_, p.projected() ? p.state : 0, p.hidden, p.gap),
        b_ih_(dtype_, gates_ * p.hidden),
        b_hh_(dtype_, gates_ * p.hidden),
        x_(dtype_, p.rows, p.inputs, p.gap),
        products_(dtype_, p.rows, gates_ * p.hidden, p.gap),
        h_0_(dtype_, p.counts[0], p.state, p.gap),
        c_0_(dtype_, p.counts[0], p.hidden),
        ones_(p.rows),
        y(dtype_, p.rows, p.state, p.gap),
        cells(dtype_, p.lstm() ? p.rows : 0, p.hidden),
        saved(dtype_, p.rows, saved_of(p.mode) * p.hidden, p.gap) {
    w_ih_.randomise(random_, 1 / std::sqrt(p.inputs + 1.0));
    w_hh_.randomise(random_, 1 / std::sqrt(p.state + 1.0));
    w_hr_.randomise(random_, 1 / std::sqrt(p.hidden + 1.0));
    for (Matrix* matrix : {&x_, &products_, &h_0_, &c_0_}) matrix->randomise(random_);
    b_ih_.randomise(random_);
    b_hh_.randomise(random_);
    if (p.inputs > 0) {
      for (int64_t i = 0; i < p.rows; ++i) ones_[i] = random_.between(0, p.inputs - 1);
    }
    if (p.input == SequenceInput::kProductsInPlace) {
      Matrix& to = products();
      for (int64_t i = 0; i < p.rows; ++i) {
        for (int64_t j = 0; j < products_.columns; ++j) to.buffer.set(i * to.row + j, products_.get(i, j));
      }
    }
  }

  void forward() {
    const int64_t vectors = (p_.hidden + lanes_ - 1) / lanes_;
    const int64_t panels = gates_ == 1 ? PanelGrid(vectors).count : vectors;
    const bool from_x = p_.input == SequenceInput::kDense || p_.input == SequenceInput::kOnes;
    const int64_t padded = vectors * lanes_, biases = gates_ == 3 ? 4 : gates_;
    Buffer w_ih(dtype_, from_x ? gates_ * padded * p_.inputs : 0), w_hh(dtype_, gates_ * padded * p_.state);
    Buffer bias(dtype_, biases * padded);
    if (from_x) pack(p_.mode, p_.hidden, panels, w_ih_, w_ih);
    pack(p_.mode, p_.hidden, panels, w_hh_, w_hh);
    table_.pack_bias[p_.type](p_.mode, p_.hidden, p_.b_ih ? b_ih_.data() : nullptr,
                              p_.b_hh ? b_hh_.data() : nullptr, bias.data());
    const PanelGrid grid((p_.state + lanes_ - 1) / lanes_);
    Buffer w_hr(dtype_, p_.projected() ? grid.vectors * lanes_ * p_.hidden : 0);
    if (p_.projected()) pack(RecurrentMode::kTanh, p_.state, grid.count, w_hr_, w_hr);

    for (int64_t s = 0; s < p_.steps; ++s) {
      const int64_t t = p_.reversed ? p_.steps - 1 - s : s, from = p_.reversed ? t + 1 : t - 1;
      const int64_t count = p_.counts[at(t)];
      const int64_t carried = s == 0 ? 0 : std::min(count, p_.counts[at(from)]);
      Matrix hidden(dtype_, p_.projected() ? count : 0, p_.hidden);
      RecurrentStep step{};
      step.mode = p_.mode;
      step.inputs = p_.inputs;
      step.state = p_.state;
      step.hidden = p_.hidden;
      step.w_ih = from_x ? w_ih.data() : nullptr;
      step.w_hh = w_hh.data();
      step.bias = bias.data();
      if (!from_x) {
        step.projected = products().from(p_.offsets[at(t)]);
        step.projected_row = products().row;
      } else if (p_.input == SequenceInput::kOnes) {
        step.ones = ones_.data() + p_.offsets[at(t)];
      } else {
        step.x = x_.from(p_.offsets[at(t)]);
        step.x_row = x_.row;
      }
      step.y = p_.projected() ? hidden.buffer.data() : y.from(p_.offsets[at(t)]);
      step.y_row = p_.projected() ? hidden.row : y.row;
      if (p_.lstm()) step.cell = cells.from(p_.offsets[at(t)]);
      step.c_row = step.cell_row = p_.hidden;
      if (p_.save && saved_of(p_.mode) > 0) step.saved = saved.from(p_.offsets[at(t)]);
      step.saved_row = saved.row;
      for (const auto& [begin, end] : {std::pair{int64_t{0}, carried}, std::pair{carried, count}}) {
        if (begin == end) continue;
        Matrix& before = begin < carried ? y : h_0_;
        Matrix& cell = begin < carried ? cells : c_0_;
        const int64_t first = begin < carried ? p_.offsets[at(from)] : 0;
        step.h = before.from(first);
        step.h_row = before.row;
        step.c = p_.lstm() ? cell.from(first) : nullptr;
        call(end - begin, panels, [&, row = begin](int64_t b, int64_t e, int64_t u, int64_t v) {
          table_.step[p_.type](step, row + b, row + e, u, v);
        });
        if (whole_) expect_step(t, begin, end, before, cell, first, hidden);
      }
      if (p_.projected()) project(t, count, grid, hidden, w_hr);
    }
    if (!whole_) return;
    const int64_t additions = p_.steps * (p_.inputs + p_.state + p_.hidden);
    agreement_.compare(y.buffer, additions, 16, what_ + ": y");
    agreement_.compare(cells.buffer, additions, 16, what_ + ": cells");
  }

  // The gradients of each step, from its results and a random gradient.
  void backward() {
    const int64_t h = p_.hidden;
    Matrix grad_y(dtype_, p_.rows, h, p_.gap), grad_h(dtype_, p_.rows, h), grad_c(dtype_, p_.rows, h);
    Matrix output(dtype_, p_.rows, h, p_.gap), gates(dtype_, p_.rows, gradients_of(p_.mode) * h, p_.gap);
    Matrix before(dtype_, p_.rows, h);
    for (Matrix* matrix : {&grad_y, &grad_h, &grad_c, &output, &before}) matrix->randomise(random_);
    RecurrentStepBackward step{};
    step.mode = p_.mode;
    step.hidden = h;
    step.grad_y = p_.grad_y ? grad_y.buffer.data() : nullptr;
    step.grad_y_row = grad_y.row;
    step.grad_h = grad_h.buffer.data();
    step.grad_c = p_.lstm() ? grad_c.buffer.data() : nullptr;
    step.saved = saved_of(p_.mode) > 0 ? saved.buffer.data() : nullptr;
    step.saved_row = saved.row;
    step.y = p_.lstm() ? nullptr : output.buffer.data();
    step.y_row = output.row;
    step.c = p_.lstm() ? before.buffer.data() : nullptr;
    step.cell = p_.lstm() ? cells.buffer.data() : nullptr;
    step.grad_h_row = step.grad_c_row = step.c_row = step.cell_row = h;
    step.grad_gates = gates.buffer.data();
    step.grad_gates_row = gates.row;
    std::vector<double> wanted = gates.buffer.values(), wanted_h = grad_h.buffer.values();
    std::vector<double> wanted_c = grad_c.buffer.values();
    for (int64_t i = 0; i < p_.rows; ++i) {
      for (int64_t j = 0; j < h; ++j) {
        const auto kept = [&](int64_t k) { return saved.get(i, k * h + j); };
        const auto want = [&](int64_t k, double value) { wanted[at(i * gates.row + k * h + j)] = value; };
        const double g = grad_h.get(i, j) + (p_.grad_y ? grad_y.get(i, j) : 0), y = output.get(i, j);
        if (gates_ == 1) {
          want(0, g * activation_derivative(activation(), y));
        } else if (gates_ == 3) {
          const double r = kept(0), z = kept(1), n = kept(2), grad_n = g * (1 - z) * (1 - n * n);
          want(0, grad_n);
          want(1, grad_n * kept(3) * r * (1 - r));
          want(2, g * (y - n) * z * (1 - z));
          want(3, grad_n * r);
          wanted_h[at(i * h + j)] = g * z;
        } else {
          const double tanh_cell = std::tanh(cells.get(i, j));
          const double grad_cell = grad_c.get(i, j) + g * kept(3) * (1 - tanh_cell * tanh_cell);
          want(0, grad_cell * kept(2) * kept(0) * (1 - kept(0)));
          want(1, grad_cell * before.get(i, j) * kept(1) * (1 - kept(1)));
          want(2, grad_cell * kept(0) * (1 - kept(2) * kept(2)));
          want(3, g * tanh_cell * kept(3) * (1 - kept(3)));
          wanted_c[at(i * h + j)] = grad_cell * kept(1);
        }
      }
    }
    call(p_.rows, h, [&](int64_t b, int64_t e, int64_t u, int64_t v) {
      table_.step_backward[p_.type](step, b, e, u, v);
    });
    expect_close(gates.buffer, wanted, 8, 8, what_ + ": gradient of the gates");
    expect_close(grad_h.buffer, wanted_h, 8, 8, what_ + ": gradient of the state");
    expect_close(grad_c.buffer, wanted_c, 8, 8, what_ + ": gradient of the cell");
    if (p_.lstm()) test_hidden();
  }

 private:
  const RecurrentSequenceKernels& table_;
  const PanelKernels& panels_;
  const SequenceProblem& p_;
  DType dtype_;
  int64_t lanes_, gates_;
  Random random_;
  bool whole_;
  Agreement& agreement_;
  std::string what_;
  Matrix w_ih_, w_hh_, w_hr_;
  Buffer b_ih_, b_hh_;
  Matrix x_, products_, h_0_, c_0_;
  Exact<int64_t> ones_;

 public:
  Matrix y, cells, saved;

 private:
  Activation activation() const {
    return p_.mode == RecurrentMode::kReLU ? Activation::kReLU : Activation::kTanh;
  }
  Matrix& products() {
    return p_.input != SequenceInput::kProductsInPlace ? products_ : gates_ == 1 ? y : saved;
  }

  template <typename Run>
  void call(int64_t rows, int64_t columns, Run run) {
    if (whole_) {
      run(0, rows, 0, columns);
    } else {
      in_pieces(random_, rows, columns, run);
    }
  }

  void pack(RecurrentMode mode, int64_t hidden, int64_t panels, Matrix& weight, Buffer& packed) {
    const PackGates params{mode, hidden, weight.columns, weight.buffer.data(), weight.row, packed.data()};
    call(1, panels, [&](int64_t, int64_t end, int64_t first, int64_t last) {
      if (end == 1) table_.pack_gates[p_.type](params, first, last);
    });
  }

  void project(int64_t t, int64_t count, const PanelGrid& grid, const Matrix& hidden, const Buffer& w_hr) {
    Matrix result(dtype_, count, p_.state, p_.gap);
    PanelProduct product{};
    product.inner = product.b_total = p_.hidden;
    product.columns = p_.state;
    product.a = hidden.buffer.data();
    product.a_row = hidden.row;
    product.a_inner = 1;
    product.b = w_hr.data();
    product.c = y.from(p_.offsets[at(t)]);
    product.c_row = y.row;
    call(count, grid.count, [&](int64_t b, int64_t e, int64_t first, int64_t last) {
      panels_.product[p_.type](product, b, e, first, last);
    });
    std::vector<double> expected = result.buffer.values();
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < p_.state; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < p_.hidden; ++k) sum += hidden.get(i, k) * w_hr_.get(j, k);
        expected[at(i * result.row + j)] = sum;
        result.buffer.set(i * result.row + j, y.get(p_.offsets[at(t)] + i, j));
      }
    }
    expect_close(result.buffer, expected, p_.hidden, 1, what_ + ": projection");
  }

  // Rows [begin, end) of step t from the kernel's own state before it.
  void expect_step(int64_t t, int64_t begin, int64_t end, const Matrix& before, const Matrix& cell,
                   int64_t first, const Matrix& hidden) {
    const int64_t h = p_.hidden, rows = end - begin, kept = p_.save ? saved_of(p_.mode) : 0;
    Buffer output(dtype_, rows * h), cell_after(dtype_, p_.lstm() ? rows * h : 0);
    Buffer keeps(dtype_, rows * kept * h);
    std::vector<double> wanted = output.values(), wanted_cell = cell_after.values(),
                        wanted_kept = keeps.values();
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t now = p_.offsets[at(t)] + begin + i, last = first + begin + i;
      for (int64_t j = 0; j < h; ++j) {
        double input[4], recurrent[4];
        for (int64_t g = 0; g < gates_; ++g) {
          input[g] = (p_.b_ih ? b_ih_.get(g * h + j) : 0) + input_product(now, g * h + j);
          recurrent[g] = p_.b_hh ? b_hh_.get(g * h + j) : 0;
          for (int64_t k = 0; k < p_.state; ++k) {
            recurrent[g] += before.get(last, k) * w_hh_.get(g * h + j, k);
          }
        }
        const auto sum = [&](int g) { return input[g] + recurrent[g]; };
        double keep[4];
        if (gates_ == 1) {
          wanted[at(i * h + j)] = activated(activation(), sum(0));
        } else if (gates_ == 3) {
          keep[0] = sigmoid(sum(0));
          keep[1] = sigmoid(sum(1));
          keep[2] = std::tanh(input[2] + keep[0] * recurrent[2]);
          keep[3] = recurrent[2];
          wanted[at(i * h + j)] = keep[2] + keep[1] * (before.get(last, j) - keep[2]);
        } else {
          for (int g = 0; g < 4; ++g) keep[g] = g == 2 ? std::tanh(sum(g)) : sigmoid(sum(g));
          const double c = keep[1] * cell.get(last, j) + keep[0] * keep[2];
          wanted_cell[at(i * h + j)] = c;
          wanted[at(i * h + j)] = keep[3] * std::tanh(c);
          cell_after.set(i * h + j, cells.get(now, j));
        }
        output.set(i * h + j, p_.projected() ? hidden.get(begin + i, j) : y.get(now, j));
        for (int64_t k = 0; k < kept; ++k) {
          wanted_kept[at((i * kept + k) * h + j)] = keep[k];
          keeps.set((i * kept + k) * h + j, saved.get(now, k * h + j));
        }
      }
    }
    const int64_t additions = p_.inputs + p_.state;
    expect_close(output, wanted, additions, 8, what_ + ": output of step " + std::to_string(t));
    expect_close(cell_after, wanted_cell, additions, 8, what_ + ": cell of step " + std::to_string(t));
    expect_close(keeps, wanted_kept, additions, 8, what_ + ": saved of step " + std::to_string(t));
  }

  double input_product(int64_t row, int64_t gate) {
    if (p_.input == SequenceInput::kOnes) return w_ih_.get(gate, ones_[row]);
    if (p_.input != SequenceInput::kDense) return products_.get(row, gate);
    double sum = 0;
    for (int64_t k = 0; k < p_.inputs; ++k) sum += x_.get(row, k) * w_ih_.get(gate, k);
    return sum;
  }

  void test_hidden() {
    Buffer hidden(dtype_, p_.rows * p_.hidden);
    std::vector<double> wanted = hidden.values();
    for (int64_t i = 0; i < p_.rows * p_.hidden; ++i) {
      const int64_t row = i / p_.hidden, j = i % p_.hidden;
      wanted[at(i)] = saved.get(row, 3 * p_.hidden + j) * std::tanh(cells.get(row, j));
    }
    call(p_.rows, 1, [&](int64_t b, int64_t e, int64_t, int64_t last) {
      if (last == 0) return;
      table_.lstm_hidden[p_.type](saved.buffer.data(), saved.row, cells.buffer.data(), p_.hidden, b, e,
                                  hidden.data());
    });
    expect_close(hidden, wanted, 8, 1, what_ + ": hidden state from what was saved");
  }
};

}  // namespace

void test_recurrent_sequence(int cases) {
  const auto all = tables(cpu::baseline::recurrent_sequence_kernels, cpu::avx2::recurrent_sequence_kernels,
                          cpu::avx512::recurrent_sequence_kernels);
  const auto panels = tables(cpu::baseline::panel_product_kernels, cpu::avx2::panel_product_kernels,
                             cpu::avx512::panel_product_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const SequenceProblem p = draw_sequence(random);
    Agreement agreement;
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string text = std::string(all.name(isa)) + " " + describe_sequence(p, number);
      agreement.next_set();
      Sequence whole(*all.table[isa], *panels.table[isa], p, random, true, agreement, text);
      Sequence pieces(*all.table[isa], *panels.table[isa], p, random, false, agreement, text);
      for (Sequence* sequence : {&whole, &pieces}) {
        sequence->forward();
        if (p.save) sequence->backward();
      }
      expect_same(whole.y.buffer, pieces.y.buffer, text + ": y");
      expect_same(whole.cells.buffer, pieces.cells.buffer, text + ": cells");
      expect_same(whole.saved.buffer, pieces.saved.buffer, text + ": saved");
    }
  }
}

}  // namespace d2lfast::test
