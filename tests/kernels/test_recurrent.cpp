#include <algorithm>

#include "../../csrc/kernels/recurrent.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(RecurrentKernels, recurrent_kernels);

namespace d2lfast::test {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Problem {
  DType dtype;
  int64_t batch, hidden;
  Activation activation;
  bool bias, grad_output, grad_cell;
};

// Rows [0, N/2) and [N/2, N), as two threads would have them.
template <typename Kernel, typename Params>
void in_two(Kernel kernel, const Params& params, int64_t batch) {
  kernel(params, 0, batch / 2);
  kernel(params, batch / 2, batch);
}

class Cell {
 public:
  Cell(const RecurrentKernels& table, const Problem& p, Random random, std::string what)
      : table_(table), p_(p), random_(random), what_(std::move(what)), dtype_(static_cast<int>(p.dtype)) {}

  void test_rnn() {
    const int64_t n = p_.batch, h = p_.hidden;
    Buffer gates(p_.dtype, n * h), b_ih(p_.dtype, h), b_hh(p_.dtype, h), grad(p_.dtype, n * h);
    Buffer grad_gates(p_.dtype, n * h);
    randomise({&gates, &b_ih, &b_hh, &grad});
    std::vector<double> expected = gates.values();
    for (int64_t i = 0; i < n * h; ++i) {
      expected[at(i)] = activated(p_.activation, expected[at(i)] + bias(b_ih, i % h) + bias(b_hh, i % h));
    }
    RecurrentForward forward{};
    forward.hidden = h;
    forward.activation = p_.activation;
    forward.gates = gates.data();
    forward.b_ih = p_.bias ? b_ih.data() : nullptr;
    forward.b_hh = p_.bias ? b_hh.data() : nullptr;
    in_two(table_.rnn_forward[dtype_], forward, n);
    expect_close(gates, expected, 4, 1, what_ + ": rnn output");

    RecurrentBackward backward{};
    backward.hidden = h;
    backward.activation = p_.activation;
    backward.grad_output = grad.data();
    backward.gates = gates.data();
    backward.grad_gates = grad_gates.data();
    in_two(table_.rnn_backward[dtype_], backward, n);
    for (int64_t i = 0; i < n * h; ++i) {
      expected[at(i)] = grad.get(i) * activation_derivative(p_.activation, gates.get(i));
    }
    expect_close(grad_gates, expected, 4, 1, what_ + ": rnn gradient");
  }

  void test_gru() {
    const int64_t n = p_.batch, h = p_.hidden;
    Buffer gates(p_.dtype, n * 3 * h), hidden(p_.dtype, n * 3 * h), b_ih(p_.dtype, 3 * h);
    Buffer b_hh(p_.dtype, 3 * h), state(p_.dtype, n * h), candidate(p_.dtype, n * h), output(p_.dtype, n * h);
    randomise({&gates, &hidden, &b_ih, &b_hh, &state});
    std::vector<double> wanted_gates = gates.values(), wanted_candidate(size(n * h)), wanted(size(n * h));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < h; ++j) {
        const int64_t row = i * 3 * h + j;
        const auto sum = [&](int64_t gate) {
          return wanted_gates[at(row + gate * h)] + bias(b_ih, gate * h + j);
        };
        const auto hidden_sum = [&](int64_t gate) {
          return hidden.get(row + gate * h) + bias(b_hh, gate * h + j);
        };
        const double r = sigmoid(sum(0) + hidden_sum(0)), z = sigmoid(sum(1) + hidden_sum(1));
        const double c = hidden_sum(2), m = std::tanh(sum(2) + r * c);
        wanted[at(i * h + j)] = m + z * (state.get(i * h + j) - m);
        wanted_candidate[at(i * h + j)] = c;
        wanted_gates[at(row)] = r;
        wanted_gates[at(row + h)] = z;
        wanted_gates[at(row + 2 * h)] = m;
      }
    }
    RecurrentForward forward{};
    forward.hidden = h;
    forward.gates = gates.data();
    forward.hidden_gates = hidden.data();
    forward.b_ih = p_.bias ? b_ih.data() : nullptr;
    forward.b_hh = p_.bias ? b_hh.data() : nullptr;
    forward.state = state.data();
    forward.candidate = candidate.data();
    forward.output = output.data();
    in_two(table_.gru_forward[dtype_], forward, n);
    expect_close(gates, wanted_gates, 8, 1, what_ + ": gru gates");
    expect_close(candidate, wanted_candidate, 4, 2, what_ + ": gru candidate");
    expect_close(output, wanted, 8, 2, what_ + ": gru output", 2);

