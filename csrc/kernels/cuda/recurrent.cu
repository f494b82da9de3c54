#include <cstdint>

#include "device.cuh"
#include "recurrent_element.cuh"

namespace d2lfast::cuda {
namespace {

// Calls visit(row, unit) for the units of all sequences; neighbouring threads take neighbouring units.
template <typename Visit>
__device__ void visit_units(int64_t batch, int64_t hidden, Visit&& visit) {
  const int64_t count = batch * hidden;
  for (int64_t item = first_item<int64_t>(); item < count; item += grid_width<int64_t>()) {
    const int64_t row =
        count <= kMaxIndex32 ? static_cast<int32_t>(item) / static_cast<int32_t>(hidden) : item / hidden;
    visit(row, item - row * hidden);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) rnn_forward(const RecurrentForward p, int64_t batch) {
  visit_units(batch, p.hidden, [&](int64_t row, int64_t unit) {
    T* gate = static_cast<T*>(p.gates) + row * p.hidden + unit;
    const Compute<T> sum =
        to_compute(*gate) + value_or_zero<T>(p.b_ih, unit) + value_or_zero<T>(p.b_hh, unit);
    *gate = from_compute<T>(rnn_unit(sum, p.activation));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) gru_forward(const RecurrentForward p, int64_t batch) {
  const int64_t hidden = p.hidden;
  visit_units(batch, hidden, [&](int64_t row, int64_t unit) {
    T* gates = static_cast<T*>(p.gates) + row * 3 * hidden + unit;
    const T* products = static_cast<const T*>(p.hidden_gates) + row * 3 * hidden + unit;
    const auto input = [&](int64_t k) {
      return to_compute(gates[k * hidden]) + value_or_zero<T>(p.b_ih, k * hidden + unit);
    };
    const auto recurrent = [&](int64_t k) {
      return to_compute(products[k * hidden]) + value_or_zero<T>(p.b_hh, k * hidden + unit);
    };
    GRUUnit<Compute<T>> u;
    u.forward(input(0) + recurrent(0), input(1) + recurrent(1), input(2), recurrent(2));
    gates[0] = from_compute<T>(u.r);
    gates[hidden] = from_compute<T>(u.z);
    gates[2 * hidden] = from_compute<T>(u.n);
    const int64_t at = row * hidden + unit;
    static_cast<T*>(p.candidate)[at] = from_compute<T>(u.candidate);
    static_cast<T*>(p.output)[at] = from_compute<T>(u.output(to_compute(static_cast<const T*>(p.state)[at])));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) lstm_forward(const RecurrentForward p, int64_t batch) {
  const int64_t hidden = p.hidden;
  visit_units(batch, hidden, [&](int64_t row, int64_t unit) {
    T* gates = static_cast<T*>(p.gates) + row * 4 * hidden + unit;
    const auto sum = [&](int64_t k) {
      return to_compute(gates[k * hidden]) + value_or_zero<T>(p.b_ih, k * hidden + unit) +
             value_or_zero<T>(p.b_hh, k * hidden + unit);
    };
    const auto u = LSTMUnit<Compute<T>>::of(sum(0), sum(1), sum(2), sum(3));
    gates[0] = from_compute<T>(u.i);
    gates[hidden] = from_compute<T>(u.f);
    gates[2 * hidden] = from_compute<T>(u.g);
    gates[3 * hidden] = from_compute<T>(u.o);
    const int64_t at = row * hidden + unit;
    const Compute<T> cell = u.cell(to_compute(static_cast<const T*>(p.state)[at]));
    static_cast<T*>(p.cell)[at] = from_compute<T>(cell);
    static_cast<T*>(p.output)[at] = from_compute<T>(u.o * tanh(cell));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) rnn_backward(const RecurrentBackward p, int64_t batch) {
  visit_units(batch, p.hidden, [&](int64_t row, int64_t unit) {
    const int64_t at = row * p.hidden + unit;
    const Compute<T> output = to_compute(static_cast<const T*>(p.gates)[at]);
    static_cast<T*>(p.grad_gates)[at] =
        from_compute<T>(rnn_unit_gradient(value_or_zero<T>(p.grad_output, at), output, p.activation));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) gru_backward(const RecurrentBackward p, int64_t batch) {
  const int64_t hidden = p.hidden;
  visit_units(batch, hidden, [&](int64_t row, int64_t unit) {
    const int64_t at = row * hidden + unit, first = row * 3 * hidden + unit;
    const T* gates = static_cast<const T*>(p.gates) + first;
    const GRUUnit<Compute<T>> u{to_compute(gates[0]), to_compute(gates[hidden]),
                                to_compute(gates[2 * hidden]),
                                to_compute(static_cast<const T*>(p.candidate)[at])};
    const GRUUnitGradient<Compute<T>> g(value_or_zero<T>(p.grad_output, at), u,
                                        to_compute(static_cast<const T*>(p.state)[at]));
    T* to = static_cast<T*>(p.grad_gates) + first;
    T* hidden_to = static_cast<T*>(p.grad_hidden_gates) + first;
    to[0] = hidden_to[0] = from_compute<T>(g.r);
    to[hidden] = hidden_to[hidden] = from_compute<T>(g.z);
    to[2 * hidden] = from_compute<T>(g.n);
    hidden_to[2 * hidden] = from_compute<T>(g.hidden_n);
    static_cast<T*>(p.grad_state)[at] = from_compute<T>(g.state);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) lstm_backward(const RecurrentBackward p, int64_t batch) {
  const int64_t hidden = p.hidden;
  visit_units(batch, hidden, [&](int64_t row, int64_t unit) {
    const int64_t at = row * hidden + unit, first = row * 4 * hidden + unit;
    const T* gates = static_cast<const T*>(p.gates) + first;
    const LSTMUnit<Compute<T>> u{to_compute(gates[0]), to_compute(gates[hidden]),
                                 to_compute(gates[2 * hidden]), to_compute(gates[3 * hidden])};
    const LSTMUnitGradient<Compute<T>> g(
        value_or_zero<T>(p.grad_output, at), value_or_zero<T>(p.grad_cell, at), u,
        to_compute(static_cast<const T*>(p.state)[at]), to_compute(static_cast<const T*>(p.cell)[at]));
    T* to = static_cast<T*>(p.grad_gates) + first;
    to[0] = from_compute<T>(g.i);
    to[hidden] = from_compute<T>(g.f);
    to[2 * hidden] = from_compute<T>(g.g);
    to[3 * hidden] = from_compute<T>(g.o);
    static_cast<T*>(p.grad_state)[at] = from_compute<T>(g.cell);
  });
}

constexpr unsigned kSumColumns = 32, kSumRows = 8;

// A block takes 32 columns: 8 threads of a column add every eighth row, and the first merges them in order.
template <typename T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    column_sums(const T* __restrict__ matrix, int64_t rows, int64_t columns, T* __restrict__ first,
                T* __restrict__ second) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, parts, kSumColumns * kSumRows);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  A sum = 0;
  if (column < columns) {
    for (int64_t row = threadIdx.y; row < rows; row += kSumRows)
      sum += to_compute(matrix[row * columns + column]);
  }
  parts[threadIdx.y * kSumColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (unsigned y = 1; y < kSumRows; ++y) sum += parts[y * kSumColumns + threadIdx.x];
  if (first != nullptr) first[column] = from_compute<T>(sum);
  if (second != nullptr) second[column] = from_compute<T>(sum);
}

template <typename Params, typename Choose>
cudaError_t run(const Params& params, int64_t batch, DType dtype, cudaStream_t stream, Choose&& choose) {
  if (batch * params.hidden == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    return launch(choose(type), {blocks_for(batch * params.hidden), kThreads}, stream, params, batch);
  });
}

}  // namespace

cudaError_t launch_rnn_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                               cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return rnn_forward<typename decltype(type)::type>; });
}

cudaError_t launch_rnn_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return rnn_backward<typename decltype(type)::type>; });
}

cudaError_t launch_gru_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                               cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return gru_forward<typename decltype(type)::type>; });
}

cudaError_t launch_gru_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return gru_backward<typename decltype(type)::type>; });
}

cudaError_t launch_lstm_forward(const RecurrentForward& params, int64_t batch, DType dtype,
                                cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return lstm_forward<typename decltype(type)::type>; });
}

cudaError_t launch_lstm_backward(const RecurrentBackward& params, int64_t batch, DType dtype,
                                 cudaStream_t stream) {
  return run(params, batch, dtype, stream,
             [](auto type) { return lstm_backward<typename decltype(type)::type>; });
}

cudaError_t launch_column_sums(const void* matrix, int64_t rows, int64_t columns, void* first, void* second,
                               DType dtype, cudaStream_t stream) {
  if (columns == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const LaunchShape shape{static_cast<unsigned>((columns + kSumColumns - 1) / kSumColumns),
                            {kSumColumns, kSumRows}};
    return launch(column_sums<T>, shape, stream, static_cast<const T*>(matrix), rows, columns,
                  static_cast<T*>(first), static_cast<T*>(second));
  });
}

}  // namespace d2lfast::cuda
