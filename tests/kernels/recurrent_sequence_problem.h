#pragma once

#include "../../csrc/kernels/recurrent_sequence.h"
#include "support.h"

namespace d2lfast::test {

// What a step adds the products of: the input, rows of the weight, or products made before, which may lie
// where the step leaves its results.
enum class SequenceInput { kDense, kOnes, kProducts, kProductsInPlace };

struct SequenceProblem {
  int type;
  RecurrentMode mode;
  SequenceInput input;
  int64_t inputs, state, hidden, steps;
  std::vector<int64_t> counts, offsets;  // rows of each step, and before it
  int64_t rows, gap;
  bool reversed, b_ih, b_hh, save, grad_y;
  bool lstm() const { return mode == RecurrentMode::kLSTM; }
  bool projected() const { return state < hidden; }
};

inline SequenceProblem draw_sequence(Random& random) {
  SequenceProblem p{};
  p.type = static_cast<int>(random.between(0, 1));
  p.mode = static_cast<RecurrentMode>(random.between(0, 3));
  p.input = static_cast<SequenceInput>(random.between(0, 3));
  p.hidden = random.chance(25) ? random.between(40, 140) : random.between(1, 36);
  if (gates_of(p.mode) > 1) p.hidden = (p.hidden + 1) / 2;
  p.inputs = random.between(p.input == SequenceInput::kOnes ? 1 : 0, 24);
  p.state = p.lstm() && p.hidden > 1 && random.chance(40) ? random.between(1, p.hidden - 1) : p.hidden;
  p.steps = random.between(1, 4);
  for (int64_t t = 0, count = random.between(1, 15); t < p.steps; ++t) {
    if (t > 0 && random.chance(60)) count = random.between(1, count);
    p.offsets.push_back(p.rows);
    p.counts.push_back(count);
    p.rows += count;
  }
  p.gap = random.chance(50) ? random.between(1, 5) : 0;
  p.reversed = random.chance(40);
  p.b_ih = random.chance(70);
  p.b_hh = random.chance(70);
  p.save = random.chance(70) || p.input == SequenceInput::kProductsInPlace;
  p.grad_y = random.chance(70);
  return p;
}

inline std::string describe_sequence(const SequenceProblem& p, int number) {
  char text[200];
  std::snprintf(
      text, sizeof(text),
      "sequence case %d %s mode %d input %d inputs %lld state %lld hidden %lld steps %lld batch %lld", number,
      name_of(static_cast<DType>(p.type)), static_cast<int>(p.mode), static_cast<int>(p.input),
      static_cast<long long>(p.inputs), static_cast<long long>(p.state), static_cast<long long>(p.hidden),
      static_cast<long long>(p.steps), static_cast<long long>(p.counts[0]));
  return text;
}

}  // namespace d2lfast::test