    Buffer grad(p_.dtype, n * h), grad_gates(p_.dtype, n * 3 * h), grad_hidden(p_.dtype, n * 3 * h);
    Buffer grad_state(p_.dtype, n * h);
    randomise({&grad});
    RecurrentBackward backward{};
    backward.hidden = h;
    backward.grad_output = grad.data();
    backward.gates = gates.data();
    backward.state = state.data();
    backward.candidate = candidate.data();
    backward.grad_gates = grad_gates.data();
    backward.grad_hidden_gates = grad_hidden.data();
    backward.grad_state = grad_state.data();
    in_two(table_.gru_backward[dtype_], backward, n);
    std::vector<double> wanted_hidden(size(n * 3 * h)), wanted_state(size(n * h));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < h; ++j) {
        const int64_t row = i * 3 * h + j;
        const double r = gates.get(row), z = gates.get(row + h), m = gates.get(row + 2 * h);
        const double g = grad.get(i * h + j), dm = g * (1 - z) * (1 - m * m);
        const double dz = g * (state.get(i * h + j) - m) * z * (1 - z);
        const double dr = dm * candidate.get(i * h + j) * r * (1 - r);
        wanted_gates[at(row)] = wanted_hidden[at(row)] = dr;
        wanted_gates[at(row + h)] = wanted_hidden[at(row + h)] = dz;
        wanted_gates[at(row + 2 * h)] = dm;
        wanted_hidden[at(row + 2 * h)] = dm * r;
        wanted_state[at(i * h + j)] = g * z;
      }
    }
    expect_close(grad_gates, wanted_gates, 8, 1, what_ + ": gru gradient of the gates");
    expect_close(grad_hidden, wanted_hidden, 8, 1, what_ + ": gru gradient of the hidden products", 2);
    expect_close(grad_state, wanted_state, 8, 1, what_ + ": gru gradient of the state");
  }

  void test_lstm() {
    const int64_t n = p_.batch, h = p_.hidden;
    Buffer gates(p_.dtype, n * 4 * h), b_ih(p_.dtype, 4 * h), b_hh(p_.dtype, 4 * h), state(p_.dtype, n * h);
    Buffer cell(p_.dtype, n * h), output(p_.dtype, n * h);
    randomise({&gates, &b_ih, &b_hh, &state});
    std::vector<double> wanted_gates = gates.values(), wanted_cell(size(n * h)), wanted(size(n * h));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < h; ++j) {
        double gate[4];
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t column = k * h + j;
          const double x = wanted_gates[at(i * 4 * h + column)] + bias(b_ih, column) + bias(b_hh, column);
          gate[k] = wanted_gates[at(i * 4 * h + column)] = k == 2 ? std::tanh(x) : sigmoid(x);
        }
        const double c = gate[1] * state.get(i * h + j) + gate[0] * gate[2];
        wanted_cell[at(i * h + j)] = c;
        wanted[at(i * h + j)] = gate[3] * std::tanh(c);
      }
    }
    RecurrentForward forward{};
    forward.hidden = h;
    forward.gates = gates.data();
    forward.b_ih = p_.bias ? b_ih.data() : nullptr;
    forward.b_hh = p_.bias ? b_hh.data() : nullptr;
    forward.state = state.data();
    forward.cell = cell.data();
    forward.output = output.data();
    in_two(table_.lstm_forward[dtype_], forward, n);
    expect_close(gates, wanted_gates, 8, 1, what_ + ": lstm gates");
    expect_close(cell, wanted_cell, 8, 2, what_ + ": lstm cell");
    expect_close(output, wanted, 8, 2, what_ + ": lstm output", 2);

    Buffer grad(p_.dtype, n * h), grad_cell(p_.dtype, n * h), grad_gates(p_.dtype, n * 4 * h);
    Buffer grad_state(p_.dtype, n * h);
    randomise({&grad, &grad_cell});
    RecurrentBackward backward{};
    backward.hidden = h;
    backward.grad_output = p_.grad_output ? grad.data() : nullptr;
    backward.grad_cell = p_.grad_cell ? grad_cell.data() : nullptr;
    backward.gates = gates.data();
    backward.state = state.data();
    backward.cell = cell.data();
    backward.grad_gates = grad_gates.data();
    backward.grad_state = grad_state.data();
    in_two(table_.lstm_backward[dtype_], backward, n);
    std::vector<double> wanted_state(size(n * h));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < h; ++j) {
        const auto gate = [&](int64_t k) { return gates.get(i * 4 * h + k * h + j); };
        const double t = std::tanh(cell.get(i * h + j)), c = state.get(i * h + j);
        const double dh = p_.grad_output ? grad.get(i * h + j) : 0;
        const double dc = (p_.grad_cell ? grad_cell.get(i * h + j) : 0) + dh * gate(3) * (1 - t * t);
        const double d[4] = {dc * gate(2) * gate(0) * (1 - gate(0)), dc * c * gate(1) * (1 - gate(1)),
                             dc * gate(0) * (1 - gate(2) * gate(2)), dh * t * gate(3) * (1 - gate(3))};
        for (int64_t k = 0; k < 4; ++k) wanted_gates[at(i * 4 * h + k * h + j)] = d[k];
        wanted_state[at(i * h + j)] = dc * gate(1);
      }
    }
    expect_close(grad_gates, wanted_gates, 8, 2, what_ + ": lstm gradient of the gates");
    expect_close(grad_state, wanted_state, 8, 2, what_ + ": lstm gradient of the cell");
  }

  void test_column_sums() {
    const int64_t n = p_.batch, h = p_.hidden;
    Buffer matrix(p_.dtype, n * h), first(p_.dtype, h), second(p_.dtype, h), alone(p_.dtype, h);
    randomise({&matrix});
    std::vector<double> expected(size(h));
    for (int64_t i = 0; i < n * h; ++i) expected[at(i % h)] += matrix.get(i);
    for (const auto& [begin, end] : {std::pair{int64_t{0}, h / 2}, std::pair{h / 2, h}}) {
      table_.column_sums[dtype_](matrix.data(), n, h, begin, end, first.data(), second.data());
      table_.column_sums[dtype_](matrix.data(), n, h, begin, end, nullptr, alone.data());
    }
    for (const Buffer* sums : {&first, &second, &alone}) {
      expect_close(*sums, expected, n, 1, what_ + ": column sums");
    }
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  double bias(const Buffer& b, int64_t i) const { return p_.bias ? b.get(i) : 0; }
  void randomise(std::initializer_list<Buffer*> buffers) {
    for (Buffer* buffer : buffers) buffer->randomise(random_);
  }

  const RecurrentKernels& table_;
  const Problem& p_;
  Random random_;
  std::string what_;
  int dtype_;
};

}  // namespace

void test_recurrent(int cases) {
  const auto all =
      tables(cpu::baseline::recurrent_kernels, cpu::avx2::recurrent_kernels, cpu::avx512::recurrent_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    Problem p{static_cast<DType>(random.between(0, 3)),
              random.between(1, 9),
              random.between(1, 80),
              random.chance(50) ? Activation::kReLU : Activation::kTanh,
              random.chance(70),
              random.chance(80),
              random.chance(80)};
    p.grad_output = p.grad_output || !p.grad_cell;
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " case " + std::to_string(number) + " " +
                               name_of(p.dtype) + " " + std::to_string(p.batch) + "x" +
                               std::to_string(p.hidden);
      Cell cell(*all.table[isa], p, random, what);
      cell.test_rnn();
      cell.test_gru();
      cell.test_lstm();
      cell.test_column_sums();
    }
  }
}

}  // namespace d2lfast::test
