#include <algorithm>

#include "batch_norm.h"
#include "batch_norm_element.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

// A position in the elementwise kernels over planes: all lanes of a warp turn equally often.
template <int K, typename T, typename Visit>
__device__ void visit_planes(const BatchNormView<T>& view, int64_t begin, int64_t end, int64_t step,
                             Visit&& visit) {
  const int lane = threadIdx.x % 32;
  for (int64_t item = begin; item < end; item += step) {
    const int32_t row = view.per_row.divide(static_cast<int32_t>(item));
    const int64_t piece = item - static_cast<int64_t>(row) * view.pieces;
    const int64_t first = K == 1 ? piece * 32 + lane : piece * kPiece;
    visit(row, first, first < view.row_size);
  }
}

template <int K>
__device__ int64_t first_plane_item() {
  return K == 1 ? static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32
                : static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
template <int K>
__device__ int64_t plane_step() {
  return static_cast<int64_t>(gridDim.x) * (K == 1 ? kWarps : kThreads);
}

// In columns a thread keeps its channels and walks down the rows: blockDim.x pieces by blockDim.y rows.
template <int K>
__device__ int64_t first_channel() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * K;
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, 2) normalize_planes(const BatchNormView<T> view) {
  const int64_t items = view.rows * view.pieces;
  visit_planes<K>(view, first_plane_item<K>(), items, plane_step<K>(),
                  [&](int32_t row, int64_t first, bool inside) {
                    const auto c = channels_of<false, 1>(view, row % view.channels);
                    normalize_piece<T, K>(view, row, first, inside, c);
                  });
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads) normalize_columns(const BatchNormView<T> view) {
  const int64_t channel = first_channel<K>();
  const bool inside = channel < view.row_size;
  const auto c = channels_of<false, K>(view, inside ? channel : 0);
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < view.rows;
       row += step) {
    if (K == 1 || inside) normalize_piece<T, K>(view, row, channel, inside, c);
  }
}

template <typename T, int K, int N>
__device__ void input_gradient(const BatchNormView<T>& view, int64_t row, int64_t first,
                               const Channels<Compute<T>, N>& c) {
  Compute<T> input[K], gradient[K];
  const int64_t at = row * view.row_size + first;
  load_piece<T, K>(view.input + at, input);
  gradient_piece<T, K>(view, row, first, c, input, gradient);
  if (view.grad_residual != nullptr) store_piece<T, K>(view.grad_residual + at, gradient);
  if (view.result == nullptr) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int n = N == 1 ? 0 : k;
    // Without terms of the batch an infinite input must not turn zero into NaN.
    const Compute<T> rest =
        view.training ? fma(input[k] - c.mean[n], c.slope[n], c.offset[n]) : Compute<T>(0);
    gradient[k] = fma(gradient[k], c.scale[n], rest);
  }
  store_piece<T, K>(view.result + at, gradient);
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, 2) gradient_planes(const BatchNormView<T> view) {
  visit_planes<K>(view, first_plane_item<K>(), view.rows * view.pieces, plane_step<K>(),
                  [&](int32_t row, int64_t first, bool inside) {
                    if (!inside) return;
                    const auto c = channels_of<true, 1>(view, row % view.channels);
                    input_gradient<T, K>(view, row, first, c);
                  });
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads) gradient_columns(const BatchNormView<T> view) {
  const int64_t channel = first_channel<K>();
  if (channel >= view.row_size) return;
  const auto c = channels_of<true, K>(view, channel);
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < view.rows;
       row += step) {
    input_gradient<T, K>(view, row, channel, c);
  }
}

// Count, mean and sum of squared distances to the mean of part of a channel (Welford; merged as by Chan).
template <typename A>
struct Moments {
  A count, mean, squares;

  __device__ void merge(const Moments& other) {
    const A total = count + other.count;
    if (other.count == 0) return;
    const A distance = other.mean - mean, share = other.count / total;
    mean += distance * share;
    squares += other.squares + distance * distance * count * share;
    count = total;
  }
  static __device__ Moments of(A center, A count, A sum, A squares) {
    if (count == 0) return {0, 0, 0};
    const A mean = sum / count;
    return {count, center + mean, squares - sum * mean};
  }
  __device__ Moments shuffled(int mask) const {
    return {shuffle_xor(count, mask), shuffle_xor(mean, mask), shuffle_xor(squares, mask)};
  }
};

