#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "../kernels/recurrent_sequence.h"
#include "visible.h"

// What the recurrent layers of every device share: the checks of a call, and its shape in time.

namespace d2lfast::ops {

D2LFAST_VISIBLE RecurrentMode recurrent_mode(std::string_view name);

// The parameters of one direction; undefined where the layer has none.
struct RecurrentWeights {
  at::Tensor w_ih, w_hh, b_ih, b_hh, w_hr;
};

// A layer of one or two directions over a batch of sequences, dense or packed.
struct RecurrentLayer {
  RecurrentMode mode;
  int64_t steps, batch, rows;  // rows: of all steps together
  int64_t inputs, state, hidden;
  int64_t directions;
  bool reverse;  // of a single direction
  bool tokens, projected;
  std::vector<int64_t> counts, offsets;  // of each step, in rows of the output
  std::vector<RecurrentWeights> weights;
  at::ScalarType compute;  // float for 16-bit tensors

  int64_t gates() const { return gates_of(mode) * hidden; }
  int64_t gradients() const { return gradients_of(mode) * hidden; }
  int64_t saved() const { return saved_of(mode) * hidden; }
  bool reversed(int64_t direction) const { return direction == 1 || reverse; }
  at::TensorOptions options() const { return at::TensorOptions().dtype(compute); }
};

// Checks the arguments of a call as torch's layers do.
D2LFAST_VISIBLE RecurrentLayer describe_recurrent_layer(const at::Tensor& input,
                                                        const std::optional<at::Tensor>& batch_sizes,
                                                        const at::Tensor& hx,
                                                        const std::optional<at::Tensor>& cx,
                                                        at::TensorList weights, std::string_view mode,
                                                        bool bias, bool projected, bool reverse);

}  // namespace d2lfast::ops
