#pragma once

#include <cuda_runtime_api.h>

#include "../dtype.h"

namespace d2lfast::cuda {

enum class LayerMode : int { kTanh = 0, kReLU = 1, kGRU = 2, kLSTM = 3 };

constexpr int64_t layer_gates(LayerMode mode) {
  return mode == LayerMode::kLSTM ? 4 : mode == LayerMode::kGRU ? 3 : 1;
}

constexpr int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

constexpr int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

// One direction of a layer over whole sequences. N: batch, H: hidden, G: gates in torch's order; rows: of all
// steps together, those of step t at offsets[t], of which counts[t] sequences take part (null: N at t * N).
// A: accumulator type; the other tensors are of the tensors' type.
struct RecurrentLayerParams {
  LayerMode mode;
  int32_t steps, batch, hidden;
  bool reversed;
  bool tf32;                        // whether float32 may be rounded to it in products
  const int64_t *counts, *offsets;  // [steps] on the device, or null
  const void* weight;               // [G*H,H] recurrent
  // Forward.
  const void* products;   // A [rows,G*H] of the input, with b_ih
  const void* bias;       // [G*H] b_hh, or null
  const void *h_0, *c_0;  // [N,H]
  void* output;           // [rows,H] at a distance of `output_row`
  int64_t output_row;
  void *h_n, *c_n;  // [N,H]
  void* saved;      // [rows,4*H]: GRU r, z, n and the recurrent part of n; LSTM i, f, g, o; or null
  void* cells;      // [rows,H], LSTM, or null
  // Backward; reads output, saved, cells, h_0 and c_0.
  const void* grad_output;  // [rows,H] at a distance of `grad_output_row`, or null
  int64_t grad_output_row;
  const void *grad_h, *grad_c;  // [N,H] or null
  void* grad_gates;             // [rows,G*H] before the activations
  void* grad_hidden_gates;      // GRU: [rows,G*H] of the recurrent products
  void *grad_h_0, *grad_c_0;    // [N,H]
};

// Whether the recurrent weight and the states of some sequences fit into a block's shared memory.
bool recurrent_layer_fits(LayerMode mode, int64_t hidden, DType dtype);

// Each is one persistent launch on `stream`: blocks keep the weight in shared memory and go through time with
// a few sequences each, without meeting. Nothing is launched for an empty batch.
cudaError_t launch_recurrent_layer(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_recurrent_layer_backward(const RecurrentLayerParams& params, DType dtype,
                                            cudaStream_t stream);

}  // namespace d2lfast::cuda
