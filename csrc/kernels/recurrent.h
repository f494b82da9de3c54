#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// The pointwise part of one step of a recurrent cell, after the matrix products. N: batch, H: hidden.
// Every matrix is dense and row-major, of the tensors' dtype; nothing aliases unless stated.
// Gate order within a row of [N,G*H], as in torch: GRU r, z, n; LSTM i, f, g, o.

struct RecurrentForward {
  int64_t hidden;
  Activation activation;     // of the plain cell: kReLU or kTanh
  void* gates;               // [N,G*H] products in, activated gates out; the plain cell's result
  const void* hidden_gates;  // GRU: [N,3H] the hidden state's products, without bias
  const void* b_ih;          // [G*H] or null
  const void* b_hh;          // [G*H] or null
  const void* state;         // GRU: [N,H] hx; LSTM: [N,H] cx
  void* candidate;           // GRU: [N,H] the hidden state's part of n, with its bias
  void* cell;                // LSTM: [N,H] new cell state
  void* output;              // GRU, LSTM: [N,H] new hidden state
};

struct RecurrentBackward {
  int64_t hidden;
  Activation activation;
  const void* grad_output;  // [N,H] or null (zero)
  const void* grad_cell;    // LSTM: [N,H] or null (zero)
  const void* gates;        // [N,G*H] activated; the plain cell's output
  const void* state;        // as in RecurrentForward
  const void* candidate;    // GRU
  const void* cell;         // LSTM
  void* grad_gates;         // [N,G*H] gradient before the activations
  void* grad_hidden_gates;  // GRU: [N,3H] gradient of the hidden state's products
  void* grad_state;         // GRU: [N,H] direct part of the gradient of hx; LSTM: [N,H] gradient of cx
};

struct RecurrentKernels {
  // Rows [begin, end) of a batch.
  void (*rnn_forward[kNumDTypes])(const RecurrentForward& params, int64_t begin, int64_t end);
  void (*gru_forward[kNumDTypes])(const RecurrentForward& params, int64_t begin, int64_t end);
  void (*lstm_forward[kNumDTypes])(const RecurrentForward& params, int64_t begin, int64_t end);
  void (*rnn_backward[kNumDTypes])(const RecurrentBackward& params, int64_t begin, int64_t end);
  void (*gru_backward[kNumDTypes])(const RecurrentBackward& params, int64_t begin, int64_t end);
  void (*lstm_backward[kNumDTypes])(const RecurrentBackward& params, int64_t begin, int64_t end);
  // Sums of the columns [begin, end) of `matrix` [rows,columns] into `first` and `second` [columns], each
  // of which may be null.
  void (*column_sums[kNumDTypes])(const void* matrix, int64_t rows, int64_t columns, int64_t begin,
                                  int64_t end, void* first, void* second);
};

}  // namespace d2lfast
