#pragma once

#include "../../kernels/batch_norm.h"
#include "batch_norm_channels.h"
#include "batch_norm_geometry.h"

namespace d2lfast::ops {

using BatchNormKernel = BatchNormKernels::Kernel;

// Runs the kernels of one input over its parts, in threads.
class BatchNormRunner {
 public:
  BatchNormRunner(const BatchNormGeometry& geometry, DType dtype, int64_t element_size);

  // Decides whether results of the input's size, at the given addresses, are written past the caches.
  void choose_stream();

  // One channel's planes; the last image's first where `reversed`.
  BatchNormParams planes(int64_t channel, bool reversed = false) const;
  // `count` planes of an image, one after the other: neighbouring channels.
  BatchNormParams image_planes(int64_t plane, int64_t count) const;
  void run(const BatchNormKernel* kernel, const BatchNormParams& p) const { kernel[dtype_](p); }

  // Moments are taken about the mean of a channel's first pixels: the distance to the mean is then a few
  // standard deviations at most, and the sums of squares do not cancel.
  void center_plane(int64_t channel);
  void center_columns();

  // Both sums of every channel of a matrix, added in a fixed order.
  void column_sums(const BatchNormKernel* kernel, ChannelValues& first, ChannelValues& second) const;

  // An elementwise kernel over everything. A matrix is taken from each thread's last row to its first: what
  // the sweep before it left in the caches comes first.
  void elementwise(const BatchNormKernel* plane, const BatchNormKernel* column) const;

  // Channels whose sums are taken before the elementwise sweep over them: several where that makes the runs
  // of small planes in an image long, and everything stays in the caches.
  int64_t channels_together() const;
  // An elementwise kernel over so many channels, from what a sweep read last to what it read first.
  void channels_elementwise(const BatchNormKernel* kernel, int64_t channel, int64_t count) const;

  // Elements worth a thread, in items of so many.
  static int64_t grain_of(int64_t elements_per_item);

  const BatchNormGeometry& geometry;
  const BatchNormKernels& table;
  BatchNormParams base{};
  Coefficients coefficients;
  bool batch_terms = true;  // the gradient goes through the statistics

 private:
  BatchNormParams part(int64_t elements, int64_t mask_row, int64_t rows, int64_t columns, int64_t channel,
                       bool reversed = false) const;
  BatchNormParams matrix_rows(int64_t begin, int64_t count, int64_t columns) const {
    return part(begin * geometry.width, begin, count, columns, 0);
  }
  void run_rows(const BatchNormKernel* kernel, int64_t begin, int64_t end) const;
  void chunk_sums(const BatchNormKernel* kernel, int64_t begin, int64_t end, double* sums) const;

  int dtype_;
  int64_t element_;
};

}  // namespace d2lfast::ops
