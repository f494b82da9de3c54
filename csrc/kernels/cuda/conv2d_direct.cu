#include <cstdint>

#include "conv2d.h"
#include "conv2d_depthwise.h"
#include "conv2d_element.cuh"
#include "conv2d_tile_products.h"
#include "conv2d_tiles.h"
#include "conv2d_weight_products.h"
#include "conv2d_weight_tiles.h"
#include "device.cuh"

// Convolutions of few channels per group: depthwise, small groups, and the first layers of networks. No
// im2col.
namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;    // of a multiprocessor at least: up to 128 registers a thread
constexpr int kChannels = 8;  // result channels of a thread, NCHW
constexpr int kPixels = 4;    // neighbouring result pixels of a thread, channels_last

// NCHW. A block takes 256 pixels and 8 result channels of a group: a source element, coalesced over the
// pixels, meets 8 weights from shared memory.
template <typename T, bool kTransposed>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_planes(const Conv2dDirectParams p, int32_t pixel_tiles, int32_t channel_tiles) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, weights, kMaxConv2dTaps * kChannels);
  int64_t block = blockIdx.x;
  const int32_t pixel =
      static_cast<int32_t>(block % pixel_tiles) * kThreads + static_cast<int32_t>(threadIdx.x);
  block /= pixel_tiles;
  const int32_t first = static_cast<int32_t>(block % channel_tiles) * kChannels;
  block /= channel_tiles;
  const int32_t group = static_cast<int32_t>(block % p.groups);
  const int64_t image = block / p.groups;
  const int32_t taps = p.h.kernel * p.w.kernel, source_size = p.h.source * p.w.source;
  const int32_t pixels = p.h.result * p.w.result;
  const bool inside = pixel < pixels;
  const int32_t row = pixel / p.w.result, column = pixel - row * p.w.result;
  const T* source = static_cast<const T*>(p.source) +
                    (image * p.groups + group) * p.source_channels * static_cast<int64_t>(source_size);
  const T* weight = static_cast<const T*>(p.weight) +
                    static_cast<int64_t>(group) * p.result_channels * p.source_channels * taps;
  const int32_t chunk = static_cast<int32_t>(kMaxConv2dTaps) / taps;
  A sum[kChannels] = {};
  for (int32_t c0 = 0; c0 < p.source_channels; c0 += chunk) {
    const int32_t count = least(chunk, p.source_channels - c0) * taps;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < count * kChannels; i += kThreads) {
      const int32_t m = first + i % kChannels;
      weights[i] =
          m < p.result_channels
              ? to_compute(weight[(static_cast<int64_t>(m) * p.source_channels + c0) * taps + i / kChannels])
              : A(0);
    }
    __syncthreads();
    if (!inside) continue;
    const T* plane = source + static_cast<int64_t>(c0) * source_size;
    for (int32_t i = 0; i < count; plane += source_size) {
      for (int32_t kh = 0; kh < p.h.kernel; ++kh) {
        int32_t h;
        const bool row_inside = source_of<kTransposed>(p.h, row, kh, h);
        for (int32_t kw = 0; kw < p.w.kernel; ++kw, ++i) {
          int32_t w;
          if (!row_inside || !source_of<kTransposed>(p.w, column, kw, w)) continue;
          const A value = to_compute(plane[h * p.w.source + w]);
#pragma unroll
          for (int m = 0; m < kChannels; ++m)
            sum[m] = fma(value, static_cast<A>(weights[i * kChannels + m]), sum[m]);
        }
      }
    }
  }
  if (!inside) return;
  int64_t at =
      ((image * p.groups + group) * p.result_channels + first) * static_cast<int64_t>(pixels) + pixel;
#pragma unroll
  for (int m = 0; m < kChannels; ++m, at += pixels) {
    if (first + m >= p.result_channels) break;
    const A value = sum[m] + bias_of<T>(p.bias, group * p.result_channels + first + m) +
                    to_compute(residual_of<1, T>(p.residual, at).lane[0]);
    static_cast<T*>(p.result)[at] = from_compute<T>(activate(value, p.activation));
  }
}

