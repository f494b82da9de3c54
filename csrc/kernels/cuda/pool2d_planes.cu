#include "pool2d_planes.cuh"

#include <algorithm>
#include <numeric>

#include "device_limits.h"
#include "pool2d_geometry.cuh"
#include "pool2d_planes.h"

namespace d2lfast::cuda {
namespace {

constexpr int kPlaneBlocks = 4;  // per multiprocessor: at most 128 registers a thread

template <typename Window, int K, typename T, typename P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks)
    max_pool2d_planes(const T* __restrict__ input, T* __restrict__ output, P* __restrict__ position,
                      const PoolGeometry g, const PlaneRun run) {
  const auto values = dynamic_shared<Slot<T>>();
  const auto results = values + run.result;
  const auto taps = dynamic_shared<TapSlot<T>>() + run.taps;
  const PlaneBlock<T> block(run, blockIdx.x);
  stage_planes<Piece<T>, pitched(K)>(values, input, run.source_planes, run.half, block);
  __syncthreads();
  const int32_t items = block.planes[0] * run.columns.divisor * run.lines.divisor;
  for (int32_t item = threadIdx.x; item < items; item += kPlaneThreads) {
    pool_plane_strip<Window, K, T, P>(item, values, results, taps, g, run);
  }
  __syncthreads();
  unstage_planes<Piece<T>, pitched(K)>(output, results, run.result_planes, run.half, block);
  if constexpr (!std::is_same_v<P, NoPosition>) {
    unstage_planes<TapPiece<T>, pitched(K)>(position, taps, run.result_planes, run.half, block);
  }
}

template <int K, typename T>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks)
    max_pool2d_planes_backward(const T* __restrict__ grad_output, const uint8_t* __restrict__ position,
                               T* __restrict__ grad_input, const PoolGeometry g, const PlaneRun run) {
  const auto gradients = dynamic_shared<Slot<T>>();
  const auto results = gradients + run.result;
  const auto taps = dynamic_shared<TapSlot<T>>() + run.taps;
  const PlaneBlock<T> block(run, blockIdx.x);
  stage_planes<Piece<T>, pitched(K)>(gradients, grad_output, run.source_planes, run.half, block);
  stage_planes<TapPiece<T>, pitched(K)>(taps, position, run.source_planes, run.half, block);
  __syncthreads();
  const int32_t items = block.planes[0] * run.columns.divisor * run.lines.divisor;
  for (int32_t item = threadIdx.x; item < items; item += kPlaneThreads) {
    pool_plane_strip_backward<K, T>(item, gradients, taps, results, g, run);
  }
  __syncthreads();
  unstage_planes<Piece<T>, pitched(K)>(grad_input, results, run.result_planes, run.half, block);
}

struct PlanePlan {
  PlaneRun run;
  LaunchShape shape;
};

// Sizes of planes: what is read, what is written and the positions. Strips of the latter's `height` and
// `width` are of `columns` and at most `rows`, about as many in a block as threads. `aligned_bases`: tensors
// begin on 16 bytes, positions on 8.
template <typename T>
std::optional<PlanePlan> plan_of(int64_t planes, int64_t source, int64_t result, int64_t taps, int64_t height,
                                 int64_t width, int64_t columns, int64_t rows, bool aligned_bases) {
  constexpr int64_t V = kSlotPlanes<T>, kSlot = sizeof(Slot<T>), kTap = sizeof(TapSlot<T>);
  constexpr int64_t kBlockBytes = 75 * 1024;  // three on a multiprocessor of sm_90
  const auto fours = [&](int64_t size) {
    return pitched(static_cast<int>(columns)) && size % 8 == 0 ? 1 : 0;
  };
  // Each of the three begins on a boundary.
  const auto slots = [&](int64_t half, int64_t size) {
    return (half * (size + 4 * fours(size)) + 15) / 16 * 16;
  };
  const auto bytes = [&](int64_t half) {
    return (slots(half, source) + slots(half, result)) * kSlot + slots(half, taps) * kTap;
  };
  const int64_t most = device_limits().shared_bytes;
  const int64_t lines = (height + rows - 1) / rows, strips = (width + columns - 1) / columns;
  const int64_t unit = kVectorWidth<T> / std::gcd(int64_t{kVectorWidth<T>}, std::gcd(source, result));
  int64_t half = std::max<int64_t>(kPlaneThreads / (lines * strips), 1);
  while (half > 1 && bytes(half) > kBlockBytes) --half;
  const bool wide = aligned_bases && bytes(unit) <= most;
  if (wide) half = std::max(half / unit, int64_t{1}) * unit;
  const int64_t blocks = (planes + half * V - 1) / (half * V);
  if (bytes(half) > most || blocks > INT32_MAX) return std::nullopt;
  PlanePlan plan{};
  plan.run.planes = planes;
  plan.run.half = static_cast<int32_t>(half);
  plan.run.rows = static_cast<int32_t>((height + lines - 1) / lines);
  plan.run.source_planes = {Divider<int32_t>(source), fours(source)};
  plan.run.result_planes = {Divider<int32_t>(result), fours(result)};
  plan.run.result = static_cast<int32_t>(slots(half, source));
  plan.run.taps = static_cast<int32_t>((slots(half, source) + slots(half, result)) * (kSlot / kTap));
  plan.run.columns = Divider<int32_t>(strips);
  plan.run.lines = Divider<int32_t>(lines);
  plan.run.wide = wide;
  plan.shape = {static_cast<unsigned>(blocks), kPlaneThreads, static_cast<size_t>(bytes(half))};
  return plan;
}

