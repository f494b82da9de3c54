#include "recurrent_layer.h"

#include <algorithm>
#include <cstdint>

#include "device.cuh"
#include "recurrent_element.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kSequences = 4;  // of a thread: each weight from shared memory meets so many states

template <typename T>
__device__ const T* element(const void* data, int64_t i) {
  return static_cast<const T*>(data) + i;
}
template <typename T>
__device__ T* element(void* data, int64_t i) {
  return static_cast<T*>(data) + i;
}

struct Step {
  int32_t t;
  int64_t offset;
  int32_t count;
};

__device__ Step step_at(const RecurrentLayerParams& p, int32_t t) {
  if (p.counts == nullptr) return {t, static_cast<int64_t>(t) * p.batch, p.batch};
  return {t, p.offsets[t], static_cast<int32_t>(p.counts[t])};
}

// The step before `now` in the layer's direction, for the sequences that take part in it.
__device__ Step step_before(const RecurrentLayerParams& p, const Step& now) {
  const int32_t t = p.reversed ? now.t + 1 : now.t - 1;
  return t >= 0 && t < p.steps ? step_at(p, t) : Step{t, 0, 0};
}

// One sequence's unit: sums[g] of the recurrent products become the new hidden state.
template <typename T, int G>
__device__ Compute<T> forward_unit(const RecurrentLayerParams& p, int64_t row, int32_t unit, Compute<T> state,
                                   const Compute<T> (&sums)[G], Compute<T>& cell) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const auto input = [&](int g) { return *element<A>(p.products, row * G * hidden + g * hidden + unit); };
  const auto recurrent = [&](int g) { return sums[g] + value_or_zero<T>(p.bias, g * hidden + unit); };
  A* saved = p.saved == nullptr ? nullptr : element<A>(p.saved, row * 4 * hidden + unit);
  if constexpr (G == 1) {
    return rnn_unit(input(0) + recurrent(0),
                    p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
  } else if constexpr (G == 3) {
    GRUUnit<A> u;
    u.forward(input(0) + recurrent(0), input(1) + recurrent(1), input(2), recurrent(2));
    if (saved != nullptr) {
      saved[0] = u.r;
      saved[hidden] = u.z;
      saved[2 * hidden] = u.n;
      saved[3 * hidden] = u.candidate;
    }
    return u.output(state);
  } else {
    const auto u = LSTMUnit<A>::of(input(0) + recurrent(0), input(1) + recurrent(1), input(2) + recurrent(2),
                                   input(3) + recurrent(3));
    cell = u.cell(cell);
    if (saved != nullptr) {
      saved[0] = u.i;
      saved[hidden] = u.f;
      saved[2 * hidden] = u.g;
      saved[3 * hidden] = u.o;
      *element<A>(p.cells, row * hidden + unit) = cell;
    }
    return u.o * tanh(cell);
  }
}

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
  for (int32_t i = threadIdx.x; i < width * hidden; i += kThreads) {
    const int32_t k = i / width, j = i - k * width;
    weight[i] = *element<T>(p.weight, static_cast<int64_t>(j) * hidden + k);
  }
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
      A sum[kSequences][G] = {};
      for (int32_t k = 0; k < hidden; ++k) {
        A state[kSequences];
#pragma unroll
        for (int i = 0; i < kSequences; ++i) state[i] = before[(r + i) * hidden + k];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const T stored = weight[k * width + g * hidden + unit];
          const A factor = to_compute(stored);
#pragma unroll
          for (int i = 0; i < kSequences; ++i) sum[i][g] = fma(state[i], factor, sum[i][g]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        const int32_t at = (r + i) * hidden + unit, sequence = first + r + i;
        A state = before[at];
        if (sequence < now.count) {
          const int64_t row = now.offset + sequence;
          A cell = cells[at];
          state = forward_unit<T, G>(p, row, unit, state, sum[i], cell);
          if (G == 4) cells[at] = cell;
          const T rounded = from_compute<T>(state);
          *element<T>(p.output, row * p.output_row + unit) = rounded;
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

// Gradients before the activations of one sequence's unit; returns the part of the old state's gradient that
// bypasses the recurrent products.
template <typename T, int G>
__device__ Compute<T> backward_unit(const RecurrentLayerParams& p, const Step& now, const Step& before,
                                    int32_t sequence, int32_t unit, Compute<T> grad, Compute<T>& grad_cell,
                                    Compute<T> (&gates)[G], Compute<T> (&hidden_gates)[G]) {
  using A = Compute<T>;
  const int32_t hidden = p.hidden;
  const int64_t row = now.offset + sequence, start = static_cast<int64_t>(sequence) * hidden + unit;
  const bool carried = sequence < before.count;
  const int64_t old_row = before.offset + sequence;
  const A* saved = element<A>(p.saved, row * 4 * hidden + unit);
  A direct = 0;
  if constexpr (G == 1) {
    const A output = to_compute(*element<T>(static_cast<const void*>(p.output), row * p.output_row + unit));
    gates[0] =
        rnn_unit_gradient(grad, output, p.mode == LayerMode::kTanh ? Activation::kTanh : Activation::kReLU);
    hidden_gates[0] = gates[0];
  } else if constexpr (G == 3) {
    const A old =
        to_compute(carried ? *element<T>(static_cast<const void*>(p.output), old_row * p.output_row + unit)
                           : *element<T>(p.h_0, start));
    const GRUUnit<A> u{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
    const GRUUnitGradient<A> g(grad, u, old);
    gates[0] = hidden_gates[0] = g.r;
    gates[1] = hidden_gates[1] = g.z;
    gates[2] = g.n;
    hidden_gates[2] = g.hidden_n;
    direct = g.state;
  } else {
    const A old =
        carried ? *element<A>(p.cells, old_row * hidden + unit) : to_compute(*element<T>(p.c_0, start));
    const LSTMUnit<A> u{saved[0], saved[hidden], saved[2 * hidden], saved[3 * hidden]};
    const LSTMUnitGradient<A> g(grad, grad_cell, u, old, *element<A>(p.cells, row * hidden + unit));
    gates[0] = g.i;
    gates[1] = g.f;
    gates[2] = g.g;
    gates[3] = g.o;
#pragma unroll
    for (int i = 0; i < G; ++i) hidden_gates[i] = gates[i];
    grad_cell = g.cell;
  }
  return direct;
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
      A own[G] = {}, recurrent[G] = {};
      if (sequence < now.count) {
        const int64_t row = now.offset + sequence;
        A grad = grads[i], grad_cell = grad_cells[i];
        if (p.grad_output != nullptr)
          grad += to_compute(*element<T>(p.grad_output, row * p.grad_output_row + unit));
        grads[i] = backward_unit<T, G>(p, now, before, sequence, unit, grad, grad_cell, own, recurrent);
        if (G == 4) grad_cells[i] = grad_cell;
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const int64_t to = row * width + g * hidden + unit;
          *element<A>(p.grad_gates, to) = own[g];
          if (G == 3) *element<A>(p.grad_hidden_gates, to) = recurrent[g];
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) gates[r * width + g * hidden + unit] = recurrent[g];
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

constexpr int64_t kSharedBytes = 220 * 1024;

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Of a block with `rows` sequences; backward needs more than forward.
int64_t shared_bytes(LayerMode mode, int64_t hidden, DType dtype, int64_t rows, bool backward) {
  const int64_t gates = layer_gates(mode), states = backward ? 2 + gates : 3;
  return rows * hidden * states * std::max<int64_t>(4, bytes_of(dtype)) +
         gates * hidden * hidden * bytes_of(dtype);
}

// As few sequences for a block as fill the GPU, in fours; more only where the grid would not fit at once.
int32_t rows_of(const RecurrentLayerParams& p, DType dtype, bool backward) {
  int device = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return kSequences;
  }
  int64_t rows = kSequences;
  while (rows * processors < p.batch && rows < 64 &&
         shared_bytes(p.mode, p.hidden, dtype, rows + kSequences, backward) <= kSharedBytes) {
    rows += kSequences;
  }
  return static_cast<int32_t>(rows);
}

template <bool kBackward>
cudaError_t run(const RecurrentLayerParams& p, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  if (!recurrent_layer_fits(p.mode, p.hidden, dtype)) return cudaErrorInvalidValue;
  const int32_t rows = rows_of(p, dtype, kBackward);
  const LaunchShape shape{static_cast<unsigned>((p.batch + rows - 1) / rows), kThreads,
                          static_cast<size_t>(shared_bytes(p.mode, p.hidden, dtype, rows, kBackward))};
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = [&](auto gates) {
      constexpr int G = decltype(gates)::value;
      return kBackward ? recurrent_layer_backward<T, G> : recurrent_layer<T, G>;
    };
    switch (p.mode) {
      case LayerMode::kGRU:
        return launch(kernel(std::integral_constant<int, 3>{}), shape, stream, p, rows);
      case LayerMode::kLSTM:
        return launch(kernel(std::integral_constant<int, 4>{}), shape, stream, p, rows);
      default:
        return launch(kernel(std::integral_constant<int, 1>{}), shape, stream, p, rows);
    }
  });
}

}  // namespace

bool recurrent_layer_fits(LayerMode mode, int64_t hidden, DType dtype) {
  return shared_bytes(mode, hidden, dtype, kSequences, true) <= kSharedBytes;
}

cudaError_t launch_recurrent_layer(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream) {
  return run<false>(params, dtype, stream);
}

cudaError_t launch_recurrent_layer_backward(const RecurrentLayerParams& params, DType dtype,
                                            cudaStream_t stream) {
  return run<true>(params, dtype, stream);
}

}  // namespace d2lfast::cuda
