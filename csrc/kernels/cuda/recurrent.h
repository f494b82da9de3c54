#pragma once

#include <cuda_runtime_api.h>

#include "../recurrent.h"

namespace d2lfast::cuda {

// The pointwise part of a step for a whole batch, as csrc/kernels/recurrent.h describes it. Each launches on
// `stream`, waits for nothing and allocates nothing; nothing is launched for an empty batch.
cudaError_t launch_rnn_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                               cudaStream_t stream);
cudaError_t launch_gru_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                               cudaStream_t stream);
cudaError_t launch_lstm_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                                cudaStream_t stream);
cudaError_t launch_rnn_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                cudaStream_t stream);
cudaError_t launch_gru_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                cudaStream_t stream);
cudaError_t launch_lstm_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                 cudaStream_t stream);
// Sums of the columns of a matrix [rows,columns] into `first` and `second`, each of which may be null.
cudaError_t launch_column_sums(const void* matrix, int64_t rows, int64_t columns, void* first, void* second,
                               DType dtype, cudaStream_t stream);

}  // namespace d2lfast::cuda
