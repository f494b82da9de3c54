#include <algorithm>

#include "batch_norm.h"
#include "batch_norm_element.cuh"

namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
// Pieces of a thread that are under way at once, and blocks of a multiprocessor, of which an H200 takes about
// 29 KB in flight to copy at its rate. Kernels over columns hold the numbers of 8 channels.
struct Flight {
  int pieces, blocks;
};
template <typename T, int K>
constexpr Flight flight(int singles, Flight of_16, Flight of_32, Flight of_64) {
  if (K == 1) return {sizeof(T) == 8 ? 2 : singles, kMinBlocks};
  return sizeof(T) == 2 ? of_16 : sizeof(T) == 4 ? of_32 : of_64;
}
template <typename T, int K>
constexpr Flight kMoments = flight<T, K>(8, {4, 4}, {1, 4}, {1, 2});
template <typename T>
constexpr Flight kMomentsOfImages = flight<T, kPiece>(0, {4, 3}, {1, 4}, {1, 2});
template <typename T>
constexpr Flight kNormalizedPlanes = flight<T, kPiece>(0, {2, 4}, {1, 4}, {1, 2});
template <typename T, int K>
constexpr Flight kNormalizedColumns = flight<T, K>(4, {4, 2}, {1, 4}, {1, 2});
template <typename T, int K>
constexpr Flight kGradientPlanes = flight<T, K>(4, {2, 3}, {1, 4}, {1, 2});
template <typename T, int K>
constexpr Flight kGradientColumns = flight<T, K>(2, {2, 2}, {1, 2}, {1, 1});

// Rows `row`, `row + step`, ... below `end`: reads a few, then what else they need, then takes them one by
// one.
template <typename Source, int N, typename Read, typename Prepare, typename Take>
__device__ void in_flight(int64_t row, int64_t end, int64_t step, Read&& read, Prepare&& prepare,
                          Take&& take) {
#pragma unroll 1
  for (; row < end; row += N * step) {
    Source pieces[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (row + i * step < end) read(row + i * step, pieces[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (row + i * step < end) prepare(row + i * step, pieces[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (row + i * step < end) take(row + i * step, pieces[i]);
    }
  }
}
template <typename Source, int N, typename Read, typename Take>
__device__ void in_flight(int64_t row, int64_t end, int64_t step, Read&& read, Take&& take) {
  in_flight<Source, N>(row, end, step, read, [](int64_t, Source&) {}, take);
}

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

// In columns a thread keeps its piece and its channels and walks down the rows: blockDim.x pieces by
// blockDim.y rows. Planes that are no whole pieces are columns too, of rows that are images.
template <int K>
__device__ int64_t first_column() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * K;
}
__device__ int64_t first_row() { return static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; }
__device__ int64_t row_step() { return static_cast<int64_t>(gridDim.y) * blockDim.y; }

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

template <typename A>
__global__ void __launch_bounds__(kThreads) sync_coefficients(const BatchNormParams p, const double* means) {
  const int64_t c = first_item<int64_t>();
  if (c >= p.channels) return;
  A* coefficients = static_cast<A*>(p.coefficients);
  coefficients[c] =
      static_cast<A>(-static_cast<const A*>(p.statistics)[p.channels + c] * means[p.channels + c]);
  coefficients[p.channels + c] = static_cast<A>(-means[c]);
}

int64_t row_count(const BatchNormParams& p) { return p.columns ? p.batch * p.pixels : p.batch; }
int64_t row_size(const BatchNormParams& p) { return p.columns ? p.channels : p.channels * p.pixels; }

template <typename T>
BatchNormView<T> view_of(const BatchNormParams& p, int piece) {
  using A = Compute<T>;
  BatchNormView<T> view{};
  view.rows = row_count(p);
  view.row_size = row_size(p);
  view.plane = p.columns ? 1 : p.pixels;
  const int64_t span = piece == 1 ? 32 : piece;
  view.pieces = static_cast<int32_t>((p.pixels + span - 1) / span);
  view.channels = static_cast<int32_t>(p.channels);
  view.per_plane = Divider<int32_t>(view.pieces);
  if (view.row_size <= INT32_MAX) view.per_channel = Divider<int32_t>(view.plane);
  view.per_image = Divider<int32_t>(p.channels);
  view.activation = p.activation;
  view.wide_parameters = p.wide_parameters;
  view.training = p.coefficients != nullptr;
  view.from_output = p.from_output;
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
  view.partial = p.partial;
  return view;
}

// A piece is of two channels at most, or of one for each element.
bool wide_rows(const BatchNormParams& p) {
  const auto fits = [](const void* pointer) { return aligned(pointer, 16); };
  const bool two = p.columns || p.pixels >= kPiece || p.pixels == kPiece / 2;
  return two && row_size(p) % kPiece == 0 && fits(p.input) && fits(p.residual) && fits(p.gradient) &&
         fits(p.activated) && fits(p.result) && fits(p.grad_residual) && fits(p.statistics) &&
         fits(p.coefficients);
}

// Planes of whole pieces.
bool whole_planes(const BatchNormParams& p) { return !p.columns && p.pixels % kPiece == 0 && wide_rows(p); }

// Pieces of planes are counted in int32; offsets are 64 bits wide.
bool countable(const BatchNormParams& p) {
  return p.columns ? p.channels <= kMaxIndex32
                   : p.batch * p.channels * ((p.pixels + kPiece - 1) / kPiece) <= kMaxIndex32;
}

// Enough to fill any GPU of today; more only shorten each thread's walk over the channels that it has loaded.
constexpr int64_t kReducingBlocks = 1024, kReducingColumnBlocks = 512, kWalkingBlocks = 1584;

// Blocks and their shape for columns: at most `across` pieces of them, rows down, of which a thread takes
// `rows` or more where there are so many.
LaunchShape column_shape(const BatchNormParams& p, int piece, int64_t blocks, int64_t rows, unsigned across) {
  const int64_t pieces = (row_size(p) + piece - 1) / piece, all = row_count(p);
  // Single elements take whole warps, whose lanes share the bytes of the mask.
  while (across > (piece > 1 ? 1 : 32) && across / 2 >= pieces) across /= 2;
  const unsigned down = kThreads / across;
  const int64_t wide = (pieces + across - 1) / across;
  const int64_t most = std::min<int64_t>((all + down * rows - 1) / (down * rows), 65535);
  return {{static_cast<unsigned>(wide), static_cast<unsigned>(std::clamp<int64_t>(blocks / wide, 1, most))},
          {across, down}};
}

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

// Blocks of a thread, or of a warp, for each channel.
LaunchShape channel_threads(const BatchNormParams& p) {
  return {static_cast<unsigned>((p.channels + kThreads - 1) / kThreads), kThreads};
}
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

cudaError_t launch_batch_norm_gradient_sums(const BatchNormParams& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int parts = 0;
    const cudaError_t error = reduce_any<true, T>(params, stream, parts);
    if (error != cudaSuccess) return error;
    return launch(finish_gradient_sums<T>, channel_warps(params), stream, params, parts);
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
