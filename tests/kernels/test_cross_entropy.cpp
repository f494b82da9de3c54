#include <algorithm>

#include "../../csrc/kernels/cross_entropy.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(CrossEntropyKernels, cross_entropy_kernels);

namespace d2lfast::test {
namespace {

// Logits [outer,inner,C] whose rows are `gap` apart, targets and losses [inner,outer].
struct Problem {
  DType dtype;
  int64_t outer, inner, classes, gap;
  bool each;
};

void test_rows(const CrossEntropyKernels& table, const Problem& p, Random random, const std::string& what) {
  const int64_t rows = p.outer * p.inner;
  const DType accumulator = accumulator_of(p.dtype);
  const auto index = static_cast<size_t>(p.dtype);
  Matrix x(p.dtype, rows, p.classes, p.gap), grad(p.dtype, rows, p.classes, p.gap);
  x.randomise(random, 4);
  Exact<int64_t> target(rows);
  for (int64_t i = 0; i < rows; ++i) target[i] = random.chance(20) ? -7 : random.between(0, p.classes - 1);
  Buffer statistics(accumulator, 2 * rows), losses(p.dtype, rows), grad_losses(p.dtype, rows);
  grad_losses.randomise(random);

  std::vector<double> wanted_losses(static_cast<size_t>(rows)), wanted_grad = grad.buffer.values();
  double sum = 0;
  int64_t count = 0;
  const double scale = 0.375;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = row % p.inner * p.outer + row / p.inner, wanted = target[place];
    double total = 0;
    for (int64_t c = 0; c < p.classes; ++c) total += std::exp(x.get(row, c));
    const double loss = wanted < 0 ? 0 : std::log(total) - x.get(row, wanted);
    wanted_losses[static_cast<size_t>(place)] = loss;
    sum += loss;
    count += wanted >= 0;
    const double factor = wanted < 0 ? 0 : p.each ? grad_losses.get(place) : scale;
    for (int64_t c = 0; c < p.classes; ++c) {
      wanted_grad[static_cast<size_t>(row * x.row + c)] =
          factor * (std::exp(x.get(row, c)) / total - (c == wanted ? 1 : 0));
    }
  }

  const auto rows_of = [&](CrossEntropyRows& params) {
    params.classes = p.classes;
    params.inner_rows = p.inner;
    params.ignore_index = -7;
    params.input = x.buffer.data();
    params.input_outer = p.inner * x.row;
    params.input_inner = x.row;
    params.target = target.data();
    params.target_outer = 1;
    params.target_inner = p.outer;
  };
  CrossEntropyForward forward{};
  rows_of(forward);
  forward.statistics = statistics.data();
  forward.losses = p.each ? losses.data() : nullptr;
  forward.losses_outer = 1;
  forward.losses_inner = p.outer;
  const int64_t split = random.between(0, rows);
  const CrossEntropySum second = table.forward[index](forward, split, rows);
  const CrossEntropySum first = table.forward[index](forward, 0, split);
  expect(first.bad == -1 && second.bad == -1, what + ": bad target");
  expect(first.count + second.count == count, what + ": count");
  expect(std::fabs(first.loss + second.loss - sum) <=
             static_cast<double>(rows + p.classes) * 32 * unit_roundoff(accumulator) * 8,
         what + ": sum of the losses");
  if (p.each) expect_close(losses, wanted_losses, p.classes, 8, what + ": losses");

  CrossEntropyBackward backward{};
  rows_of(backward);
  backward.statistics = statistics.data();
  backward.grad_losses = p.each ? grad_losses.data() : nullptr;
  backward.grad_losses_outer = 1;
  backward.grad_losses_inner = p.outer;
  backward.scale = scale;
  backward.grad_input = grad.buffer.data();
  backward.grad_input_outer = p.inner * grad.row;
  backward.grad_input_inner = grad.row;
  table.backward[index](backward, split, rows);
  table.backward[index](backward, 0, split);
  expect_close(grad.buffer, wanted_grad, p.classes, 8, what + ": gradient");

  target[0] = random.chance(50) ? p.classes : -1;
  expect(table.forward[index](forward, 0, 1).bad == 0, what + ": a target that is no class");
}

}  // namespace

void test_cross_entropy(int cases) {
  const auto all = tables(cpu::baseline::cross_entropy_kernels, cpu::avx2::cross_entropy_kernels,
                          cpu::avx512::cross_entropy_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p{static_cast<DType>(random.between(0, 3)),
                    random.between(1, 4),
                    random.between(1, 5),
                    random.between(1, 70),
                    random.between(0, 3),
                    random.chance(50)};
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " case " + std::to_string(number) + " " +
                               name_of(p.dtype) + " of " + std::to_string(p.classes) + " classes";
      test_rows(*all.table[isa], p, random, what);
    }
  }
}

}  // namespace d2lfast::test
