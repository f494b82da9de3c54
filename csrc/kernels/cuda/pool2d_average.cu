#include <cstdint>

#include "device.cuh"
#include "pool2d.h"
#include "pool2d_geometry.cuh"

// Average and adaptive pooling. V neighbouring channels of channels_last tensors share a thread; NCHW is
// N * C images of one channel. Forward and backward gather, in the order of the elements.
namespace d2lfast::cuda {
namespace {

struct Range {
  int32_t begin, end;
};

__device__ int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

// One axis of a window that slides, or of windows that adapt to the output's size.
struct SlidingAxis {
  int32_t size, out, kernel, stride, pad;

  __device__ Range inputs(int32_t o) const {
    const int32_t start = o * stride - pad;
    return {most(start, 0), least(start + kernel, size)};
  }
  // With the padding, but without what ceil_mode adds beyond it.
  __device__ int32_t padded(int32_t o) const {
    const int32_t start = o * stride - pad;
    return least(start + kernel, size + pad) - start;
  }
  __device__ Range outputs(int32_t i) const {
    const int32_t before = i + pad - kernel + 1;
    return {before > 0 ? (before + stride - 1) / stride : 0, least((i + pad) / stride + 1, out)};
  }
};

struct AdaptiveAxis {
  int32_t size, out;

  __device__ Range inputs(int32_t o) const {
    const int64_t begin = static_cast<int64_t>(o) * size / out;
    return {static_cast<int32_t>(begin),
            static_cast<int32_t>((static_cast<int64_t>(o + 1) * size + out - 1) / out)};
  }
  __device__ int32_t padded(int32_t o) const {
    const Range range = inputs(o);
    return range.end - range.begin;
  }
  __device__ Range outputs(int32_t i) const {
    const int64_t begin = static_cast<int64_t>(i) * out / size;
    return {static_cast<int32_t>(begin),
            static_cast<int32_t>((static_cast<int64_t>(i + 1) * out + size - 1) / size)};
  }
};

template <typename Axis>
struct Pooling {
  Axis h, w;
  int32_t channels;
  int64_t divisor;  // 0: the window's size
  bool count_padding;

  __device__ int64_t divisor_of(int32_t oh, int32_t ow) const {
    if (divisor != 0) return divisor;
    if (count_padding) return static_cast<int64_t>(h.padded(oh)) * w.padded(ow);
    const Range rows = h.inputs(oh), columns = w.inputs(ow);
    return static_cast<int64_t>(rows.end - rows.begin) * (columns.end - columns.begin);
  }
};

template <int V, typename T>
__device__ Vector<T, V> rounded(const Compute<T> (&values)[V]) {
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.lane[v] = from_compute<T>(values[v]);
  return result;
}

// By a power of two, the product with the reciprocal is the same number.
template <int V, typename A>
__device__ void divide_all(A (&values)[V], int64_t divisor) {
  const A by = static_cast<A>(divisor);
  if ((divisor & (divisor - 1)) == 0) {
    const A reciprocal = A(1) / by;
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] *= reciprocal;
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] /= by;
  }
}

template <int V, typename Axis, typename T, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    average_pool2d(const T* __restrict__ input, T* __restrict__ output, const Pooling<Axis> p,
                   const PoolItems<Index> items) {
  const Index row = static_cast<Index>(p.channels) * p.w.size;
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    const PoolPlace<Index> at = place_of<V, false>(item, items);
    const T* image = input + (at.image * (row * p.h.size) + at.channel);
    const Range rows = p.h.inputs(at.h), columns = p.w.inputs(at.w);
    Compute<T> sum[V] = {};
    for (int32_t h = rows.begin; h < rows.end; ++h) {
      for (int32_t w = columns.begin; w < columns.end; ++w) {
        const Vector<T, V> given = load<V>(image + (h * row + static_cast<Index>(w) * p.channels));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += to_compute(given.lane[v]);
      }
    }
    // A window wholly in the padding is zero, whatever its size.
    const bool empty = rows.end <= rows.begin || columns.end <= columns.begin;
    if (!empty) divide_all(sum, p.divisor_of(at.h, at.w));
    store(output + item * V, rounded<V, T>(sum));
  }
}