// Of a strip of K columns, about as many elements as of others.
constexpr int64_t rows_of(int columns) { return columns == 7 ? 7 : 16; }

// Whether strips of 7 columns rather than of 3, which take a tenth more a column.
bool takes_sevens(int64_t width) { return (width + 6) / 7 * 70 <= (width + 2) / 3 * 33; }

template <typename Params>
bool fits(const Params& p) {
  constexpr int64_t kMost = 1 << 12;  // of rows and columns: three positions of each fit into 15 bits
  return !p.channels_last && p.position_bytes == 1 && std::max({p.h, p.w, p.oh, p.ow}) <= kMost;
}

template <typename T, typename P>
std::optional<cudaError_t> forward(const MaxPool2dParams& p, cudaStream_t stream) {
  const bool bases = aligned(p.input, 16) && aligned(p.output, 16) && aligned(p.position, 8);
  const auto run = [&](auto window, auto columns) -> std::optional<cudaError_t> {
    using Window = decltype(window);
    constexpr int K = decltype(columns)::value;
    const auto plan =
        plan_of<T>(p.n * p.c, p.h * p.w, p.oh * p.ow, std::is_same_v<P, NoPosition> ? 0 : p.oh * p.ow, p.oh,
                   p.ow, K, Window::stride == 1 ? rows_of(K) : 4, bases);
    if (!plan) return std::nullopt;
    return launch(max_pool2d_planes<Window, K, T, P>, plan->shape, stream, static_cast<const T*>(p.input),
                  static_cast<T*>(p.output), static_cast<P*>(p.position), geometry_of(p), plan->run);
  };
  constexpr std::integral_constant<int, 3> kThree;
  if (matches<FixedWindow<3, 1>>(p.window)) {
    if constexpr (sizeof(T) < 8) {
      if (takes_sevens(p.ow)) return run(FixedWindow<3, 1>{}, std::integral_constant<int, 7>{});
    }
    return run(FixedWindow<3, 1>{}, kThree);
  }
  if (matches<FixedWindow<3, 2>>(p.window)) return run(FixedWindow<3, 2>{}, kThree);
  if (matches<FixedWindow<2, 2>>(p.window)) return run(FixedWindow<2, 2>{}, kThree);
  return std::nullopt;
}

template <typename T>
std::optional<cudaError_t> backward(const MaxPool2dBackwardParams& p, cudaStream_t stream) {
  if (!matches<FixedWindow<3, 1>>(p.window)) return std::nullopt;
  const bool bases = aligned(p.grad_output, 16) && aligned(p.grad_input, 16) && aligned(p.position, 8);
  const auto run = [&](auto columns) -> std::optional<cudaError_t> {
    constexpr int K = decltype(columns)::value;
    const auto plan =
        plan_of<T>(p.n * p.c, p.oh * p.ow, p.h * p.w, p.oh * p.ow, p.h, p.w, K, rows_of(K), bases);
    if (!plan) return std::nullopt;
    return launch(max_pool2d_planes_backward<K, T>, plan->shape, stream, static_cast<const T*>(p.grad_output),
                  static_cast<const uint8_t*>(p.position), static_cast<T*>(p.grad_input), geometry_of(p),
                  plan->run);
  };
  if constexpr (sizeof(T) < 8) {
    if (takes_sevens(p.w)) return run(std::integral_constant<int, 7>{});
  }
  return run(std::integral_constant<int, 3>{});
}

}  // namespace

std::optional<cudaError_t> launch_max_pool2d_planes(const MaxPool2dParams& params, DType dtype,
                                                    cudaStream_t stream) {
  if (!fits(params)) return std::nullopt;
  std::optional<cudaError_t> result;
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    result = params.position == nullptr ? forward<T, NoPosition>(params, stream)
                                        : forward<T, uint8_t>(params, stream);
    return cudaSuccess;
  });
  return result;
}

std::optional<cudaError_t> launch_max_pool2d_planes_backward(const MaxPool2dBackwardParams& params,
                                                             DType dtype, cudaStream_t stream) {
  if (!fits(params)) return std::nullopt;
  std::optional<cudaError_t> result;
  with_dtype(dtype, [&](auto type) {
    result = backward<typename decltype(type)::type>(params, stream);
    return cudaSuccess;
  });
  return result;
}

}  // namespace d2lfast::cuda
