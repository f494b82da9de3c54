#include "batch_norm_walk.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
template <typename T, int K>
constexpr Flight kMoments = flight<T, K>(8, {4, 4}, {1, 4}, {1, 2});
template <typename T>
constexpr Flight kMomentsOfImages = flight<T, kPiece>(0, {4, 3}, {1, 4}, {1, 2});

template <typename A>
__device__ A finite_or_zero(A value) {
  return isfinite(value) ? value : A(0);
}

// What a sum reads of a piece, and how many of them are under way.
template <bool kBackward, typename T, int K>
using SummedPiece = std::conditional_t<kBackward, BackwardPiece<T, K>, InputPiece<T, K>>;
template <bool kBackward, typename T, int K>
constexpr Flight kSummedPlanes = kBackward ? kGradientPlanes<T, K> : kMoments<T, K>;
template <bool kBackward, typename T, int K>
constexpr Flight kSummedColumns = kBackward ? kGradientColumns<T, K> : kMoments<T, K>;
template <bool kBackward, typename T>
constexpr Flight kSummedImages = kBackward ? kGradientColumns<T, kPiece> : kMomentsOfImages<T>;

template <bool kBackward, typename T, int K, int N>
__device__ void add_piece(const BatchNormView<T>& view, int64_t at, const SummedPiece<kBackward, T, K>& piece,
                          const Channels<Compute<T>, N>& c, const Compute<T> (&center)[N],
                          Compute<T> (&first)[N], Compute<T> (&second)[N]) {
  Compute<T> gradient[K];
  if constexpr (kBackward) gradient_piece<T, K>(view, at, piece, c, gradient);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int n = N == 1 ? 0 : k;
    const Compute<T> distance = piece.input[k] - center[n];
    const Compute<T> factor = kBackward ? gradient[k] : distance;
    first[n] += factor;
    second[n] = fma(factor, distance, second[n]);
  }
}

// Sums of a channel's parts are added in double: first sums, [C, parts], then second ones, then centers [C].
template <typename T>
__device__ void write_partial(const BatchNormView<T>& view, int64_t channel, int64_t part, double first,
                              double second) {
  const int64_t at = channel * view.parts + part;
  view.partial[at] = first;
  view.partial[view.channels * static_cast<int64_t>(view.parts) + at] = second;
}
template <typename T>
__device__ void write_center(const BatchNormView<T>& view, int64_t channel, Compute<T> center) {
  if (blockIdx.y == 0) view.partial[2 * view.channels * static_cast<int64_t>(view.parts) + channel] = center;
}