template <int V, typename Axis, typename T, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    average_pool2d_backward(const T* __restrict__ grad_output, T* __restrict__ grad_input,
                            const Pooling<Axis> p, const PoolItems<Index> items) {
  const Index row = static_cast<Index>(p.channels) * p.w.out;
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    const PoolPlace<Index> at = place_of<V, false>(item, items);
    const T* image = grad_output + (at.image * (row * p.h.out) + at.channel);
    const Range rows = p.h.outputs(at.h), columns = p.w.outputs(at.w);
    Compute<T> sum[V] = {};
    for (int32_t h = rows.begin; h < rows.end; ++h) {
      for (int32_t w = columns.begin; w < columns.end; ++w) {
        const Vector<T, V> given = load<V>(image + (h * row + static_cast<Index>(w) * p.channels));
        Compute<T> share[V];
#pragma unroll
        for (int v = 0; v < V; ++v) share[v] = to_compute(given.lane[v]);
        divide_all(share, p.divisor_of(h, w));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += share[v];
      }
    }
    store(grad_input + item * V, rounded<V, T>(sum));
  }
}

// Windows of 2 x 2 and stride 2 without padding in NCHW, 16 bytes of an input row a thread; sums as above.
struct Quarters {
  int32_t height, width, out_height;
  int64_t divisor;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    average_quarters(const T* __restrict__ input, T* __restrict__ output, const Quarters q,
                     const PoolItems<int32_t> items) {
  constexpr int V = kVectorWidth<T>;
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    const PoolPlace<int32_t> at = place_of<1, true>(item, items);
    const T* row = input + (at.image * q.height + 2 * at.h) * q.width + at.w * V;
    const Vector<T, V> upper = load<V>(row), lower = load<V>(row + q.width);
    Compute<T> sum[V / 2];
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      sum[i] = to_compute(upper.lane[2 * i]) + to_compute(upper.lane[2 * i + 1]);
      sum[i] += to_compute(lower.lane[2 * i]);
      sum[i] += to_compute(lower.lane[2 * i + 1]);
    }
    divide_all(sum, q.divisor);
    store(output + item * (V / 2), rounded<V / 2, T>(sum));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    average_quarters_backward(const T* __restrict__ grad_output, T* __restrict__ grad_input, const Quarters q,
                              const PoolItems<int32_t> items) {
  constexpr int V = kVectorWidth<T>;
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    const PoolPlace<int32_t> at = place_of<1, true>(item, items);
    Compute<T> sum[V] = {};
    if (at.h / 2 < q.out_height) {  // else the last of an odd number of rows
      const int32_t row = (at.image * q.out_height + at.h / 2) * (q.width / 2);
      const Vector<T, V / 2> given = load<V / 2>(grad_output + row + at.w * (V / 2));
      Compute<T> share[V / 2];
#pragma unroll
      for (int i = 0; i < V / 2; ++i) share[i] = to_compute(given.lane[i]);
      divide_all(share, q.divisor);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = share[i / 2];
    }
    store(grad_input + item * V, rounded<V, T>(sum));
  }
}

// Each plane to its mean, a warp to a plane: the windows of a 1 x 1 output in NCHW are contiguous.
template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    plane_mean(const T* __restrict__ input, T* __restrict__ output, int64_t planes, int64_t pixels) {
  constexpr int kWarps = kThreads / 32;
  const int lane = threadIdx.x % 32;
  for (int64_t plane = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; plane < planes;
       plane += static_cast<int64_t>(gridDim.x) * kWarps) {
    const T* from = input + plane * pixels;
    Compute<T> sum = 0;
    for (int64_t i = lane * V; i < pixels; i += 32 * V) {
      const Vector<T, V> given = load<V>(from + i);
#pragma unroll
      for (int v = 0; v < V; ++v) sum += to_compute(given.lane[v]);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane == 0) output[plane] = from_compute<T>(sum / static_cast<Compute<T>>(pixels));
  }
}

template <int V, typename T, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    adaptive_max_pool2d(const T* __restrict__ input, T* __restrict__ output, int64_t* __restrict__ indices,
                        const Pooling<AdaptiveAxis> p, const PoolItems<Index> items) {
  const Index row = static_cast<Index>(p.channels) * p.w.size;
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    const PoolPlace<Index> at = place_of<V, false>(item, items);
    const T* image = input + (at.image * (row * p.h.size) + at.channel);
    const Range rows = p.h.inputs(at.h), columns = p.w.inputs(at.w);
    RunningMax<T, V> best;
    best.reset(rows.begin * p.w.size + columns.begin);
    for (int32_t h = rows.begin; h < rows.end; ++h) {
      for (int32_t w = columns.begin; w < columns.end; ++w) {
        best.take(Lanes<T, V>::read(image + (h * row + static_cast<Index>(w) * p.channels)),
                  h * p.w.size + w);
      }
    }
    store(output + item * V, best.value);
#pragma unroll
    for (int v = 0; v < V; ++v) indices[item * V + v] = best.position[v];
  }
}

