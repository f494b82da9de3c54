#include <algorithm>
#include <type_traits>

#include "cross_entropy.h"
#include "device.cuh"

// A row of logits belongs to a team of threads: a part of a warp, or a block. Its members read 16 bytes at a
// time, whatever the row's alignment: only the first and the last of these are read by element.
namespace d2lfast::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
// Vectors that a thread has under way.
template <typename T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 2;
template <typename T>
constexpr int kSpan = kUnroll<T> * kVectorWidth<T>;  // elements of a turn of a thread

// Classes from which on a block takes a row, and from which on it is as large as a block can be.
constexpr int64_t kBlockRow = 2048, kLargeRow = 16384;
constexpr int kMaxWarps = 32;
template <typename T>
constexpr int kLargeBlock = sizeof(T) == 8 ? 512 : 1024;  // exp() of float64 takes more registers
// At most as many parts as one block adds at the end in a few turns.
constexpr int64_t kMaxParts = 2048;

// exp(x) for x <= 0, or NaN.
__device__ inline float exp_below(float x) { return exp2(x * 1.44269504f); }
__device__ inline double exp_below(double x) { return exp(x); }

struct LaneRange {
  int begin, end;
  __device__ bool has(int lane) const { return lane >= begin && lane < end; }
};

// A row in vectors of 16 bytes as they lie in memory: element 0 is number `shift` of the first.
template <typename T>
struct RowVectors {
  static constexpr int V = kVectorWidth<T>;
  const T* row;
  int32_t classes, shift;

  __device__ RowVectors(const T* row, int32_t classes)
      : row(row),
        classes(classes),
        shift(static_cast<int32_t>(reinterpret_cast<uintptr_t>(row) / sizeof(T) % V)) {}
  __device__ int32_t count() const { return (shift + classes + V - 1) / V; }
  __device__ int32_t first_of(int32_t vector) const { return vector * V - shift; }
  // Which elements of the vector that begins with element `first` are in the row.
  __device__ LaneRange inside(int32_t first) const {
    const int32_t left = classes - first;
    return {first < 0 ? shift : 0, left < V ? left : V};
  }

  // Minus infinity where the row is not.
  __device__ Vector<T, V> read(int32_t vector) const {
    const int32_t first = first_of(vector);
    const LaneRange lanes = inside(first);
    if (lanes.begin == 0 && lanes.end == V) return load<V>(row + first);
    Vector<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      result.lane[v] = lanes.has(v) ? row[first + v] : from_compute<T>(-static_cast<Compute<T>>(INFINITY));
    }
    return result;
  }
};

// A step of so many rows, as outer and inner ones.
struct RowStep {
  int64_t rows, outer, inner;

  RowStep(const CrossEntropyRows& p, int64_t rows)
      : rows(rows), outer(rows / p.inner_rows), inner(rows % p.inner_rows) {}
};

// Row `number` is (outer, inner).
struct RowPlace {
  int64_t number, outer, inner;

  __device__ RowPlace(const CrossEntropyRows& p, int64_t number)
      : number(number), outer(p.inner_rows == 1 ? number : number / p.inner_rows) {
    inner = number - outer * p.inner_rows;
  }
  __device__ void advance(const CrossEntropyRows& p, const RowStep& step) {
    number += step.rows;
    outer += step.outer;
    inner += step.inner;
    if (inner >= p.inner_rows) {
      inner -= p.inner_rows;
      ++outer;
    }
  }
  __device__ int64_t offset(int64_t outer_stride, int64_t inner_stride) const {
    return outer * outer_stride + inner * inner_stride;
  }
};

// Maximum of some logits and the sum of exp(x - maximum). NaN gets lost in the maximum, but not in the sum.
template <typename A>
struct SoftmaxSum {
  A most = -static_cast<A>(INFINITY), sum = 0;

  // What is subtracted: minus infinity less itself would be NaN.
  static __device__ A center(A most) { return most == -static_cast<A>(INFINITY) ? A(0) : most; }