// Sums of the gradient and of the gradient times the input's distance to the mean.
template <typename A>
struct GradientSums {
  A count, mean, squares;  // as the moments are laid out: unused, sum, sum of products

  __device__ void merge(const GradientSums& other) {
    mean += other.mean;
    squares += other.squares;
  }
  __device__ GradientSums shuffled(int mask) const {
    return {0, shuffle_xor(mean, mask), shuffle_xor(squares, mask)};
  }
};

template <typename A>
__device__ A finite_or_zero(A value) {
  return isfinite(value) ? value : A(0);
}

// What a thread has added up of N channels: two sums each.
template <bool kBackward, int N, typename A>
__device__ auto result_of(const A (&center)[N], A count, const A (&first)[N], const A (&second)[N], int n) {
  if constexpr (kBackward) {
    return GradientSums<A>{0, first[n], second[n]};
  } else {
    return Moments<A>::of(center[n], count, first[n], second[n]);
  }
}

template <bool kBackward, typename T, int K, int N>
__device__ void add_piece(const BatchNormView<T>& view, int64_t row, int64_t at,
                          const Channels<Compute<T>, N>& c, const Compute<T> (&center)[N],
                          Compute<T> (&first)[N], Compute<T> (&second)[N]) {
  Compute<T> input[K], gradient[K];
  load_piece<T, K>(view.input + row * view.row_size + at, input);
  if constexpr (kBackward) gradient_piece<T, K>(view, row, at, c, input, gradient);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int n = N == 1 ? 0 : k;
    const Compute<T> distance = input[k] - center[n];
    const Compute<T> factor = kBackward ? gradient[k] : distance;
    first[n] += factor;
    second[n] = fma(factor, distance, second[n]);
  }
}

template <typename A>
__device__ void write_partial(A* partial, int64_t split, int64_t channels, int64_t channel, A count, A first,
                              A second) {
  A* to = partial + split * 3 * channels + channel;
  to[0] = count;
  to[channels] = first;
  to[2 * channels] = second;
}

// Block (c, s) reduces part s of the planes of channel c.
template <bool kBackward, typename T, int K>
__global__ void __launch_bounds__(kThreads, 2) reduce_planes(const BatchNormView<T> view) {
  using A = Compute<T>;
  const int64_t channel = blockIdx.x;
  Channels<A, 1> c{};
  if constexpr (kBackward) c = channels_of<false, 1>(view, channel);
  // Distances to a value of the channel keep the sums of squares from cancelling.
  const A center[1] = {kBackward ? c.mean[0]
                                 : finite_or_zero(to_compute(view.input[channel * view.row_size]))};
  A first[1] = {0}, second[1] = {0}, count = 0;
  const int64_t images = view.rows / view.channels;
  const int64_t begin = K == 1 ? static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32
                               : static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.y) * (K == 1 ? kWarps : kThreads);
  visit_planes<K>(view, begin, images * view.pieces, step, [&](int32_t image, int64_t at, bool inside) {
    if (!inside) return;
    add_piece<kBackward, T, K, 1>(view, image * static_cast<int64_t>(view.channels) + channel, at, c, center,
                                  first, second);
    count += K;
  });
  auto sum = result_of<kBackward, 1>(center, count, first, second, 0);
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) sum.merge(sum.shuffled(mask));
  D2LFAST_SHARED(A, warps, 3 * kWarps);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    warps[3 * warp] = sum.count;
    warps[3 * warp + 1] = sum.mean;
    warps[3 * warp + 2] = sum.squares;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    decltype(sum) other{warps[3 * w], warps[3 * w + 1], warps[3 * w + 2]};
    sum.merge(other);
  }
  write_partial(view.partial, blockIdx.y, view.channels, channel, sum.count, sum.mean, sum.squares);
}