// Over lanes whose numbers differ in the bits below `lanes`, a power of two; of equal values exactly.
__device__ double sum_over_lanes(double value, int lanes) {
  for (int mask = 1; mask < lanes; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// Distances to a mean of samples from all over the channel keep the sums of squares from cancelling, and are
// 0 if all values are equal. Each warp takes the same samples.
template <typename T>
__device__ Compute<T> center_of_plane(const BatchNormView<T>& view, int64_t channel, int lane) {
  const int sample = 2 * lane + 1;
  const int64_t image = sample * view.rows / 64, pixel = sample * view.plane / 64;
  const double value = to_compute(view.input[image * view.row_size + channel * view.plane + pixel]);
  return finite_or_zero(static_cast<Compute<T>>(sum_over_lanes(value, 32) / 32));
}

// What a thread takes of a plane: all lanes of a warp turn equally often.
struct PlanePiece {
  int32_t image;
  int64_t first;
  bool inside;
};
template <int K, typename T>
__device__ PlanePiece piece_of(const BatchNormView<T>& view, int64_t channel, int64_t item) {
  const int32_t image = view.per_plane.divide(static_cast<int32_t>(item));
  const int64_t piece = item - static_cast<int64_t>(image) * view.pieces;
  const int64_t first = K == 1 ? piece * 32 + threadIdx.x % 32 : piece * K;
  return {image, channel * view.plane + first, K != 1 || first < view.plane};
}

// Block (c, s) reduces part s of the planes of channel c.
template <bool kBackward, typename T, int K>
__global__ void __launch_bounds__(kThreads, kSummedPlanes<kBackward, T, K>.blocks)
    reduce_planes(const BatchNormView<T> view) {
  using A = Compute<T>;
  const int64_t channel = blockIdx.x;
  Channels<A, 1> c{};
  if constexpr (kBackward) c = channels_of<false, 1>(view, channel);
  A center[1], first[1] = {0}, second[1] = {0};
  center[0] = kBackward ? c.mean[0] : center_of_plane(view, channel, threadIdx.x % 32);
  const int64_t begin = K == 1 ? static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32
                               : static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.y) * (K == 1 ? kWarps : kThreads);
  using Source = SummedPiece<kBackward, T, K>;
  in_flight<Source, kSummedPlanes<kBackward, T, K>.pieces>(
      begin, view.rows * view.pieces, step,
      [&](int64_t item, Source& piece) {
        const PlanePiece at = piece_of<K>(view, channel, item);
        if (at.inside) piece.read(view, at.image, at.first);
      },
      [&](int64_t item, const Source& piece) {
        const PlanePiece at = piece_of<K>(view, channel, item);
        if (at.inside) add_piece<kBackward, T, K, 1>(view, at.first, piece, c, center, first, second);
      });
  double sums[2] = {sum_over_lanes(first[0], 32), sum_over_lanes(second[0], 32)};
  D2LFAST_SHARED(double, warps, 2 * kWarps);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    warps[2 * warp] = sums[0];
    warps[2 * warp + 1] = sums[1];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    sums[0] += warps[2 * w];
    sums[1] += warps[2 * w + 1];
  }
  write_partial(view, channel, blockIdx.y, sums[0], sums[1]);
  if constexpr (!kBackward) write_center(view, channel, center[0]);
}

// A position in the sums over the rows of a block of columns: warp k < K has channel k of every piece, and
// several lanes have rows of the same one.
struct ColumnLane {
  int channel, lanes, piece, part;

  __device__ ColumnLane()
      : channel(threadIdx.y * blockDim.x + threadIdx.x),
        lanes(blockDim.y / 8),  // blockDim.x * lanes is 32
        piece(channel % 32 * blockDim.x / 32),
        part(channel % 32 & (lanes - 1)) {
    channel /= 32;
  }
};

// The values of a block's threads added over its rows, for each warp k < K: at the lanes of ColumnLane.
template <int K, typename A>
__device__ double sum_over_rows(const A (&values)[K], SharedPointer<A> parts, const ColumnLane& at) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) parts[k * kThreads + thread] = values[k];
  __syncthreads();
  if (at.channel >= K) return 0;
  double rows[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = at.part + i * at.lanes;
    rows[i] = parts[at.channel * kThreads + row * static_cast<int>(blockDim.x) + at.piece];
  }
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) rows[i] += rows[i + half];
  }
  return sum_over_lanes(rows[0], at.lanes);
}

