#pragma once

#include <cstdint>

#include "dtype.h"

namespace d2lfast {

// Cross-entropy of rows of logits and class numbers. Row (o, i) lies at o * outer + i * inner of each
// operand, in its elements; rows are numbered o * inner_rows + i. The classes of a row are dense.
struct CrossEntropyRows {
  int64_t classes, inner_rows, ignore_index;
  const void* input;
  int64_t input_outer, input_inner;
  const int64_t* target;
  int64_t target_outer, target_inner;
};

struct CrossEntropyForward : CrossEntropyRows {
  void* statistics;  // [rows,2] maximum, and logarithm of the sum of exp(x - maximum); float or double
  void* losses;      // of the input's dtype, or null; 0 in ignored rows
  int64_t losses_outer, losses_inner;
};

struct CrossEntropyBackward : CrossEntropyRows {
  const void* statistics;
  const void* grad_losses;  // of the input's dtype, or null: `scale` is the gradient of each loss
  int64_t grad_losses_outer, grad_losses_inner;
  double scale;
  void* grad_input;
  int64_t grad_input_outer, grad_input_inner;
};

struct CrossEntropySum {
  double loss;
  int64_t count;  // rows that are not ignored
  int64_t bad;    // a row whose target is no class, or -1
};

struct CrossEntropyKernels {
  // Rows [begin, end).
  CrossEntropySum (*forward[kNumDTypes])(const CrossEntropyForward& params, int64_t begin, int64_t end);
  void (*backward[kNumDTypes])(const CrossEntropyBackward& params, int64_t begin, int64_t end);
};

}  // namespace d2lfast