// Block (x, s) reduces part s of the rows for blockDim.x pieces of channels.
template <bool kBackward, typename T, int K>
__global__ void __launch_bounds__(kThreads) reduce_columns(const BatchNormView<T> view) {
  using A = Compute<T>;
  const int64_t channel = first_channel<K>();
  const bool inside = channel < view.row_size;
  Channels<A, K> c{};
  A center[K] = {}, first[K] = {}, second[K] = {}, count = 0;
  if (inside) {
    if constexpr (kBackward) c = channels_of<false, K>(view, channel);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      center[k] = kBackward ? c.mean[k] : finite_or_zero(to_compute(view.input[channel + k]));
    }
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < view.rows;
         row += step) {
      add_piece<kBackward, T, K, K>(view, row, channel, c, center, first, second);
      count += 1;
    }
  }
  // One channel of every thread at a time: the rows of the block are merged in their order.
  D2LFAST_SHARED(A, parts, 3 * kThreads);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    auto sum = result_of<kBackward, K>(center, count, first, second, k);
    parts[3 * thread] = sum.count;
    parts[3 * thread + 1] = sum.mean;
    parts[3 * thread + 2] = sum.squares;
    __syncthreads();
    if (threadIdx.y == 0 && inside) {
      for (int y = 1; y < static_cast<int>(blockDim.y); ++y) {
        const int at = 3 * (y * blockDim.x + threadIdx.x);
        decltype(sum) other{parts[at], parts[at + 1], parts[at + 2]};
        sum.merge(other);
      }
      write_partial(view.partial, blockIdx.y, view.channels, channel + k, sum.count, sum.mean, sum.squares);
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_moments(const BatchNormParams p, const Compute<T>* partial, int splits) {
  using A = Compute<T>;
  const int64_t c = first_item<int64_t>();
  if (c >= p.channels) return;
  Moments<A> sum{0, 0, 0};
  for (int s = 0; s < splits; ++s) {
    const A* from = partial + static_cast<int64_t>(s) * 3 * p.channels + c;
    sum.merge({from[0], from[p.channels], from[2 * p.channels]});
  }
  const A squares = sum.squares < 0 ? A(0) : sum.squares;
  const double count = static_cast<double>(p.batch * p.pixels);
  const double variance = squares / count;
  A* statistics = static_cast<A*>(p.statistics);
  statistics[c] = sum.mean;
  statistics[p.channels + c] = static_cast<A>(1 / sqrt(variance + p.eps));
  statistics[2 * p.channels + c] = p.bias != nullptr ? parameter<T>(p.bias, p.wide_parameters, c) : A(0);
  const double keep = 1 - p.momentum;
  if (p.running_mean != nullptr) {
    const int64_t at = c * p.running_mean_stride;
    const double old = parameter<T>(p.running_mean, p.wide_parameters, at);
    set_parameter<T>(p.running_mean, p.wide_parameters, at,
                     static_cast<A>(keep * old + p.momentum * sum.mean));
  }
  if (p.running_var != nullptr) {
    const int64_t at = c * p.running_var_stride;
    const double old = parameter<T>(p.running_var, p.wide_parameters, at);
    set_parameter<T>(p.running_var, p.wide_parameters, at,
                     static_cast<A>(keep * old + p.momentum * squares / (count - 1)));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) running_statistics(const BatchNormParams p) {
  using A = Compute<T>;
  const int64_t c = first_item<int64_t>();
  if (c >= p.channels) return;
  A* statistics = static_cast<A*>(p.statistics);
  const double variance = parameter<T>(p.running_var, p.wide_parameters, c * p.running_var_stride);
  statistics[c] = parameter<T>(p.running_mean, p.wide_parameters, c * p.running_mean_stride);
  statistics[p.channels + c] = static_cast<A>(1 / sqrt(variance + p.eps));
  statistics[2 * p.channels + c] = p.bias != nullptr ? parameter<T>(p.bias, p.wide_parameters, c) : A(0);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_gradient_sums(const BatchNormParams p, const Compute<T>* partial, int splits) {
  using A = Compute<T>;
  const int64_t c = first_item<int64_t>();
  if (c >= p.channels) return;
  double first = 0, second = 0;
  for (int s = 0; s < splits; ++s) {
    const A* from = partial + static_cast<int64_t>(s) * 3 * p.channels + c;
    first += from[p.channels];
    second += from[2 * p.channels];
  }
  const double invstd = static_cast<const A*>(p.statistics)[p.channels + c];
  if (p.grad_bias != nullptr) set_parameter<T>(p.grad_bias, p.wide_parameters, c, static_cast<A>(first));
  if (p.grad_weight != nullptr) {
    set_parameter<T>(p.grad_weight, p.wide_parameters, c, static_cast<A>(second * invstd));
  }
  if (p.coefficients == nullptr) return;
  const double weight = p.weight != nullptr ? parameter<T>(p.weight, p.wide_parameters, c) : A(1);
  const double scale = weight * invstd / static_cast<double>(p.batch * p.pixels);
  A* coefficients = static_cast<A*>(p.coefficients);
  coefficients[c] = static_cast<A>(-scale * invstd * invstd * second);
  coefficients[p.channels + c] = static_cast<A>(-scale * first);
}

template <typename T>
BatchNormView<T> view_of(const BatchNormParams& p, int piece) {
  using A = Compute<T>;
  BatchNormView<T> view{};
  view.rows = p.columns ? p.batch * p.pixels : p.batch * p.channels;
  view.row_size = p.columns ? p.channels : p.pixels;
  const int64_t span = piece == 1 && !p.columns ? 32 : piece;
  view.pieces = static_cast<int32_t>((view.row_size + span - 1) / span);
  view.channels = static_cast<int32_t>(p.channels);
  view.per_row = Divider<int32_t>(view.pieces);
  view.count = p.batch * p.pixels;
  view.activation = p.activation;
  view.wide_parameters = p.wide_parameters;
  view.training = p.coefficients != nullptr;
  view.input = static_cast<const T*>(p.input);
  view.residual = static_cast<const T*>(p.residual);
  view.gradient = static_cast<const T*>(p.gradient);
  view.activated = static_cast<const T*>(p.activated);
  view.mask = p.mask;
  view.mask_pitch = (view.row_size + 7) / 8;
  view.result = static_cast<T*>(p.result);
  view.grad_residual = static_cast<T*>(p.grad_residual);
  view.weight = p.weight;
  view.bias = p.bias;
  const A* statistics = static_cast<const A*>(p.statistics);
  view.mean = statistics;
  view.invstd = statistics + p.channels;
  view.shift = statistics + 2 * p.channels;
  view.slope = static_cast<const A*>(p.coefficients);
  view.offset = view.slope == nullptr ? nullptr : view.slope + p.channels;
  view.partial = static_cast<A*>(p.partial);
  return view;
}

bool wide_rows(const BatchNormParams& p) {
  const auto fits = [](const void* pointer) { return aligned(pointer, 16); };
  return (p.columns ? p.channels : p.pixels) % kPiece == 0 && fits(p.input) && fits(p.residual) &&
         fits(p.gradient) && fits(p.activated) && fits(p.result) && fits(p.grad_residual);
}

// Pieces are counted in int32; offsets are 64 bits wide.
bool countable(const BatchNormParams& p) {
  const int64_t row = p.columns ? p.channels : p.pixels, rows = p.batch * p.channels * p.pixels / row;
  return p.columns ? p.channels <= kMaxIndex32 : rows * ((row + kPiece - 1) / kPiece) <= kMaxIndex32;
}

// Blocks and their shape for columns: channels across, rows down.
LaunchShape column_shape(const BatchNormParams& p, int piece, int64_t parts) {
  const int64_t pieces = (p.channels + piece - 1) / piece;
  unsigned across = 32;
  // Single elements take whole warps, whose lanes share the bytes of the mask.
  while (piece > 1 && across / 2 >= pieces) across /= 2;
  const unsigned down = kThreads / across;
  const int64_t rows = p.batch * p.pixels;
  const int64_t most = (rows + down - 1) / down;
  return {{static_cast<unsigned>((pieces + across - 1) / across),
           static_cast<unsigned>(std::clamp<int64_t>(std::min(parts, most), 1, 65535))},
          {across, down}};
}

constexpr int64_t kReducingBlocks = 1024;  // of a reduction, at most: enough for any GPU of today

// Parts into which each channel is split. A thread should see some dozens of elements.
int splits_of(const BatchNormParams& p) {
  const int64_t count = p.batch * p.pixels;
  const int64_t across = p.columns ? (p.channels + 31) / 32 : p.channels;
  const int64_t parts = std::min(count / 2048, kReducingBlocks / across);
  return static_cast<int>(std::clamp<int64_t>(parts, 1, 256));
}

template <bool kBackward, typename T, int K>
cudaError_t reduce(const BatchNormParams& p, cudaStream_t stream, int& splits) {
  const auto view = view_of<T>(p, K);
  splits = splits_of(p);
  if (p.columns) {
    const LaunchShape shape = column_shape(p, K, splits);
    splits = static_cast<int>(shape.grid.y);
    return launch(reduce_columns<kBackward, T, K>, shape, stream, view);
  }
  const LaunchShape shape{{static_cast<unsigned>(p.channels), static_cast<unsigned>(splits)}, kThreads};
  return launch(reduce_planes<kBackward, T, K>, shape, stream, view);
}

template <bool kBackward, typename T>
cudaError_t reduce_any(const BatchNormParams& p, cudaStream_t stream, int& splits) {
  if (!countable(p)) return cudaErrorInvalidValue;
  return wide_rows(p) ? reduce<kBackward, T, kPiece>(p, stream, splits)
                      : reduce<kBackward, T, 1>(p, stream, splits);
}

template <typename T, int K>
LaunchShape elementwise_shape(const BatchNormParams& p, const BatchNormView<T>& view) {
  if (p.columns) return column_shape(p, K, kMaxBlocks);
  const int64_t threads = view.rows * view.pieces * (K == 1 ? 32 : 1);
  return {blocks_for(threads), kThreads};
}

unsigned channel_blocks(const BatchNormParams& p) {
  return static_cast<unsigned>((p.channels + kThreads - 1) / kThreads);
}

}  // namespace

int64_t batch_norm_partial_size(const BatchNormParams& params) {
  return 3 * params.channels * splits_of(params);
}

cudaError_t launch_batch_norm_moments(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int splits = 0;
    const cudaError_t error = reduce_any<false, T>(params, stream, splits);
    if (error != cudaSuccess) return error;
    return launch(finish_moments<T>, {channel_blocks(params), kThreads}, stream, params,
                  static_cast<const Compute<T>*>(params.partial), splits);
  });
}

