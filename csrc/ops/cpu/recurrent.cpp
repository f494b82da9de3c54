#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/cpu/isa.h"
#include "../recurrent_cell.h"

D2LFAST_DECLARE_TABLES(RecurrentKernels, recurrent_kernels);

namespace d2lfast::ops {

namespace {

const RecurrentKernels& kernels() { return D2LFAST_SELECT_TABLE(recurrent_kernels); }

// A thread should have some microseconds of work.
constexpr int64_t kGrain = 32768;

template <typename Kernel, typename Params>
void run_rows(Kernel* const (&table)[kNumDTypes], DType dtype, const Params& params, int64_t batch,
              int64_t gates) {
  Kernel* kernel = table[static_cast<int>(dtype)];
  if (params.hidden == 0 || batch == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / (gates * params.hidden));
  if (batch <= grain) return kernel(params, 0, batch);
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

struct CPU {
  struct Guard {
    explicit Guard(at::Device) {}
  };
  static void rnn_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    run_rows(kernels().rnn_forward, dtype, params, batch, 1);
  }
  static void rnn_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    run_rows(kernels().rnn_backward, dtype, params, batch, 1);
  }
  static void gru_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    run_rows(kernels().gru_forward, dtype, params, batch, 3);
  }
  static void gru_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    run_rows(kernels().gru_backward, dtype, params, batch, 3);
  }
  static void lstm_forward(DType dtype, const RecurrentForward& params, int64_t batch) {
    run_rows(kernels().lstm_forward, dtype, params, batch, 4);
  }
  static void lstm_backward(DType dtype, const RecurrentBackward& params, int64_t batch) {
    run_rows(kernels().lstm_backward, dtype, params, batch, 4);
  }
  // In an order that does not depend on the threads.
  static void column_sums(DType dtype, const void* matrix, int64_t rows, int64_t columns, void* first,
                          void* second) {
    constexpr int64_t kLine = 64;
    auto* kernel = kernels().column_sums[static_cast<int>(dtype)];
    const int64_t lines = (columns + kLine - 1) / kLine;
    const int64_t grain = std::max<int64_t>(1, kGrain / (kLine * std::max<int64_t>(1, rows)));
    at::parallel_for(0, lines, grain, [&](int64_t begin, int64_t end) {
      kernel(matrix, rows, columns, begin * kLine, std::min(end * kLine, columns), first, second);
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, CPU, m) { RecurrentCells<CPU>::register_all(m); }

}  // namespace d2lfast::ops
