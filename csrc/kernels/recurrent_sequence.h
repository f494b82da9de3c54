#pragma once

#include <cstdint>

#include "panels.h"

namespace d2lfast {

// The steps of recurrent layers in time, in double (index 0) and float (index 1). The batch's rows and the
// hidden units are the axes that threads split; the caller loops over time.

enum class RecurrentMode : int { kTanh = 0, kReLU = 1, kGRU = 2, kLSTM = 3 };

// Gates of a unit, and the numbers a unit that backward keeps of a step (the GRU's fourth is the recurrent
// part of its candidate). The gates' order is torch's: GRU r, z, n; LSTM i, f, g, o.
constexpr int64_t gates_of(RecurrentMode mode) {
  return mode == RecurrentMode::kGRU ? 3 : mode == RecurrentMode::kLSTM ? 4 : 1;
}
constexpr int64_t saved_of(RecurrentMode mode) { return gates_of(mode) == 1 ? 0 : 4; }
// Columns a unit of the gradients before the activations; GRU: n, r, z, recurrent part of the candidate.
constexpr int64_t gradients_of(RecurrentMode mode) { return gates_of(mode) == 1 ? 1 : 4; }

// Packing of a layer's weight [G*H,K] for the forward step, by unit panels: of the plain cell's units as in
// PanelGrid, else one vector of units with all its gates. `units` may be a range of panels.
struct PackGates {
  RecurrentMode mode;
  int64_t hidden, inner;
  const void* weight;
  int64_t weight_row;  // distance of rows, in elements
  void* packed;
};

// One time step; pointers are at row 0 of the step, and each comes with the distance of its rows.
struct RecurrentStep {
  RecurrentMode mode;
  int64_t inputs, state, hidden;   // state: the width of h, smaller than hidden in a projected LSTM
  const void *w_ih, *w_hh, *bias;  // packed; w_ih is not used if `projected` is given
  const void* projected;           // [rows,G*H] products of the input, or null
  int64_t projected_row;
  const void* x;  // [rows,I]
  int64_t x_row;
  const int64_t* ones;  // [rows] where each row of x has its only one (others are zero), or null
  const void* h;        // [rows,state] before the step
  int64_t h_row;
  const void* c;  // LSTM: [rows,H] before the step
  int64_t c_row;
  void* y;  // [rows,H] new hidden state
  int64_t y_row;
  void* cell;  // LSTM: [rows,H] after the step
  int64_t cell_row;
  void* saved;  // [rows,saved_of*H] or null
  int64_t saved_row;
};

struct RecurrentStepBackward {
  RecurrentMode mode;
  int64_t hidden;
  const void* grad_y;  // [rows,H] or null
  int64_t grad_y_row;
  void* grad_h;  // [rows,H] gradient from the step after; GRU: afterwards the part that bypasses the products
  int64_t grad_h_row;
  void* grad_c;  // LSTM: [rows,H] likewise, afterwards that of the cell state before the step
  int64_t grad_c_row;
  const void* saved;
  int64_t saved_row;
  const void* y;  // plain cell: [rows,H] after the step; GRU: [rows,H] before the step
  int64_t y_row;
  const void* c;  // LSTM: before the step
  int64_t c_row;
  const void* cell;  // LSTM: after the step
  int64_t cell_row;
  void* grad_gates;  // [rows,gradients_of*H]
  int64_t grad_gates_row;
};

struct RecurrentSequenceKernels {
  // Panels [begin, end).
  void (*pack_gates[2])(const PackGates& params, int64_t begin, int64_t end);
  // The biases [G*H] (each may be null) by panel: summed, but for the GRU's candidate (r, z, n, recurrent).
  void (*pack_bias[2])(RecurrentMode mode, int64_t hidden, const void* b_ih, const void* b_hh, void* packed);
  // Rows [row_begin, row_end), panels of units [begin, end).
  void (*step[2])(const RecurrentStep& params, int64_t row_begin, int64_t row_end, int64_t begin,
                  int64_t end);
  // Rows [row_begin, row_end), units [begin, end).
  void (*step_backward[2])(const RecurrentStepBackward& params, int64_t row_begin, int64_t row_end,
                           int64_t begin, int64_t end);
  // hidden[rows,H] = o * tanh(cell) from what an LSTM's step saved.
  void (*lstm_hidden[2])(const void* saved, int64_t saved_row, const void* cell, int64_t hidden,
                         int64_t row_begin, int64_t row_end, void* result);
};

}  // namespace d2lfast
