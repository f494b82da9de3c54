#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../../kernels/conv2d.h"
#include "../conv2d_algorithm.h"

namespace d2lfast::ops {

// Kernel positions along one axis that meet the grid at one source phase: the taps of one result phase.
struct AxisTap {
  int64_t kernel;  // kernel position
  int64_t phase;   // source phase
  int64_t offset;  // grid rows (columns) from the result's
};

// One axis of a flat-grid convolution.
struct Axis {
  int64_t pad;                             // source elements before the grid's first
  int64_t step;                            // distance of grid neighbours in the source
  int64_t reach;                           // largest tap offset
  int64_t extent;                          // longest result phase
  std::vector<int64_t> phases;             // source phases in use
  std::vector<std::vector<AxisTap>> taps;  // by result phase
  std::vector<int64_t> size;               // of each result phase
};

Axis forward_axis(int64_t result, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);

// The gradient with respect to `size` inputs: one result phase for each residue modulo the stride.
Axis gradient_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);

// The arrays that Conv2dSource and Conv2dPhase point into, for a pair of axes and bands of `band_rows`.
struct FlatGrid {
  std::vector<int64_t> phase_row, phase_col;
  int64_t grid_rows, grid_width, channel_stride;
  std::vector<std::vector<int64_t>> tap_offset, tap_weight;  // by result phase, rows outermost

  // `slack`: elements that the vectors may read beyond the grid. Weight strides of the kernel's axes.
  FlatGrid(const Axis& rows, const Axis& cols, int64_t band_rows, int64_t slack, int64_t weight_h,
           int64_t weight_w);

  void describe(Conv2dSource& source, const Axis& rows, const Axis& cols) const;
};

// Rows of a band: the source planes of a group should stay in the second-level cache, and there should be
// work for every thread. The results do not depend on it.
int64_t choose_band_rows(const Axis& rows, const Axis& cols, int64_t channels, int64_t element_size,
                         int64_t items, int64_t threads);

}  // namespace d2lfast::ops
