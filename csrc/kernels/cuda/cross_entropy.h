#pragma once

#include <cuda_runtime_api.h>

#include "../cross_entropy.h"

namespace d2lfast::cuda {

// Losses of single rows go to `losses` if it is not null, else parts of their sum to `partial`. A target that
// is no class and not `ignore_index` stops the launch by a device-side assertion.
struct CrossEntropyLoss : CrossEntropyForward {
  int64_t rows;
  bool mean;
  double* partial;  // [cross_entropy_parts(),2] sums of losses and numbers of rows
  void* total;      // of the input's dtype, or null
};

struct CrossEntropyGradient : CrossEntropyBackward {
  int64_t rows;
  bool mean;
  const void* grad_total;  // of the input's dtype, or null: there are `grad_losses`; `scale` is not read
};

// Parts in which the losses of so many rows are added.
int64_t cross_entropy_parts(int64_t rows, int64_t classes, DType dtype);

// Each launches on `stream`, waits for nothing and allocates nothing.
// Statistics of the rows and their losses. The last element of `statistics` is left to the sum.
cudaError_t launch_cross_entropy(const CrossEntropyLoss& params, DType dtype, cudaStream_t stream);
// `total` from `partial` in the order of its parts, and the number of rows that count behind the rows'
// statistics. Of no rows too.
cudaError_t launch_cross_entropy_sum(const CrossEntropyLoss& params, DType dtype, cudaStream_t stream);
cudaError_t launch_cross_entropy_gradient(const CrossEntropyGradient& params, DType dtype,
                                          cudaStream_t stream);

}  // namespace d2lfast::cuda