// Block (x, s) reduces part s of the rows for blockDim.x pieces of channels.
template <bool kBackward, typename T, int K>
__global__ void __launch_bounds__(kThreads, kSummedColumns<kBackward, T, K>.blocks)
    reduce_columns(const BatchNormView<T> view) {
  using A = Compute<T>;
  static_assert(K <= kWarps);
  D2LFAST_SHARED(A, parts, K * kThreads);
  const ColumnLane at;
  const int64_t channel = first_column<K>();
  const bool inside = channel < view.row_size;
  const int64_t summed = (static_cast<int64_t>(blockIdx.x) * blockDim.x + at.piece) * K + at.channel;
  const bool writes = at.channel < K && at.part == 0 && summed < view.row_size;
  Channels<A, K> c{};
  A center[K] = {}, first[K] = {}, second[K] = {};
  if constexpr (kBackward) {
    if (inside) c = channels_of<false, K>(view, channel);
#pragma unroll
    for (int k = 0; k < K; ++k) center[k] = c.mean[k];
  } else {
    // As in planes; a row for each row of the block.
    A sample[K] = {};
    const int64_t row = (2 * threadIdx.y + 1) * view.rows * blockDim.x / (2 * kThreads);
    if (inside) load_piece<T, K>(view.input + row * view.row_size + channel, sample);
    D2LFAST_SHARED(A, centers, kThreads);
    const double sum = sum_over_rows<K>(sample, parts, at);
    const A mean = finite_or_zero(static_cast<A>(sum / blockDim.y));
    if (at.channel < K && at.part == 0) centers[at.channel * 32 + at.piece] = mean;
    if (writes) write_center(view, summed, mean);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) center[k] = centers[k * 32 + threadIdx.x];
  }
  if (inside) {
    using Source = SummedPiece<kBackward, T, K>;
    in_flight<Source, kSummedColumns<kBackward, T, K>.pieces>(
        first_row(), view.rows, row_step(),
        [&](int64_t row, Source& piece) { piece.read(view, row, channel); },
        [&](int64_t, const Source& piece) {
          add_piece<kBackward, T, K, K>(view, channel, piece, c, center, first, second);
        });
  }
  const double sums[2] = {sum_over_rows<K>(first, parts, at), sum_over_rows<K>(second, parts, at)};
  if (writes) write_partial(view, summed, blockIdx.y, sums[0], sums[1]);
}

// The columns of a block of images, and the sums that its threads have of them, added by channel: a warp
// takes a channel, which may go on in other blocks.
struct ImageBlock {
  int64_t begin, end;     // its columns
  int32_t channel, last;  // of the first and the last of them
  int thread, warp, lane;

  template <typename T>
  __device__ explicit ImageBlock(const BatchNormView<T>& view)
      : begin(static_cast<int64_t>(blockIdx.x) * width()),
        end(begin + width() < view.row_size ? begin + width() : view.row_size),
        channel(channel_of(view, begin)),
        last(channel_of(view, end - 1)),
        thread(threadIdx.y * blockDim.x + threadIdx.x),
        warp(thread / 32),
        lane(thread % 32) {}

  __device__ static int width() { return static_cast<int>(blockDim.x) * kPiece; }

  // Blocks of several rows are at most as many columns as threads.
  template <typename A, typename Take>
  __device__ void add(const A (&first)[kPiece], const A (&second)[kPiece], int64_t plane, Take&& take) const {
    // One element more for each thread keeps the lanes of both sides off each other's banks.
    constexpr int kPitch = kPiece + 1, kOther = kPitch * kThreads;
    D2LFAST_SHARED(A, parts, 2 * kOther);
    D2LFAST_SHARED(double, columns, 2 * kThreads);
#pragma unroll
    for (int k = 0; k < kPiece; ++k) {
      parts[thread * kPitch + k] = first[k];
      parts[kOther + thread * kPitch + k] = second[k];
    }
    __syncthreads();
    const bool rows = blockDim.y > 1;
    if (rows) {
      if (thread < width()) {
        double sums[2] = {0, 0};
#pragma unroll 4
        for (int row = 0; row < static_cast<int>(blockDim.y); ++row) {
          const int at = (row * static_cast<int>(blockDim.x) + thread / kPiece) * kPitch + thread % kPiece;
          sums[0] += parts[at];
          sums[1] += parts[kOther + at];
        }
        columns[thread] = sums[0];
        columns[kThreads + thread] = sums[1];
      }
      __syncthreads();
    }
#pragma unroll 1
    for (int32_t c = channel + warp; c <= last; c += kWarps) {
      const int64_t start = c * plane;
      const int from = static_cast<int>(start < begin ? 0 : start - begin);
      const int to = static_cast<int>((start + plane < end ? start + plane : end) - begin);
      double sums[2] = {0, 0};
#pragma unroll 4
      for (int i = from + lane; i < to; i += 32) {
        const int at = i / kPiece * kPitch + i % kPiece;
        sums[0] += rows ? columns[i] : parts[at];
        sums[1] += rows ? columns[kThreads + i] : parts[kOther + at];
      }
      sums[0] = sum_over_lanes(sums[0], 32);
      sums[1] = sum_over_lanes(sums[1], 32);
      if (lane == 0) take(c, sums[0], sums[1]);
    }
  }
};

