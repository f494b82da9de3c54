#include "batch_norm_walk.cuh"

namespace d2lfast::cuda {
namespace {

template <typename T>
constexpr Flight kNormalizedPlanes = flight<T, kPiece>(0, {2, 4}, {1, 4}, {1, 2});
template <typename T, int K>
constexpr Flight kNormalizedColumns = flight<T, K>(4, {4, 2}, {1, 4}, {1, 2});

// The elementwise kernels over planes of whole pieces: only the channel takes a division.
template <bool kBackward, typename Piece, int N, typename T, typename Take>
__device__ void visit_planes(const BatchNormView<T>& view, Take&& take) {
  struct Source {
    Piece piece;
    Channels<Compute<T>, 1> channel;
  };
  in_flight<Source, N>(
      first_item<int64_t>(), view.rows * view.row_size / kPiece, grid_width<int64_t>(),
      [&](int64_t item, Source& source) { source.piece.read(view, 0, item * kPiece); },
      [&](int64_t item, Source& source) {
        int32_t plane = view.per_plane.divide(static_cast<int32_t>(item));
        source.channel = channels_of<kBackward, 1>(view, take_remainder(plane, view.per_image));
      },
      [&](int64_t item, const Source& source) { take(item * kPiece, source.piece, source.channel); });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kNormalizedPlanes<T>.blocks)
    normalize_planes(const BatchNormView<T> view) {
  using Piece = ForwardPiece<T, kPiece>;
  visit_planes<false, Piece, kNormalizedPlanes<T>.pieces>(
      view, [&](int64_t first, const Piece& piece, const auto& c) {
        normalize_piece<T, kPiece>(view, 0, first, true, piece, c);
      });
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kNormalizedColumns<T, K>.blocks)
    normalize_columns(const BatchNormView<T> view) {
  using Source = ForwardPiece<T, K>;
  const int64_t column = first_column<K>();
  const bool inside = column < view.row_size;
  if (K != 1 && !inside) return;
  const auto c = channels_of_columns<false, K>(view, inside ? column : 0);
  in_flight<Source, kNormalizedColumns<T, K>.pieces>(
      first_row(), view.rows, row_step(),
      [&](int64_t row, Source& piece) {
        if (inside) piece.read(view, row, column);
      },
      [&](int64_t row, const Source& piece) { normalize_piece<T, K>(view, row, column, inside, piece, c); });
}

template <typename T, int K, int N>
__device__ void input_gradient(const BatchNormView<T>& view, int64_t row, int64_t first,
                               const BackwardPiece<T, K>& piece, const Channels<Compute<T>, N>& c) {
  Compute<T> gradient[K];
  const int64_t at = row * view.row_size + first;
  gradient_piece<T, K>(view, first, piece, c, gradient);
  if (view.grad_residual != nullptr) store_piece<T, K>(view.grad_residual + at, gradient);
  if (view.result == nullptr) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int n = N == 1 ? 0 : k;
    // Without terms of the batch an infinite input must not turn zero into NaN. Scaled last: these terms are
    // often most of the gradient.
    if (view.training) {
      gradient[k] = fma(piece.input[k] - c.mean[n], c.slope[n], gradient[k] + c.offset[n]);
    }
    gradient[k] *= c.scale[n];
  }
  store_piece<T, K>(view.result + at, gradient);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kGradientPlanes<T, kPiece>.blocks)
    gradient_planes(const BatchNormView<T> view) {
  using Piece = BackwardPiece<T, kPiece>;
  visit_planes<true, Piece, kGradientPlanes<T, kPiece>.pieces>(
      view, [&](int64_t first, const Piece& piece, const auto& c) {
        input_gradient<T, kPiece>(view, 0, first, piece, c);
      });
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kGradientColumns<T, K>.blocks)
    gradient_columns(const BatchNormView<T> view) {
  using Source = BackwardPiece<T, K>;
  const int64_t column = first_column<K>();
  if (column >= view.row_size) return;
  const auto c = channels_of_columns<true, K>(view, column);
  in_flight<Source, kGradientColumns<T, K>.pieces>(
      first_row(), view.rows, row_step(), [&](int64_t row, Source& piece) { piece.read(view, row, column); },
      [&](int64_t row, const Source& piece) { input_gradient<T, K>(view, row, column, piece, c); });
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

template <typename A>
__global__ void __launch_bounds__(kThreads) sync_coefficients(const BatchNormParams p, const double* means) {
  const int64_t c = first_item<int64_t>();
  if (c >= p.channels) return;
  A* coefficients = static_cast<A*>(p.coefficients);
  coefficients[c] =
      static_cast<A>(-static_cast<const A*>(p.statistics)[p.channels + c] * means[p.channels + c]);
  coefficients[p.channels + c] = static_cast<A>(-means[c]);
}

// Enough to fill any GPU of today; more only shorten each thread's walk over the channels that it has loaded.
constexpr int64_t kWalkingBlocks = 1584;

// Several pieces a thread where that leaves enough blocks.
LaunchShape plane_shape(const BatchNormParams& p, int pieces) {
  const int64_t threads = row_count(p) * row_size(p) / kPiece;
  const int64_t few = std::min<int64_t>(threads, kWalkingBlocks * kThreads);
  return {blocks_for(std::max((threads + pieces - 1) / pieces, few)), kThreads};
}
// Images are few, and a thread must have several to load the channels for.
LaunchShape walking_shape(const BatchNormParams& p, int piece) {
  constexpr int64_t kImages = 4;
  if (p.columns) return column_shape(p, piece, kWalkingBlocks, 1, 32);
  unsigned across = 32;
  while (across < kThreads && kThreads / across * kImages > p.batch) across *= 2;
  return column_shape(p, piece, kWalkingBlocks, kImages, across);
}

// Blocks of a thread for each channel.
LaunchShape channel_threads(const BatchNormParams& p) {
  return {static_cast<unsigned>((p.channels + kThreads - 1) / kThreads), kThreads};
}

}  // namespace

cudaError_t launch_batch_norm_running(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(running_statistics<T>, channel_threads(params), stream, params);
  });
}