  template <typename T, int V, int N>
  __device__ void add(const Vector<T, V> (&given)[N]) {
    A top = most;
#pragma unroll
    for (int k = 0; k < N * V; ++k) top = fmax(top, to_compute(given[k / V].lane[k % V]));
    const A middle = center(top);
    sum *= exp_below(most - middle);
#pragma unroll
    for (int k = 0; k < N * V; ++k) sum += exp_below(to_compute(given[k / V].lane[k % V]) - middle);
    most = top;
  }
  __device__ void merge(const SoftmaxSum& other) {
    const A top = fmax(most, other.most), middle = center(top);
    sum = sum * exp_below(most - middle) + other.sum * exp_below(other.most - middle);
    most = top;
  }
  // Over `lanes` neighbours, a power of two, into the first of them.
  __device__ void merge_lanes(int lanes) {
#pragma unroll 1
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      SoftmaxSum other;
      other.most = shuffle_xor(most, mask);
      other.sum = shuffle_xor(sum, mask);
      merge(other);
    }
  }
};

// What thread `member` of the `members` of a team sees of a row.
template <typename T>
__device__ SoftmaxSum<Compute<T>> sum_of_member(const T* row, int32_t classes, int member, int members) {
  const RowVectors<T> vectors(row, classes);
  const int32_t count = vectors.count();
  SoftmaxSum<Compute<T>> result;
  for (int32_t vector = member; vector < count; vector += kUnroll<T> * members) {
    Vector<T, kVectorWidth<T>> given[kUnroll<T>];
#pragma unroll
    for (int u = 0; u < kUnroll<T>; ++u) given[u] = vectors.read(vector + u * members);
    result.add(given);
  }
  return result;
}

struct LossSum {
  double loss = 0, count = 0;

  // Of kThreads threads, in an order of its own, into the first of them.
  __device__ void merge_block() {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      loss += shuffle_xor(loss, mask);
      count += shuffle_xor(count, mask);
    }
    D2LFAST_SHARED(double, warps, 2 * kWarps);
    if (threadIdx.x % 32 == 0) {
      warps[threadIdx.x / 32 * 2] = loss;
      warps[threadIdx.x / 32 * 2 + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kWarps; ++w) {
      loss += warps[2 * w];
      count += warps[2 * w + 1];
    }
  }
};

// Stores what is known of a row, and adds its loss. Called by one thread of the row's team.
template <typename T>
__device__ void finish_row(const CrossEntropyLoss& p, const RowPlace& at, const T* row, int64_t target,
                           const SoftmaxSum<Compute<T>>& sum, LossSum& losses) {
  using A = Compute<T>;
  const A log_sum = log(sum.sum);
  store(static_cast<A*>(p.statistics) + 2 * at.number, Vector<A, 2>{{sum.most, log_sum}});
  A loss = 0;
  if (target != p.ignore_index) {
    D2LFAST_ASSERT(target >= 0 && target < p.classes);
    loss = log_sum - (to_compute(row[target]) - sum.most);
    losses.loss += loss;
    losses.count += 1;
  }
  if (p.losses != nullptr) {
    static_cast<T*>(p.losses)[at.offset(p.losses_outer, p.losses_inner)] = from_compute<T>(loss);
  }
}

// Called by one thread of a block.
template <typename A>
__device__ void write_part(const CrossEntropyLoss& p, const LossSum& sum) {
  if (p.partial != nullptr) {
    store(p.partial + 2 * blockIdx.x, Vector<double, 2>{{sum.loss, sum.count}});
  } else if (blockIdx.x == 0) {
    static_cast<A*>(p.statistics)[2 * p.rows] = 0;
  }
}

