#pragma once

#include <cstdint>

namespace d2lfast {

// Matrix products with a packed right factor, and passes over rows, in double (index 0) and float (index 1).
//
// A matrix [K,N] is packed in panels of up to kPanelVectors vectors of columns: panel after panel, each of
// [K, vectors * lanes], columns past the last are zero. Panels cover the vectors evenly and, where there are
// several, in even number, so that two threads get the same work.

constexpr int64_t kPanelVectors = 4;

struct PanelGrid {
  int64_t vectors, count;
  explicit constexpr PanelGrid(int64_t vectors_)
      : vectors(vectors_), count((vectors_ + kPanelVectors - 1) / kPanelVectors) {
    if (count > 1) count += count % 2;
  }
  constexpr int64_t begin(int64_t panel) const { return panel * vectors / count; }
};

// Whether the rows of a matrix are packed as they are: one panel of whole vectors.
constexpr bool is_packed(int64_t columns, int64_t row, int64_t lanes) {
  return row == columns && columns % lanes == 0 && columns <= kPanelVectors * lanes;
}

// Packing of a matrix [K,N] as in PanelGrid, as rows [first, first + inner) of panels of `total` rows.
struct PackRows {
  int64_t inner, columns, first, total;
  const void* matrix;
  int64_t matrix_row;
  void* packed;
};

// c[M,N] = a[M,K] b[K,N], or c += with `accumulate`.
struct PanelProduct {
  int64_t inner, columns;
  const void* a;
  int64_t a_row, a_inner;
  const void* b;
  int64_t b_first, b_total;  // the first row of b that is used, and the rows that its panels have
  void* c;
  int64_t c_row;
  bool accumulate;
};

struct PanelKernels {
  int lanes[2];
  // Panels [begin, end).
  void (*pack_rows[2])(const PackRows& params, int64_t begin, int64_t end);
  // Rows [row_begin, row_end) of c, panels [begin, end). Each sum is in the order of K.
  void (*product[2])(const PanelProduct& params, int64_t row_begin, int64_t row_end, int64_t begin,
                     int64_t end);
  // sums[columns] += the rows of matrix [rows,columns].
  void (*add_rows[2])(const void* matrix, int64_t matrix_row, int64_t rows, int64_t columns, void* sums);
  // table[ones[i]] += matrix[i] for each row i of [rows,columns].
  void (*scatter_rows[2])(const void* matrix, int64_t matrix_row, int64_t rows, int64_t columns,
                          const int64_t* ones, void* table);
  // The place of the single one in each row of x [rows,inputs]; false if a row is anything else.
  bool (*find_ones[2])(const void* x, int64_t x_row, int64_t rows, int64_t inputs, int64_t* ones);
  // result[rows,N] = x[rows,K] w[N,K]^T for few rows, without packing: columns [begin, end).
  void (*row_products[2])(const void* x, int64_t x_row, const void* w, int64_t rows, int64_t inner,
                          void* result, int64_t result_row, int64_t begin, int64_t end);
};

}  // namespace d2lfast
