#include "recurrent_layer.h"

#include <algorithm>
#include <cstdint>

#include "device.cuh"
#include "device_limits.h"
#include "recurrent_layer_unit.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kSequences = 4;  // of a thread: each weight from shared memory meets so many states

// Shared memory: the states before and after a step [2][rows][H], cell states [rows][H], the weight [H][G*H].
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_layer(const RecurrentLayerParams p, const int32_t rows) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden, width = G * hidden, size = rows * hidden;
  const auto states = dynamic_shared<A>();
  const auto cells = states + 2 * size;
  const auto weight = dynamic_shared<T>() + 3 * size * static_cast<int32_t>(sizeof(A) / sizeof(T));
  const int32_t first = static_cast<int32_t>(blockIdx.x) * rows;
  visit_transposed(hidden, width, [&](int32_t k, int32_t j) {
    weight[k * width + j] = *element<T>(p.weight, static_cast<int64_t>(j) * hidden + k);
  });
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    const int32_t row = first + i / hidden;
    const int64_t at = static_cast<int64_t>(row) * hidden + i % hidden;
    states[i] = row < p.batch ? to_compute(*element<T>(p.h_0, at)) : A(0);
    states[size + i] = A(0);
    cells[i] = G == 4 && row < p.batch ? to_compute(*element<T>(p.c_0, at)) : A(0);
  }
  __syncthreads();
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step now = step_at(p, p.reversed ? p.steps - 1 - s : s);
    const auto before = states + s % 2 * size, after = states + (s + 1) % 2 * size;
    for (int32_t item = threadIdx.x; item < size / kSequences; item += kThreads) {
      const int32_t unit = item % hidden, r = item / hidden * kSequences;
      Gates<A, G> sum[kSequences] = {};
      for (int32_t k = 0; k < hidden; ++k) {
        A state[kSequences];
#pragma unroll
        for (int i = 0; i < kSequences; ++i) state[i] = before[(r + i) * hidden + k];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const T stored = weight[k * width + g * hidden + unit];
          const A factor = to_compute(stored);
#pragma unroll
          for (int i = 0; i < kSequences; ++i) sum[i].of[g] = fma(state[i], factor, sum[i].of[g]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        const int32_t at = (r + i) * hidden + unit, sequence = first + r + i;
        A state = before[at];
        if (sequence < now.count) {
          const int64_t row = now.offset + sequence;
          const A cell = cells[at];
          const auto input = input_gates<T, G>(p, row, unit), bias = bias_gates<T, G>(p, unit);
          const auto result = forward_unit<A, G>(p.mode, state, cell, input, sum[i], bias);
          store_unit<T, G>(p, row, unit, result);
          state = result.state;
          if (G == 4) cells[at] = result.cell;
        }
        after[at] = state;
      }
    }
    __syncthreads();
  }
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    const int32_t row = first + i / hidden;
    if (row >= p.batch) continue;
    const int64_t at = static_cast<int64_t>(row) * hidden + i % hidden;
    *element<T>(p.h_n, at) = from_compute<T>(states[p.steps % 2 * size + i]);
    if (G == 4) *element<T>(p.c_n, at) = from_compute<T>(cells[i]);
  }
}