template <int V, typename T, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    adaptive_max_pool2d_backward(const T* __restrict__ grad_output, const int64_t* __restrict__ indices,
                                 T* __restrict__ grad_input, const Pooling<AdaptiveAxis> p,
                                 const PoolItems<Index> items) {
  const Index row = static_cast<Index>(p.channels) * p.w.out;
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    const PoolPlace<Index> at = place_of<V, false>(item, items);
    const Index image = at.image * (row * p.h.out) + at.channel;
    const int64_t mine = static_cast<int64_t>(at.h) * p.w.size + at.w;
    const Range rows = p.h.outputs(at.h), columns = p.w.outputs(at.w);
    Compute<T> sum[V] = {};
    for (int32_t h = rows.begin; h < rows.end; ++h) {
      for (int32_t w = columns.begin; w < columns.end; ++w) {
        const Index from = image + (h * row + static_cast<Index>(w) * p.channels);
        const Vector<T, V> given = load<V>(grad_output + from);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (indices[from + v] == mine) sum[v] += to_compute(given.lane[v]);
        }
      }
    }
    store(grad_input + item * V, rounded<V, T>(sum));
  }
}

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }

Pooling<SlidingAxis> pooling_of(const AvgPool2dParams& p) {
  const auto& k = p.window;
  return {{narrow(p.h), narrow(p.oh), narrow(k.kernel_h), narrow(k.stride_h), narrow(k.pad_h)},
          {narrow(p.w), narrow(p.ow), narrow(k.kernel_w), narrow(k.stride_w), narrow(k.pad_w)},
          narrow(p.channels_last ? p.c : 1),
          p.divisor,
          p.count_include_pad};
}

Pooling<AdaptiveAxis> pooling_of(const AdaptivePool2dParams& p) {
  return {
      {narrow(p.h), narrow(p.oh)}, {narrow(p.w), narrow(p.ow)}, narrow(p.channels_last ? p.c : 1), 0, false};
}

bool fits(const AvgPool2dParams& p) { return coordinates_fit(p); }
bool fits(const AdaptivePool2dParams& p) {
  return std::max({p.h, p.w, p.oh, p.ow, p.h * p.w, p.c}) <= kMaxIndex32;
}

// Calls body(vector width, index type) for the result's height and width.
template <typename T, typename Params, typename Body>
cudaError_t with_access(const Params& p, int64_t height, int64_t width, Body&& body) {
  if (!fits(p)) return cudaErrorInvalidValue;
  const int64_t images = images_of(p), channels = p.channels_last ? p.c : 1;
  const auto run = [&](auto lanes, auto index) {
    constexpr int V = decltype(lanes)::value;
    const auto items = PoolItems<decltype(index)>::of(images, channels, height, width, V);
    return body(lanes, items, LaunchShape{blocks_for(items.count), kThreads});
  };
  if (!offsets_fit(p)) return run(std::integral_constant<int, 1>{}, int64_t{});
  constexpr int kWide = kVectorWidth<T>;
  if (p.channels_last && p.c % kWide == 0 && aligned(p.source, 16) && aligned(p.result, 16)) {
    return run(std::integral_constant<int, kWide>{}, int32_t{});
  }
  return run(std::integral_constant<int, 1>{}, int32_t{});
}

template <typename Params>
cudaError_t average_forward(const Params& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.oh * params.ow == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto pooling = pooling_of(params);
    using Axis = decltype(pooling.h);
    return with_access<T>(params, params.oh, params.ow, [&](auto lanes, auto items, LaunchShape shape) {
      return launch(average_pool2d<decltype(lanes)::value, Axis, T, decltype(items.count)>, shape, stream,
                    static_cast<const T*>(params.source), static_cast<T*>(params.result), pooling, items);
    });
  });
}