cudaError_t launch_batch_norm_normalize(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  if (!countable(params)) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (whole_planes(params)) {
      return launch(normalize_planes<T>, plane_shape(params, kNormalizedPlanes<T>.pieces), stream,
                    view_of<T>(params, kPiece));
    }
    const auto run = [&](auto piece) {
      constexpr int K = decltype(piece)::value;
      return launch(normalize_columns<T, K>, walking_shape(params, K), stream, view_of<T>(params, K));
    };
    return wide_rows(params) ? run(std::integral_constant<int, kPiece>{})
                             : run(std::integral_constant<int, 1>{});
  });
}

cudaError_t launch_sync_batch_norm_coefficients(const BatchNormParams& params, const double* means,
                                                DType dtype, cudaStream_t stream) {
  const auto kernel = dtype == DType::kFloat64 ? sync_coefficients<double> : sync_coefficients<float>;
  return launch(kernel, channel_threads(params), stream, params, means);
}

cudaError_t launch_batch_norm_gradient(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  if (!countable(params)) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (whole_planes(params)) {
      return launch(gradient_planes<T>, plane_shape(params, kGradientPlanes<T, kPiece>.pieces), stream,
                    view_of<T>(params, kPiece));
    }
    const auto run = [&](auto piece) {
      constexpr int K = decltype(piece)::value;
      return launch(gradient_columns<T, K>, walking_shape(params, K), stream, view_of<T>(params, K));
    };
    return wide_rows(params) ? run(std::integral_constant<int, kPiece>{})
                             : run(std::integral_constant<int, 1>{});
  });
}

}  // namespace d2lfast::cuda