// Item of channels_last: channels fastest, then groups of kPixels pixels of a row, rows, images.
struct PixelItems {
  int32_t count;
  Divider<int32_t> channels, columns, rows;
};

// channels_last. V > 1: depthwise, V neighbouring channels. V == 1: any groups, one result channel.
template <typename T, int V, bool kTransposed>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_pixels(const Conv2dDirectParams p, const PixelItems items) {
  using A = Compute<T>;
  const int32_t source_width = p.groups * p.source_channels, result_width = p.groups * p.result_channels;
  const T* weight = static_cast<const T*>(p.weight);
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    int32_t rest = item;
    const int32_t channel = take_remainder(rest, items.channels) * V;
    const int32_t column = take_remainder(rest, items.columns) * kPixels;
    const int32_t row = take_remainder(rest, items.rows);
    const int32_t from = V > 1 ? channel : channel / p.result_channels * p.source_channels;
    const T* image = static_cast<const T*>(p.source) +
                     static_cast<int64_t>(rest) * p.h.source * p.w.source * source_width + from;
    A sum[kPixels][V] = {};
    for (int32_t kh = 0, tap = 0; kh < p.h.kernel; ++kh) {
      int32_t h;
      if (!source_of<kTransposed>(p.h, row, kh, h)) {
        tap += p.w.kernel;
        continue;
      }
      for (int32_t kw = 0; kw < p.w.kernel; ++kw, ++tap) {
        int32_t w[kPixels];
        bool valid[kPixels];
#pragma unroll
        for (int i = 0; i < kPixels; ++i) valid[i] = source_of<kTransposed>(p.w, column + i, kw, w[i]);
        for (int32_t c = 0; c < (V > 1 ? 1 : p.source_channels); ++c) {
          const auto factor =
              load<V>(weight + (static_cast<int64_t>(tap) * p.source_channels + c) * result_width + channel);
#pragma unroll
          for (int i = 0; i < kPixels; ++i) {
            if (!valid[i]) continue;
            const auto value = load<V>(image + (h * p.w.source + w[i]) * source_width + c);
#pragma unroll
            for (int v = 0; v < V; ++v) {
              sum[i][v] = fma(to_compute(value.lane[v]), to_compute(factor.lane[v]), sum[i][v]);
            }
          }
        }
      }
    }
    int64_t at =
        ((static_cast<int64_t>(rest) * p.h.result + row) * p.w.result + column) * result_width + channel;
#pragma unroll
    for (int i = 0; i < kPixels; ++i, at += result_width) {
      if (column + i >= p.w.result) break;
      Vector<T, V> done = residual_of<V, T>(p.residual, at);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = sum[i][v] + bias_of<T>(p.bias, channel + v) + to_compute(done.lane[v]);
        done.lane[v] = from_compute<T>(activate(value, p.activation));
      }
      store(static_cast<T*>(p.result) + at, done);
    }
  }
}

constexpr int kLanes = 32, kRows = kThreads / kLanes;