// The channels that a block's columns can have: of planes of 4 elements those of 32 pieces, else of 256.
constexpr int kMostChannels = 258;

// Block (x, s) reduces part s of the images for blockDim.x pieces of planes that are no whole pieces. A
// channel's sums are of several blocks across, `view.spread` at most.
template <bool kBackward, typename T>
__global__ void __launch_bounds__(kThreads, kSummedImages<kBackward, T>.blocks)
    reduce_images(const BatchNormView<T> view) {
  using A = Compute<T>;
  constexpr int K = kPiece;
  const ImageBlock block(view);
  const int64_t column = first_column<K>();
  const bool inside = column < view.row_size;
  Channels<A, K> c{};
  A center[K] = {}, first[K] = {}, second[K] = {};
  if constexpr (kBackward) {
    if (inside) c = channels_of_columns<false, K>(view, column);
#pragma unroll
    for (int k = 0; k < K; ++k) center[k] = c.mean[k];
  } else {
    D2LFAST_SHARED(A, centers, kMostChannels);
#pragma unroll 1
    for (int32_t i = block.channel + block.warp; i <= block.last; i += kWarps) {
      const A mean = center_of_plane(view, i, block.lane);
      if (block.lane != 0) continue;
      centers[i - block.channel] = mean;
      if (i * view.plane >= block.begin) write_center(view, i, mean);
    }
    __syncthreads();
    if (inside) {
      const TwoChannels at(view, column);
      const A one = centers[at.one - block.channel], other = centers[at.other - block.channel];
#pragma unroll
      for (int k = 0; k < K; ++k) center[k] = k < at.elements ? one : other;
    }
  }
  if (inside) {
    using Source = SummedPiece<kBackward, T, K>;
    in_flight<Source, kSummedImages<kBackward, T>.pieces>(
        first_row(), view.rows, row_step(),
        [&](int64_t row, Source& piece) { piece.read(view, row, column); },
        [&](int64_t, const Source& piece) {
          add_piece<kBackward, T, K, K>(view, column, piece, c, center, first, second);
        });
  }
  block.add(first, second, view.plane, [&](int32_t channel, double first_sum, double second_sum) {
    const int64_t start = channel * view.plane;
    const int before = view.per_block.divide(static_cast<int32_t>(start / K));
    int64_t part = static_cast<int64_t>(blockIdx.y) * view.spread + (blockIdx.x - before);
    write_partial(view, channel, part, first_sum, second_sum);
    if (start + view.plane > block.end) return;
#pragma unroll 1
    for (int rest = blockIdx.x - before + 1; rest < view.spread; ++rest) {
      write_partial(view, channel, ++part, 0, 0);
    }
  });
}

// A warp takes a channel and adds the sums of its parts.
struct FinishedSums {
  int64_t channel;
  double center = 0, first = 0, second = 0;
  bool writes;

  __device__ FinishedSums(const double* partial, int64_t channels, int parts)
      : channel(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) {
    const int lane = threadIdx.x % 32;
    writes = channel < channels && lane == 0;
    if (channel >= channels) return;
    center = partial[2 * channels * parts + channel];
    for (int64_t i = lane; i < parts; i += 32) {
      first += partial[channel * parts + i];
      second += partial[(channels + channel) * parts + i];
    }
    first = sum_over_lanes(first, 32);
    second = sum_over_lanes(second, 32);
  }
};