// `lanes` threads of a warp take a row.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? kMinBlocks / 2 : kMinBlocks)
    cross_entropy_lanes(const CrossEntropyLoss p, const RowStep step, const int lanes) {
  const int lane = threadIdx.x % 32, member = lane % lanes, teams = kThreads / lanes;
  LossSum losses;
  RowPlace at(p, static_cast<int64_t>(blockIdx.x) * teams + threadIdx.x / lanes);
  // All lanes of a warp turn equally often.
  for (int64_t first = at.number - lane / lanes; first < p.rows; first += step.rows) {
    const bool inside = at.number < p.rows;
    const T* row = static_cast<const T*>(p.input);
    if (inside) row += at.offset(p.input_outer, p.input_inner);
    const bool finishes = inside && member == 0;
    const int64_t target = finishes ? p.target[at.offset(p.target_outer, p.target_inner)] : 0;
    auto sum = sum_of_member(row, inside ? static_cast<int32_t>(p.classes) : 0, member, lanes);
    sum.merge_lanes(lanes);
    if (finishes) finish_row(p, at, row, target, sum, losses);
    at.advance(p, step);
  }
  losses.merge_block();
  if (threadIdx.x == 0) write_part<Compute<T>>(p, losses);
}

// A block takes a row.
template <typename T>
__global__ void __launch_bounds__(kLargeBlock<T>, 1)
    cross_entropy_blocks(const CrossEntropyLoss p, const RowStep step) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, warps, 2 * kMaxWarps);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = blockDim.x / 32;
  LossSum losses;
  for (RowPlace at(p, blockIdx.x); at.number < p.rows; at.advance(p, step)) {
    const T* row = static_cast<const T*>(p.input) + at.offset(p.input_outer, p.input_inner);
    const int64_t target = p.target[at.offset(p.target_outer, p.target_inner)];
    // The logits of a row that does not count are not read.
    const int32_t classes = target == p.ignore_index ? 0 : static_cast<int32_t>(p.classes);
    auto sum = sum_of_member(row, classes, threadIdx.x, blockDim.x);
    sum.merge_lanes(32);
    if (lane == 0) {
      warps[2 * warp] = sum.most;
      warps[2 * warp + 1] = sum.sum;
    }
    __syncthreads();
    if (warp == 0) {
      SoftmaxSum<A> part;
      if (lane < count) {
        part.most = warps[2 * lane];
        part.sum = warps[2 * lane + 1];
      }
      part.merge_lanes(32);
      if (lane == 0) finish_row(p, at, row, target, part, losses);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) write_part<A>(p, losses);
}

// One block.
template <typename T>
__global__ void __launch_bounds__(kThreads) cross_entropy_sum(const CrossEntropyLoss p, const int64_t parts) {
  LossSum sum;
#pragma unroll 4
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
    const auto given = load<2>(static_cast<const double*>(p.partial) + 2 * part);
    sum.loss += given.lane[0];
    sum.count += given.lane[1];
  }
  sum.merge_block();
  if (threadIdx.x != 0) return;
  using A = Compute<T>;
  static_cast<A*>(p.statistics)[2 * p.rows] = static_cast<A>(sum.count);
  const double total = p.mean ? sum.loss / sum.count : sum.loss;
  *static_cast<T*>(p.total) = from_compute<T>(static_cast<A>(total));
}