// Block (x, s): the taps of one pair of channels (NCHW), or of 32 result channels and one source channel
// (channels_last), over part s of the output pixels of all images.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocks)
    direct_weight(const Conv2dWeightParams p, const Divider<int32_t> columns) {
  using A = Compute<T>;
  D2LFAST_SHARED(A, parts, kThreads);
  const int32_t taps = p.h.kernel * p.w.kernel;
  const int32_t all_results = p.groups * p.result_channels, all_sources = p.groups * p.source_channels;
  const int32_t c = static_cast<int32_t>(blockIdx.x % p.source_channels);
  const int32_t lane = kLast ? threadIdx.x % kLanes : 0;
  const int32_t m = static_cast<int32_t>(blockIdx.x / p.source_channels) * (kLast ? kLanes : 1) + lane;
  const bool inside = m < all_results;
  const int32_t source_channel = (inside ? m / p.result_channels : 0) * p.source_channels + c;
  const int64_t pixels = static_cast<int64_t>(p.h.result) * p.w.result, total = p.batch * pixels;
  const int64_t source_pixels = static_cast<int64_t>(p.h.source) * p.w.source;
  constexpr int kStep = kLast ? kRows : kThreads;
  const int64_t begin = total * blockIdx.y / p.splits + (kLast ? threadIdx.x / kLanes : threadIdx.x);
  const int64_t end = total * (blockIdx.y + 1) / p.splits;
  // From a thread's pixel to its next one.
  const int32_t step_images = static_cast<int32_t>(kStep / pixels);
  const int32_t step_pixels = static_cast<int32_t>(kStep - step_images * pixels);
  for (int32_t tap0 = 0; tap0 < taps; tap0 += kTapTile) {
    A sum[kTapTile] = {};
    const TapTile tap(p, tap0);
    int64_t image = begin / pixels;
    int32_t pixel = static_cast<int32_t>(begin - image * pixels);
    for (int64_t at = begin; at < (inside ? end : 0); at += kStep) {
      int32_t row = pixel;
      const int32_t column = take_remainder(row, columns) * p.w.stride;
      row *= p.h.stride;
      const int64_t from = kLast ? at * all_results + m : (image * all_results + m) * pixels + pixel;
      const A gradient = to_compute(static_cast<const T*>(p.gradient)[from]);
      const T* source =
          static_cast<const T*>(p.source) + (kLast ? image * source_pixels * all_sources + source_channel
                                                   : (image * all_sources + source_channel) * source_pixels);
      T value[kTapTile];
#pragma unroll
      for (int i = 0; i < kTapTile; ++i) {
        const int32_t h = row + tap.down[i], w = column + tap.right[i];
        value[i] = T{};
        if (h < 0 || h >= p.h.source || w < 0 || w >= p.w.source) continue;
        const int32_t place = h * p.w.source + w;
        value[i] = source[kLast ? place * all_sources : place];
      }
#pragma unroll
      for (int i = 0; i < kTapTile; ++i) sum[i] = fma(gradient, to_compute(value[i]), sum[i]);
      image += step_images;
      pixel += step_pixels;
      if (pixel >= pixels) {
        pixel -= static_cast<int32_t>(pixels);
        ++image;
      }
    }
#pragma unroll
    for (int i = 0; i < kTapTile; ++i) {
      if (!kLast) {
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) sum[i] += shuffle_xor(sum[i], mask);
      }
      // The rows of the block, or its warps, are added in their order.
      __syncthreads();
      if (kLast || threadIdx.x % kLanes == 0) parts[kLast ? threadIdx.x : threadIdx.x / kLanes] = sum[i];
      __syncthreads();
      if (threadIdx.x >= (kLast ? kLanes : 1) || !inside || tap0 + i >= taps) continue;
      A all = sum[i];
      for (int r = 1; r < kRows; ++r) all += parts[kLast ? r * kLanes + lane : r];
      static_cast<A*>(
          p.partial)[((static_cast<int64_t>(blockIdx.y) * all_results + m) * p.source_channels + c) * taps +
                     tap0 + i] = all;
    }
  }
}

template <typename T, int V, bool kTransposed>
cudaError_t launch_pixels(const Conv2dDirectParams& p, cudaStream_t stream) {
  const int64_t channels = int64_t{p.groups} * p.result_channels / V;
  const int64_t columns = (p.w.result + kPixels - 1) / kPixels;
  const int64_t count = p.batch * p.h.result * columns * channels;
  if (count > kMaxIndex32) return cudaErrorInvalidValue;
  const PixelItems items{static_cast<int32_t>(count), Divider<int32_t>(channels), Divider<int32_t>(columns),
                         Divider<int32_t>(p.h.result)};
  return launch(direct_pixels<T, V, kTransposed>, {blocks_for(count), kThreads}, stream, p, items);
}

