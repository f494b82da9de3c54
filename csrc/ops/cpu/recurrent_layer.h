#pragma once

#include <string>

#include "../recurrent_layer.h"
#include "panel_products.h"

// What the forward and the backward operator of a recurrent layer share on the CPU: the choice of the
// schedule, places of rows, products in threads.

namespace d2lfast::ops {

const RecurrentSequenceKernels& recurrent_sequence_kernels();

// A layer and how the CPU goes about it.
struct CPURecurrentLayer : RecurrentLayer {
  explicit CPURecurrentLayer(RecurrentLayer layer);

  int type;       // index into the kernel tables: 0 double, 1 float
  int64_t lanes;  // of a vector of that type

  size_t bytes() const { return type == 0 ? sizeof(double) : sizeof(float); }
  int64_t vectors(int64_t columns) const { return (columns + lanes - 1) / lanes; }
  // Columns of a packed matrix with its padding.
  int64_t padded(int64_t columns) const { return vectors(columns) * lanes; }
  int64_t panels(int64_t columns) const { return PanelGrid(vectors(columns)).count; }
  int64_t unit_panels() const { return gates_of(mode) == 1 ? panels(hidden) : vectors(hidden); }
  // Both weights stay in a core's cache: each block of rows goes through all of time with everything fused.
  bool small() const;
  // Rows of the blocks that go through time independently; 0: threads split the units of every step.
  int64_t block_rows() const;
};

// The name of the schedule, for people: "fused" (blocks of rows with everything in the step), "rows" (threads
// split the batch, the products with the input come first) or "units".
std::string recurrent_schedule(const std::string& mode, int64_t batch, int64_t inputs, int64_t state,
                               int64_t hidden, int64_t directions, bool wide);

// A tensor's first element and the distances of its steps and rows, in elements.
struct Rows {
  char* data = nullptr;
  int64_t row = 0;
  const CPURecurrentLayer* layer = nullptr;
  int64_t step = 0;  // dense tensors; packed ones follow the offsets
  bool packed = false;
  char* at(int64_t t) const {
    return data == nullptr ? nullptr
                           : data + static_cast<int64_t>(layer->bytes()) *
                                        (packed ? layer->offsets[static_cast<size_t>(t)] * row : t * step);
  }
};

// Rows of a tensor [T,N,C] or, packed, [rows,C], whose last axis is dense.
Rows rows_of(const CPURecurrentLayer& layer, const at::Tensor& tensor, bool packed);

// Where the state before step t of direction d comes from: rows [0, carried) from step `from`, the others
// from the initial state.
struct Before {
  int64_t from, carried;
};
Before before(const CPURecurrentLayer& layer, bool reversed, int64_t t);

// The places of the ones if every row of x [rows,inputs] has a single one and the weight is finite (else a
// product with a zero could be NaN).
bool finite(const at::Tensor& tensor);

// c[M,N] (+)= a[M,K] b[K,N] in threads; `b` packed with `b_total` rows.
void threaded_product(const CPURecurrentLayer& layer, const PanelProduct& product, int64_t rows);

// pack_rows, in threads where it is large. K rows, N columns.
void threaded_pack_rows(const CPURecurrentLayer& layer, const at::Tensor& matrix, int64_t first,
                        int64_t total, void* packed);

}  // namespace d2lfast::ops