// Shared memory: gradients of the state and the cell state [rows][H] each, of the gates [rows][G*H], and the
// weight [G*H][H].
template <typename T, int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_layer_backward(const RecurrentLayerParams p, const int32_t rows) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden, width = G * hidden, size = rows * hidden;
  const auto grads = dynamic_shared<A>();
  const auto grad_cells = grads + size;
  const auto gates = grads + 2 * size;
  const auto weight = dynamic_shared<T>() + (2 + G) * size * static_cast<int32_t>(sizeof(A) / sizeof(T));
  const int32_t first = static_cast<int32_t>(blockIdx.x) * rows;
  for (int32_t i = threadIdx.x; i < width * hidden; i += kThreads) weight[i] = *element<T>(p.weight, i);
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    const int32_t row = first + i / hidden;
    const int64_t at = static_cast<int64_t>(row) * hidden + i % hidden;
    grads[i] = row < p.batch ? value_or_zero<T>(p.grad_h, at) : A(0);
    grad_cells[i] = G == 4 && row < p.batch ? value_or_zero<T>(p.grad_c, at) : A(0);
  }
  __syncthreads();
  for (int32_t s = 0; s < p.steps; ++s) {
    const Step now = step_at(p, p.reversed ? s : p.steps - 1 - s);
    const Step before = step_before(p, now);
    for (int32_t i = threadIdx.x; i < size; i += kThreads) {
      const int32_t r = i / hidden, unit = i - r * hidden, sequence = first + r;
      Gates<A, G> recurrent = {};
      if (sequence < now.count) {
        A grad = grads[i], grad_cell = grad_cells[i];
        const auto kept = kept_of<T, G>(p, now, before, sequence, unit);
        const auto gradients = backward_unit<A, G>(p.mode, kept, grad, grad_cell);
        store_gradients<T, G>(p, now.offset + sequence, unit, gradients);
        recurrent = gradients.hidden;
        grads[i] = grad;
        if (G == 4) grad_cells[i] = grad_cell;
      }
#pragma unroll
      for (int g = 0; g < G; ++g) gates[r * width + g * hidden + unit] = recurrent.of[g];
    }
    __syncthreads();
    for (int32_t item = threadIdx.x; item < size / kSequences; item += kThreads) {
      const int32_t unit = item % hidden, r = item / hidden * kSequences;
      A sum[kSequences] = {};
      for (int32_t j = 0; j < width; ++j) {
        const T stored = weight[j * hidden + unit];
        const A factor = to_compute(stored);
#pragma unroll
        for (int i = 0; i < kSequences; ++i) sum[i] = fma(gates[(r + i) * width + j], factor, sum[i]);
      }
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        const int32_t at = (r + i) * hidden + unit;
        // A sequence that takes no part has no gates' gradients: its own gradient stays.
        grads[at] = grads[at] + sum[i];
      }
    }
    __syncthreads();
  }
  for (int32_t i = threadIdx.x; i < size; i += kThreads) {
    const int32_t row = first + i / hidden;
    if (row >= p.batch) continue;
    const int64_t at = static_cast<int64_t>(row) * hidden + i % hidden;
    *element<T>(p.grad_h_0, at) = from_compute<T>(grads[i]);
    if (G == 4) *element<T>(p.grad_c_0, at) = from_compute<T>(grad_cells[i]);
  }
}

// Of a block with `rows` sequences; backward needs more than forward.
int64_t shared_bytes(LayerMode mode, int64_t hidden, DType dtype, int64_t rows, bool backward) {
  const int64_t gates = layer_gates(mode), states = backward ? 2 + gates : 3;
  return rows * hidden * states * std::max<int64_t>(4, bytes_of(dtype)) +
         gates * hidden * hidden * bytes_of(dtype);
}

// As few sequences for a block as fill the GPU, in fours; more only where the grid would not fit at once.
int32_t rows_of(const RecurrentLayerParams& p, DType dtype, bool backward) {
  const DeviceLimits limits = device_limits();
  int64_t rows = kSequences;
  while (rows * limits.processors < p.batch && rows < 64 &&
         shared_bytes(p.mode, p.hidden, dtype, rows + kSequences, backward) <= limits.shared_bytes) {
    rows += kSequences;
  }
  return static_cast<int32_t>(rows);
}

template <bool kBackward>
cudaError_t run(const RecurrentLayerParams& p, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  if (!recurrent_layer_fits(p.mode, p.hidden, dtype)) return cudaErrorInvalidValue;
  const int32_t rows = rows_of(p, dtype, kBackward);
  const LaunchShape shape{static_cast<unsigned>(divide_up(p.batch, rows)), kThreads,
                          static_cast<size_t>(shared_bytes(p.mode, p.hidden, dtype, rows, kBackward))};
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_gates(p.mode, [&](auto gates) {
      constexpr int G = decltype(gates)::value;
      const auto kernel = kBackward ? recurrent_layer_backward<T, G> : recurrent_layer<T, G>;
      return launch(kernel, shape, stream, p, rows);
    });
  });
}

}  // namespace

bool recurrent_layer_fits(LayerMode mode, int64_t hidden, DType dtype) {
  return shared_bytes(mode, hidden, dtype, kSequences, true) <= device_limits().shared_bytes;
}

cudaError_t launch_recurrent_layer(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream) {
  return run<false>(params, dtype, stream);
}

cudaError_t launch_recurrent_layer_backward(const RecurrentLayerParams& params, DType dtype,
                                            cudaStream_t stream) {
  return run<true>(params, dtype, stream);
}

}  // namespace d2lfast::cuda