template <typename T, bool kTransposed>
cudaError_t launch_direct(const Conv2dDirectParams& p, cudaStream_t stream) {
  constexpr int V = kVectorWidth<T>;
  if (p.channels_last) {
    const bool depthwise = p.source_channels == 1 && p.result_channels == 1 && p.groups % V == 0;
    return depthwise && aligned(p.source, 16) && aligned(p.weight, 16) && aligned(p.result, 16) &&
                   aligned(p.residual, 16)
               ? launch_pixels<T, V, kTransposed>(p, stream)
               : launch_pixels<T, 1, kTransposed>(p, stream);
  }
  const int64_t pixel_tiles = (int64_t{p.h.result} * p.w.result + kThreads - 1) / kThreads;
  const int32_t channel_tiles = (p.result_channels + kChannels - 1) / kChannels;
  const int64_t blocks = p.batch * p.groups * channel_tiles * pixel_tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(direct_planes<T, kTransposed>, {static_cast<unsigned>(blocks), kThreads}, stream, p,
                static_cast<int32_t>(pixel_tiles), channel_tiles);
}

}  // namespace

cudaError_t launch_conv2d_direct(const Conv2dDirectParams& params, DType dtype, cudaStream_t stream) {
  const auto image = [&](int64_t channels, int64_t h, int64_t w) { return params.groups * channels * h * w; };
  if (image(params.source_channels, params.h.source, params.w.source) > kMaxIndex32 ||
      image(params.result_channels, params.h.result, params.w.result) > kMaxIndex32 ||
      int64_t{params.h.kernel} * params.w.kernel > kMaxConv2dTaps) {
    return cudaErrorInvalidValue;
  }
  cudaError_t error = cudaSuccess;
  if (launch_conv2d_depthwise(params, dtype, stream, error)) return error;
  const bool depthwise = params.source_channels == 1 && params.result_channels == 1;
  if (!depthwise && launch_conv2d_tile_products(params, dtype, stream, error)) return error;
  if (!(depthwise && params.channels_last) && launch_conv2d_tiles(params, dtype, stream, error)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return params.transposed ? launch_direct<T, true>(params, stream)
                             : launch_direct<T, false>(params, stream);
  });
}

int32_t conv2d_weight_splits(const Conv2dWeightParams& p, DType dtype) {
  if (const int32_t splits = conv2d_weight_products_splits(p, dtype)) return splits;
  if (const int32_t splits = conv2d_weight_tiles_splits(p, dtype)) return splits;
  const int64_t results = int64_t{p.groups} * p.result_channels;
  const int64_t blocks = (p.channels_last ? (results + kLanes - 1) / kLanes : results) * p.source_channels;
  const int64_t pixels = p.batch * p.h.result * p.w.result;
  return static_cast<int32_t>(
      std::clamp<int64_t>(std::min(pixels / (p.channels_last ? 256 : 4096), 2048 / blocks), 1, 256));
}

cudaError_t launch_conv2d_weight(const Conv2dWeightParams& params, DType dtype, cudaStream_t stream) {
  const int64_t results = int64_t{params.groups} * params.result_channels;
  const int64_t blocks =
      (params.channels_last ? (results + kLanes - 1) / kLanes : results) * params.source_channels;
  const int64_t image = int64_t{params.groups} * params.source_channels * params.h.source * params.w.source;
  if (blocks > INT32_MAX || int64_t{params.h.result} * params.w.result > kMaxIndex32 || image > kMaxIndex32) {
    return cudaErrorInvalidValue;
  }
  cudaError_t error = cudaSuccess;
  if (launch_conv2d_depthwise_weight(params, dtype, stream, error)) return error;
  if (launch_conv2d_weight_products(params, dtype, stream, error)) return error;
  if (launch_conv2d_weight_tiles(params, dtype, stream, error)) return error;
  const LaunchShape shape{{static_cast<unsigned>(blocks), static_cast<unsigned>(params.splits)}, kThreads};
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(params.channels_last ? direct_weight<T, true> : direct_weight<T, false>, shape, stream,
                  params, Divider<int32_t>(params.w.result));
  });
}

}  // namespace d2lfast::cuda