// `members` neighbouring threads of a block, a power of two, take a row.
template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    cross_entropy_gradient(const CrossEntropyGradient p, const RowStep step, const int members) {
  using A = Compute<T>;
  constexpr int V = kVectorWidth<T>;
  const int member = threadIdx.x % members, teams = kThreads / members;
  const A* statistics = static_cast<const A*>(p.statistics);
  A scale = 0;
  if (p.grad_total != nullptr) {
    scale = to_compute(*static_cast<const T*>(p.grad_total));
    if (p.mean) scale /= statistics[2 * p.rows];
  }
  const auto classes = static_cast<int32_t>(p.classes);
  for (RowPlace at(p, static_cast<int64_t>(blockIdx.x) * teams + threadIdx.x / members); at.number < p.rows;
       at.advance(p, step)) {
    const RowVectors<T> from(static_cast<const T*>(p.input) + at.offset(p.input_outer, p.input_inner),
                             classes);
    T* to = static_cast<T*>(p.grad_input) + at.offset(p.grad_input_outer, p.grad_input_inner);
    // As it is where both tensors lie alike.
    const bool wide = RowVectors<T>(to, classes).shift == from.shift;
    const int64_t target = p.target[at.offset(p.target_outer, p.target_inner)];
    const bool ignored = target == p.ignore_index;
    const auto chosen = static_cast<int32_t>(target);
    const int32_t count = from.count();
    const Vector<A, 2> row = load<2>(statistics + 2 * at.number);
    const A most = row.lane[0], log_sum = row.lane[1];
    if (p.grad_losses != nullptr) {
      scale = to_compute(
          static_cast<const T*>(p.grad_losses)[at.offset(p.grad_losses_outer, p.grad_losses_inner)]);
    }
    for (int32_t vector = member; vector < count; vector += kUnroll<T> * members) {
      Vector<T, V> given[kUnroll<T>];
#pragma unroll
      for (int u = 0; u < kUnroll<T>; ++u) {
        if (!ignored) given[u] = from.read(vector + u * members);
      }
#pragma unroll
      for (int u = 0; u < kUnroll<T>; ++u) {
        const int32_t first = from.first_of(vector + u * members);
        const LaneRange lanes = from.inside(first);
        Vector<T, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          A gradient = 0;
          if (!ignored) {
            const A share = exp_below((to_compute(given[u].lane[v]) - most) - log_sum);
            gradient = (first + v == chosen ? share - 1 : share) * scale;
          }
          result.lane[v] = from_compute<T>(gradient);
        }
        if (wide && lanes.begin == 0 && lanes.end == V) {
          store(to + first, result);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (lanes.has(v)) to[first + v] = result.lane[v];
          }
        }
      }
    }
  }
}

// Threads of a row's team, of at most `most`.
template <typename T>
int members_of(int64_t classes, int most) {
  int members = 1;
  while (members < most && static_cast<int64_t>(members) * kSpan<T> < classes) members *= 2;
  return members;
}

struct Teams {
  int members;  // threads of a row
  LaunchShape shape;
};

template <typename T>
Teams forward_teams(int64_t rows, int64_t classes) {
  const auto blocks = [&](int64_t teams) {
    return static_cast<unsigned>(std::clamp<int64_t>((rows + teams - 1) / teams, 1, kMaxParts));
  };
  if (classes >= kBlockRow) {
    const int threads = classes >= kLargeRow ? kLargeBlock<T> : kThreads;
    return {threads, {blocks(1), static_cast<unsigned>(threads)}};
  }
  const int lanes = members_of<T>(classes, 32);
  return {lanes, {blocks(kThreads / lanes), kThreads}};
}

}  // namespace

int64_t cross_entropy_parts(int64_t rows, int64_t classes, DType dtype) {
  int64_t parts = 0;
  with_dtype(dtype, [&](auto type) {
    parts = rows == 0 ? 0 : forward_teams<typename decltype(type)::type>(rows, classes).shape.grid.x;
    return cudaSuccess;
  });
  return parts;
}

cudaError_t launch_cross_entropy(const CrossEntropyLoss& params, DType dtype, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  if (params.classes > kMaxIndex32) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const Teams teams = forward_teams<T>(params.rows, params.classes);
    const int64_t blocks = teams.shape.grid.x;
    if (params.classes >= kBlockRow) {
      return launch(cross_entropy_blocks<T>, teams.shape, stream, params, RowStep(params, blocks));
    }
    return launch(cross_entropy_lanes<T>, teams.shape, stream, params,
                  RowStep(params, blocks * (kThreads / teams.members)), teams.members);
  });
}

cudaError_t launch_cross_entropy_sum(const CrossEntropyLoss& params, DType dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(cross_entropy_sum<T>, {1, kThreads}, stream, params,
                  cross_entropy_parts(params.rows, params.classes, dtype));
  });
}

cudaError_t launch_cross_entropy_gradient(const CrossEntropyGradient& params, DType dtype,
                                          cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  if (params.classes > kMaxIndex32) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int members = members_of<T>(params.classes, kThreads);
    const int64_t teams = kThreads / members;
    const unsigned blocks = blocks_for((params.rows + teams - 1) / teams * kThreads);
    return launch(cross_entropy_gradient<T>, {blocks, kThreads}, stream, params,
                  RowStep(params, blocks * teams), members);
  });
}

}  // namespace d2lfast::cuda
