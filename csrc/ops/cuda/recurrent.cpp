#include "../recurrent_cell.h"

#include "../../kernels/cuda/recurrent.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

struct CUDA {
  using Guard = DeviceGuard;
  static void rnn_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_rnn_forward(params, batch, dtype, current_stream()));
  }
  static void rnn_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_rnn_backward(params, batch, dtype, current_stream()));
  }
  static void gru_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_gru_forward(params, batch, dtype, current_stream()));
  }
  static void gru_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_gru_backward(params, batch, dtype, current_stream()));
  }
  static void lstm_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_lstm_forward(params, batch, dtype, current_stream()));
  }
  static void lstm_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    C10_CUDA_CHECK(cuda::launch_lstm_backward(params, batch, dtype, current_stream()));
  }
  static void column_sums(DType dtype, const void* matrix, int64_t rows, int64_t columns, void* first,
                          void* second) {
    C10_CUDA_CHECK(cuda::launch_column_sums(matrix, rows, columns, first, second, dtype, current_stream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) { RecurrentCells<CUDA>::register_all(m); }

}  // namespace d2lfast::ops