cudaError_t launch_batch_norm_running(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(running_statistics<T>, {channel_blocks(params), kThreads}, stream, params);
  });
}

cudaError_t launch_batch_norm_normalize(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  if (!countable(params)) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto piece) {
      constexpr int K = decltype(piece)::value;
      const auto view = view_of<T>(params, K);
      return launch(params.columns ? normalize_columns<T, K> : normalize_planes<T, K>,
                    elementwise_shape<T, K>(params, view), stream, view);
    };
    return wide_rows(params) ? run(std::integral_constant<int, kPiece>{})
                             : run(std::integral_constant<int, 1>{});
  });
}

cudaError_t launch_batch_norm_gradient_sums(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int splits = 0;
    const cudaError_t error = reduce_any<true, T>(params, stream, splits);
    if (error != cudaSuccess) return error;
    return launch(finish_gradient_sums<T>, {channel_blocks(params), kThreads}, stream, params,
                  static_cast<const Compute<T>*>(params.partial), splits);
  });
}

cudaError_t launch_batch_norm_gradient(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  if (!countable(params)) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto piece) {
      constexpr int K = decltype(piece)::value;
      const auto view = view_of<T>(params, K);
      return launch(params.columns ? gradient_columns<T, K> : gradient_planes<T, K>,
                    elementwise_shape<T, K>(params, view), stream, view);
    };
    return wide_rows(params) ? run(std::integral_constant<int, kPiece>{})
                             : run(std::integral_constant<int, 1>{});
  });
}

}  // namespace d2lfast::cuda