// Mean and sum of squared distances from it.
struct Moments {
  double mean, squares;

  __device__ Moments(const FinishedSums& sums, double count) {
    const double distance = sums.first / count, rest = sums.second - distance * sums.first;
    mean = sums.center + distance;
    squares = rest < 0 ? 0 : rest;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_moments(const BatchNormParams p, int parts) {
  using A = Compute<T>;
  const FinishedSums sums(p.partial, p.channels, parts);
  if (!sums.writes) return;
  const int64_t c = sums.channel;
  const double count = static_cast<double>(p.batch * p.pixels);
  const Moments moments(sums, count);
  const A mean = static_cast<A>(moments.mean);
  const A invstd = static_cast<A>(1 / sqrt(moments.squares / count + p.eps));
  const A weight = p.weight != nullptr ? parameter<T>(p.weight, p.wide_parameters, c) : A(1);
  const A bias = p.bias != nullptr ? parameter<T>(p.bias, p.wide_parameters, c) : A(0);
  // The mean's rounding error goes into the shift.
  const double correction = (moments.mean - mean) * (weight * invstd);
  A* statistics = static_cast<A*>(p.statistics);
  statistics[c] = mean;
  statistics[p.channels + c] = invstd;
  statistics[2 * p.channels + c] = isfinite(correction) ? static_cast<A>(bias - correction) : bias;
  const double keep = 1 - p.momentum;
  if (p.running_mean != nullptr) {
    const int64_t at = c * p.running_mean_stride;
    const double old = parameter<T>(p.running_mean, p.wide_parameters, at);
    set_parameter<T>(p.running_mean, p.wide_parameters, at,
                     static_cast<A>(keep * old + p.momentum * moments.mean));
  }
  if (p.running_var != nullptr) {
    const int64_t at = c * p.running_var_stride;
    const double old = parameter<T>(p.running_var, p.wide_parameters, at);
    set_parameter<T>(p.running_var, p.wide_parameters, at,
                     static_cast<A>(keep * old + p.momentum * moments.squares / (count - 1)));
  }
}

__global__ void __launch_bounds__(kThreads)
    finish_sync_moments(const BatchNormParams p, int parts, double* result) {
  const FinishedSums sums(p.partial, p.channels, parts);
  if (!sums.writes) return;
  const Moments moments(sums, static_cast<double>(p.batch * p.pixels));
  result[sums.channel] = moments.mean;
  result[p.channels + sums.channel] = moments.squares;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_gradient_sums(const BatchNormParams p, int parts) {
  using A = Compute<T>;
  const FinishedSums sums(p.partial, p.channels, parts);
  if (!sums.writes) return;
  const int64_t c = sums.channel;
  const double invstd = static_cast<const A*>(p.statistics)[p.channels + c];
  const double weight = p.weight != nullptr ? parameter<T>(p.weight, p.wide_parameters, c) : A(1);
  const double unit = p.from_output ? 1 / weight : invstd;  // x_hat = (input - mean) * unit
  if (p.grad_bias != nullptr) {
    set_parameter<T>(p.grad_bias, p.wide_parameters, c, static_cast<A>(sums.first));
  }
  if (p.grad_weight != nullptr) {
    set_parameter<T>(p.grad_weight, p.wide_parameters, c, static_cast<A>(sums.second * unit));
  }
  if (p.coefficients == nullptr) return;
  const double count = static_cast<double>(p.batch * p.pixels);
  A* coefficients = static_cast<A*>(p.coefficients);
  coefficients[c] = static_cast<A>(-unit * unit * sums.second / count);
  coefficients[p.channels + c] = static_cast<A>(-sums.first / count);
}

// Enough to fill any GPU of today.
constexpr int64_t kReducingBlocks = 1024, kReducingColumnBlocks = 512;

// The blocks of a reduction, and into how many parts each channel is split: `spread` of each block down.
struct Reduction {
  LaunchShape shape;
  int parts, spread = 1;

  explicit Reduction(const BatchNormParams& p) {
    const bool wide = wide_rows(p);
    if (p.columns) {
      shape = column_shape(p, wide ? kPiece : 1, kReducingColumnBlocks, 4, 32);
    } else if (wide && !whole_planes(p)) {
      // Threads of several images, since each begins and ends in many instructions. Few images are read by
      // blocks of one row, unless these had more channels than their memory takes.
      const bool few = p.batch < kWarps && p.pixels >= kPiece && row_size(p) > kPiece * kThreads / 2;
      shape = column_shape(p, kPiece, kReducingColumnBlocks, 8, few ? kThreads : 32);
      const int64_t width = shape.block.x * kPiece, across = shape.grid.x;
      spread = static_cast<int>(std::min((p.pixels + 2 * width - 2) / width, across));
    } else {
      const int64_t most = std::min(p.batch * p.pixels / 2048, kReducingBlocks / p.channels);
      shape = {{static_cast<unsigned>(p.channels), static_cast<unsigned>(std::clamp<int64_t>(most, 1, 256))},
               kThreads};
    }
    parts = static_cast<int>(shape.grid.y) * spread;
  }
};

template <bool kBackward, typename T, int K>
cudaError_t reduce(const BatchNormParams& p, const Reduction& reduction, cudaStream_t stream) {
  BatchNormView<T> view = view_of<T>(p, K);
  view.parts = reduction.parts;
  view.spread = reduction.spread;
  view.per_block = Divider<int32_t>(reduction.shape.block.x);
  auto kernel = p.columns ? reduce_columns<kBackward, T, K> : reduce_planes<kBackward, T, K>;
  if constexpr (K == kPiece) {
    if (!p.columns && !whole_planes(p)) kernel = reduce_images<kBackward, T>;
  }
  return launch(kernel, reduction.shape, stream, view);
}

// `parts`: into which the channels were split.
template <bool kBackward, typename T>
cudaError_t reduce_any(const BatchNormParams& p, cudaStream_t stream, int& parts) {
  if (!countable(p)) return cudaErrorInvalidValue;
  const Reduction reduction(p);
  parts = reduction.parts;
  return wide_rows(p) ? reduce<kBackward, T, kPiece>(p, reduction, stream)
                      : reduce<kBackward, T, 1>(p, reduction, stream);
}

// Blocks of a warp for each channel.
LaunchShape channel_warps(const BatchNormParams& p) {
  return {static_cast<unsigned>((p.channels + kWarps - 1) / kWarps), kThreads};
}

}  // namespace

int64_t batch_norm_partial_size(const BatchNormParams& params) {
  return (2 * static_cast<int64_t>(Reduction(params).parts) + 1) * params.channels;
}

cudaError_t launch_batch_norm_moments(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int parts = 0;
    const cudaError_t error = reduce_any<false, T>(params, stream, parts);
    if (error != cudaSuccess) return error;
    return launch(finish_moments<T>, channel_warps(params), stream, params, parts);
  });
}

cudaError_t launch_sync_batch_norm_moments(const BatchNormParams& params, double* moments, DType dtype,
                                           cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int parts = 0;
    const cudaError_t error = reduce_any<false, T>(params, stream, parts);
    if (error != cudaSuccess) return error;
    return launch(finish_sync_moments, channel_warps(params), stream, params, parts, moments);
  });
}

cudaError_t launch_batch_norm_gradient_sums(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int parts = 0;
    const cudaError_t error = reduce_any<true, T>(params, stream, parts);
    if (error != cudaSuccess) return error;
    return launch(finish_gradient_sums<T>, channel_warps(params), stream, params, parts);
  });
}

}  // namespace d2lfast::cuda