template <typename Params>
cudaError_t average_backward(const Params& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.h * params.w == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto pooling = pooling_of(params);
    using Axis = decltype(pooling.h);
    return with_access<T>(params, params.h, params.w, [&](auto lanes, auto items, LaunchShape shape) {
      return launch(average_pool2d_backward<decltype(lanes)::value, Axis, T, decltype(items.count)>, shape,
                    stream, static_cast<const T*>(params.source), static_cast<T*>(params.result), pooling,
                    items);
    });
  });
}

bool takes_quarters(const AvgPool2dParams& p, DType dtype) {
  const auto& k = p.window;
  const int64_t bytes = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  return k.kernel_h == 2 && k.kernel_w == 2 && k.stride_h == 2 && k.stride_w == 2 && k.pad_h == 0 &&
         k.pad_w == 0 && !p.channels_last && p.w == 2 * p.ow && p.h >= 2 * p.oh && p.w * bytes % 16 == 0 &&
         aligned(p.source, 16) && aligned(p.result, 16) && coordinates_fit(p) && offsets_fit(p);
}

// height: of the tensor that is written.
template <typename T>
cudaError_t run_quarters(void (*kernel)(const T*, T*, Quarters, PoolItems<int32_t>), const AvgPool2dParams& p,
                         int64_t height, cudaStream_t stream) {
  const auto items = PoolItems<int32_t>::of(images_of(p), 1, height, p.w / kVectorWidth<T>, 1);
  const Quarters quarters{narrow(p.h), narrow(p.w), narrow(p.oh), p.divisor == 0 ? 4 : p.divisor};
  return launch(kernel, {blocks_for(items.count), kThreads}, stream, static_cast<const T*>(p.source),
                static_cast<T*>(p.result), quarters, items);
}

}  // namespace

cudaError_t launch_avg_pool2d(const AvgPool2dParams& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.oh * params.ow == 0 || !takes_quarters(params, dtype)) {
    return average_forward(params, dtype, stream);
  }
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return run_quarters<T>(average_quarters<T>, params, params.oh, stream);
  });
}

cudaError_t launch_avg_pool2d_backward(const AvgPool2dParams& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.h * params.w == 0 || !takes_quarters(params, dtype)) {
    return average_backward(params, dtype, stream);
  }
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return run_quarters<T>(average_quarters_backward<T>, params, params.h, stream);
  });
}

cudaError_t launch_adaptive_avg_pool2d(const AdaptivePool2dParams& params, DType dtype, cudaStream_t stream) {
  const int64_t planes = params.n * params.c;
  if (params.channels_last || params.oh * params.ow != 1 || planes == 0) {
    return average_forward(params, dtype, stream);
  }
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t pixels = params.h * params.w;
    const bool wide = pixels % kVectorWidth<T> == 0 && aligned(params.source, 16);
    return launch(wide ? plane_mean<kVectorWidth<T>, T> : plane_mean<1, T>,
                  {blocks_for(planes * 32), kThreads}, stream, static_cast<const T*>(params.source),
                  static_cast<T*>(params.result), planes, pixels);
  });
}

cudaError_t launch_adaptive_avg_pool2d_backward(const AdaptivePool2dParams& params, DType dtype,
                                                cudaStream_t stream) {
  return average_backward(params, dtype, stream);
}

cudaError_t launch_adaptive_max_pool2d(const AdaptivePool2dParams& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.oh * params.ow == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_access<T>(params, params.oh, params.ow, [&](auto lanes, auto items, LaunchShape shape) {
      return launch(adaptive_max_pool2d<decltype(lanes)::value, T, decltype(items.count)>, shape, stream,
                    static_cast<const T*>(params.source), static_cast<T*>(params.result), params.indices,
                    pooling_of(params), items);
    });
  });
}

cudaError_t launch_adaptive_max_pool2d_backward(const AdaptivePool2dParams& params, DType dtype,
                                                cudaStream_t stream) {
  if (params.n * params.c * params.h * params.w == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_access<T>(params, params.h, params.w, [&](auto lanes, auto items, LaunchShape shape) {
      return launch(adaptive_max_pool2d_backward<decltype(lanes)::value, T, decltype(items.count)>, shape,
                    stream, static_cast<const T*>(params.source), params.indices,
                    static_cast<T*>(params.result), pooling_of(params), items);
    });
  });
}

}  // namespace d2lfast::cuda
