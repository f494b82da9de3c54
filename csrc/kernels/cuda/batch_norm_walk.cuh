#pragma once

#include <algorithm>

#include "batch_norm.h"
#include "batch_norm_element.cuh"

// What the elementwise kernels and the sums of batch norm share: how threads walk over a tensor.
namespace d2lfast::cuda {

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

// In columns a thread keeps its piece and its channels and walks down the rows: blockDim.x pieces by
// blockDim.y rows. Planes that are no whole pieces are columns too, of rows that are images.
template <int K>
__device__ int64_t first_column() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * K;
}
inline __device__ int64_t first_row() { return static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; }
inline __device__ int64_t row_step() { return static_cast<int64_t>(gridDim.y) * blockDim.y; }

inline int64_t row_count(const BatchNormParams& p) { return p.columns ? p.batch * p.pixels : p.batch; }
inline int64_t row_size(const BatchNormParams& p) { return p.columns ? p.channels : p.channels * p.pixels; }

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
inline bool wide_rows(const BatchNormParams& p) {
  const auto fits = [](const void* pointer) { return aligned(pointer, 16); };
  const bool two = p.columns || p.pixels >= kPiece || p.pixels == kPiece / 2;
  return two && row_size(p) % kPiece == 0 && fits(p.input) && fits(p.residual) && fits(p.gradient) &&
         fits(p.activated) && fits(p.result) && fits(p.grad_residual) && fits(p.statistics) &&
         fits(p.coefficients);
}

// Planes of whole pieces.
inline bool whole_planes(const BatchNormParams& p) {
  return !p.columns && p.pixels % kPiece == 0 && wide_rows(p);
}

// Pieces of planes are counted in int32; offsets are 64 bits wide.
inline bool countable(const BatchNormParams& p) {
  return p.columns ? p.channels <= kMaxIndex32
                   : p.batch * p.channels * ((p.pixels + kPiece - 1) / kPiece) <= kMaxIndex32;
}

// Blocks and their shape for columns: at most `across` pieces of them, rows down, of which a thread takes
// `rows` or more where there are so many.
inline LaunchShape column_shape(const BatchNormParams& p, int piece, int64_t blocks, int64_t rows,
                                unsigned across) {
  const int64_t pieces = (row_size(p) + piece - 1) / piece, all = row_count(p);
  // Single elements take whole warps, whose lanes share the bytes of the mask.
  while (across > (piece > 1 ? 1 : 32) && across / 2 >= pieces) across /= 2;
  const unsigned down = kThreads / across;
  const int64_t wide = (pieces + across - 1) / across;
  const int64_t most = std::min<int64_t>((all + down * rows - 1) / (down * rows), 65535);
  return {{static_cast<unsigned>(wide), static_cast<unsigned>(std::clamp<int64_t>(blocks / wide, 1, most))},
          {across, down}};
}

}  // namespace d2lfast::cuda
