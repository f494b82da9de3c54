#include "conv2d_winograd.h"

#include "activation.cuh"
#include "device.cuh"

namespace d2lfast::cuda {
namespace {

using vfloat = float;
#define D2LFAST_INLINE __device__ __forceinline__
#include "../winograd_lines.inc"
#undef D2LFAST_INLINE

// Beyond this, and where they are not finite, results are computed without the transforms, which would spread
// them over the tile, or their rounding errors.
constexpr float kUsual = 1e30f;

struct WinogradItems {
  int32_t channels, tiles;
  Divider<int32_t> channel, tile, columns, rows;
  bool whole_rows;  // four neighbours of a row of results are moved by one access

  // results: the tensor that the tiles divide.
  WinogradItems(const Conv2dWinogradParams& p, int32_t channels, const void* results)
      : channels(channels),
        tiles(static_cast<int32_t>(p.tiles())),
        channel(channels),
        tile(tiles),
        columns((int64_t{p.result_width} + 3) / 4),
        rows((int64_t{p.result_height} + 3) / 4),
        whole_rows(!p.channels_last && p.result_width % 4 == 0 && aligned(results, 16) &&
                   aligned(p.residual, 16)) {}
};

// What a thread transforms: a channel's tile. Neighbouring threads take what the layout has next to it.
struct WinogradTile {
  int32_t channel, image, row, column;  // row, column: of the first result

  __device__ WinogradTile(const WinogradItems& items, int32_t item, bool channels_last) {
    int32_t rest = item;
    if (channels_last) {
      channel = take_remainder(rest, items.channel);
    } else {
      const int32_t within = take_remainder(rest, items.tile);
      channel = rest;
      rest = within;
    }
    column = 4 * take_remainder(rest, items.columns);
    row = 4 * take_remainder(rest, items.rows);
    image = rest;
  }
};

// A channel of an image.
struct Plane {
  int64_t start;
  int32_t row_stride, column_stride;

  __device__ Plane(bool channels_last, int64_t image, int32_t channel, int32_t channels, int32_t height,
                   int32_t width) {
    const int64_t size = static_cast<int64_t>(height) * width;
    start = channels_last ? image * size * channels + channel : (image * channels + channel) * size;
    column_stride = channels_last ? channels : 1;
    row_stride = width * column_stride;
  }
  __device__ int64_t at(int32_t row, int32_t column) const {
    return start + static_cast<int64_t>(row) * row_stride + static_cast<int64_t>(column) * column_stride;
  }
};

// Four neighbours of a row, zeros beyond its end.
__device__ inline Vector<float, 4> load_line(const float* data, const Plane& plane,
                                             const WinogradItems& items, int32_t row, int32_t column,
                                             int32_t width) {
  if (items.whole_rows) return load<4>(data + plane.at(row, column));
  Vector<float, 4> line{};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (column + j < width) line.lane[j] = data[plane.at(row, column + j)];
  }
  return line;
}

__device__ inline float filter_tap(const Conv2dWinogradParams& p, int32_t r, int32_t s, int32_t tap) {
  const int64_t filter = p.transposed ? static_cast<int64_t>(s) * p.result_channels + r
                                      : static_cast<int64_t>(r) * p.source_channels + s;
  return p.weight[filter * 9 + (p.transposed ? 8 - tap : tap)];
}

__global__ void __launch_bounds__(kThreads, 2)
    winograd_filters(const Conv2dWinogradParams p, const int32_t count) {
  for (int32_t item = first_item<int32_t>(); item < count; item += grid_width<int32_t>()) {
    const int32_t r = item / p.source_channels, s = item - r * p.source_channels;
    float taps[9], half[18], whole[36];
#pragma unroll
    for (int i = 0; i < 9; ++i) taps[i] = filter_tap(p, r, s, i);
#pragma unroll
    for (int j = 0; j < 3; ++j) Winograd4::weight_line<3, 3>(taps + j, half + j);
#pragma unroll
    for (int i = 0; i < 6; ++i) Winograd4::weight_line<1, 1>(half + 3 * i, whole + 6 * i);
#pragma unroll
    for (int i = 0; i < 36; ++i) p.filters[static_cast<int64_t>(i) * count + item] = whole[i];
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    winograd_sources(const Conv2dWinogradParams p, const WinogradItems items) {
  const int32_t count = items.channels * items.tiles;
  for (int32_t item = first_item<int32_t>(); item < count; item += grid_width<int32_t>()) {
    const WinogradTile tile(items, item, p.channels_last);
    const Plane plane(p.channels_last, tile.image, tile.channel, p.source_channels, p.height, p.width);
    float values[36];
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      const int32_t h = tile.row - p.pad_h + i;
#pragma unroll
      for (int j = 0; j < 6; ++j) {
        const int32_t w = tile.column - p.pad_w + j;
        const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
        values[6 * i + j] = inside ? p.source[plane.at(h, w)] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < 6; ++j) Winograd4::source_line<6, 6>(values + j, values + j);
#pragma unroll
    for (int i = 0; i < 6; ++i) Winograd4::source_line<1, 1>(values + 6 * i, values + 6 * i);
#pragma unroll
    for (int i = 0; i < 36; ++i) p.sources[static_cast<int64_t>(i) * count + item] = values[i];
  }
}

// The sum of one result without the transforms.
__device__ float direct_sum(const Conv2dWinogradParams& p, const WinogradTile& tile, int32_t row,
                            int32_t column) {
  float sum = 0;
  for (int32_t s = 0; s < p.source_channels; ++s) {
    const Plane plane(p.channels_last, tile.image, s, p.source_channels, p.height, p.width);
    for (int32_t tap = 0; tap < 9; ++tap) {
      const int32_t h = row - p.pad_h + tap / 3, w = column - p.pad_w + tap % 3;
      if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
      sum = fma(p.source[plane.at(h, w)], filter_tap(p, tile.channel, s, tap), sum);
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads, 2)
    winograd_results(const Conv2dWinogradParams p, const WinogradItems items) {
  const int32_t count = items.channels * items.tiles;
  for (int32_t item = first_item<int32_t>(); item < count; item += grid_width<int32_t>()) {
    const WinogradTile tile(items, item, p.channels_last);
    const Plane plane(p.channels_last, tile.image, tile.channel, p.result_channels, p.result_height,
                      p.result_width);
    float values[36];
#pragma unroll
    for (int i = 0; i < 36; ++i) values[i] = p.products[static_cast<int64_t>(i) * count + item];
#pragma unroll
    for (int j = 0; j < 6; ++j) Winograd4::result_line<6, 6>(values + j, values + j);
#pragma unroll
    for (int i = 0; i < 4; ++i) Winograd4::result_line<1, 1>(values + 6 * i, values + 6 * i);
    const float bias = p.bias == nullptr ? 0.0f : p.bias[tile.channel];
    bool usual = true;
#pragma unroll
    for (int i = 0; i < 24; ++i) usual = usual && (i % 6 >= 4 || (values[i] < kUsual && values[i] > -kUsual));
    if (!usual) {
      for (int32_t i = 0; i < 16; ++i) {
        const int32_t row = tile.row + i / 4, column = tile.column + i % 4;
        if (row >= p.result_height || column >= p.result_width) continue;
        const int64_t at = plane.at(row, column);
        const float rest = p.residual == nullptr ? bias : bias + p.residual[at];
        p.result[at] = activate(direct_sum(p, tile, row, column) + rest, p.activation);
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t row = tile.row + i;
      if (row >= p.result_height) continue;
      Vector<float, 4> line{};
      if (p.residual != nullptr) line = load_line(p.residual, plane, items, row, tile.column, p.result_width);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        line.lane[j] = activate(values[6 * i + j] + bias + line.lane[j], p.activation);
      }
      if (items.whole_rows) {
        store(p.result + plane.at(row, tile.column), line);
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (tile.column + j < p.result_width) p.result[plane.at(row, tile.column + j)] = line.lane[j];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    winograd_gradients(const Conv2dWinogradParams p, const WinogradItems items) {
  const int32_t count = items.channels * items.tiles;
  for (int32_t item = first_item<int32_t>(); item < count; item += grid_width<int32_t>()) {
    const WinogradTile tile(items, item, p.channels_last);
    const Plane plane(p.channels_last, tile.image, tile.channel, p.result_channels, p.result_height,
                      p.result_width);
    float values[36];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t row = tile.row + i;
      Vector<float, 4> line{};
      if (row < p.result_height) line = load_line(p.gradient, plane, items, row, tile.column, p.result_width);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[6 * i + j] = line.lane[j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) Winograd4::gradient_line<6, 6>(values + j, values + j);
#pragma unroll
    for (int i = 0; i < 6; ++i) Winograd4::gradient_line<1, 1>(values + 6 * i, values + 6 * i);
#pragma unroll
    for (int i = 0; i < 36; ++i) p.gradients[static_cast<int64_t>(i) * count + item] = values[i];
  }
}

// The taps of one filter without the transforms: a warp's lanes share out the results of all images.
__device__ void direct_filter(const Conv2dWinogradParams& p, int32_t r, int32_t s, int lane,
                              float (&sum)[9]) {
  const int64_t pixels = static_cast<int64_t>(p.result_height) * p.result_width;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) sum[tap] = 0;
  for (int64_t at = lane; at < p.batch * pixels; at += 32) {
    const int64_t image = at / pixels;
    const int32_t pixel = static_cast<int32_t>(at - image * pixels), row = pixel / p.result_width,
                  column = pixel - row * p.result_width;
    const Plane results(p.channels_last, image, r, p.result_channels, p.result_height, p.result_width);
    const Plane sources(p.channels_last, image, s, p.source_channels, p.height, p.width);
    const float gradient = p.gradient[results.at(row, column)];
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const int32_t h = row - p.pad_h + tap / 3, w = column - p.pad_w + tap % 3;
      if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
      sum[tap] = fma(gradient, p.source[sources.at(h, w)], sum[tap]);
    }
  }
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum[tap] += shuffle_xor(sum[tap], mask);
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    winograd_weight(const Conv2dWinogradParams p, const int32_t count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Whole warps turn, of which the last lanes may have no filter.
  for (int32_t item = first_item<int32_t>(); item - lane < count; item += grid_width<int32_t>()) {
    const bool inside = item < count;
    float values[36], taps[9];
#pragma unroll
    for (int i = 0; i < 36; ++i) {
      values[i] = inside ? p.products[static_cast<int64_t>(i) * count + item] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 6; ++j) Winograd4::filter_line<6, 6>(values + j, values + j);
#pragma unroll
    for (int i = 0; i < 3; ++i) Winograd4::filter_line<1, 1>(values + 6 * i, taps + 3 * i);
    bool usual = true;
#pragma unroll
    for (int i = 0; i < 9; ++i) usual = usual && taps[i] < kUsual && taps[i] > -kUsual;
    const unsigned unusual = ballot(!usual);
    for (int other = 0; unusual != 0 && other < 32; ++other) {
      if ((unusual >> other & 1) == 0) continue;
      const int32_t filter = item - lane + other, r = filter / p.source_channels;
      float exact[9];
      direct_filter(p, r, filter - r * p.source_channels, lane, exact);
#pragma unroll
      for (int i = 0; i < 9; ++i) taps[i] = lane == other ? exact[i] : taps[i];
    }
    if (!inside) continue;
#pragma unroll
    for (int i = 0; i < 9; ++i) p.grad_weight[static_cast<int64_t>(item) * 9 + i] = taps[i];
  }
}

cudaError_t launch_tiles(void (*kernel)(Conv2dWinogradParams, WinogradItems), const Conv2dWinogradParams& p,
                         int32_t channels, const void* results, cudaStream_t stream) {
  if (p.tiles() > kMaxIndex32 / channels) return cudaErrorInvalidValue;
  const LaunchShape shape{blocks_for(p.tiles() * channels), kThreads};
  return launch(kernel, shape, stream, p, WinogradItems(p, channels, results));
}

}  // namespace

cudaError_t launch_winograd_filters(const Conv2dWinogradParams& p, cudaStream_t stream) {
  const int64_t count = int64_t{p.result_channels} * p.source_channels;
  if (count > kMaxIndex32) return cudaErrorInvalidValue;
  return launch(winograd_filters, {blocks_for(count), kThreads}, stream, p, static_cast<int32_t>(count));
}

cudaError_t launch_winograd_sources(const Conv2dWinogradParams& p, cudaStream_t stream) {
  return launch_tiles(winograd_sources, p, p.source_channels, p.result, stream);
}

cudaError_t launch_winograd_results(const Conv2dWinogradParams& p, cudaStream_t stream) {
  return launch_tiles(winograd_results, p, p.result_channels, p.result, stream);
}

cudaError_t launch_winograd_gradients(const Conv2dWinogradParams& p, cudaStream_t stream) {
  return launch_tiles(winograd_gradients, p, p.result_channels, p.gradient, stream);
}

cudaError_t launch_winograd_weight(const Conv2dWinogradParams& p, cudaStream_t stream) {
  const int64_t count = int64_t{p.result_channels} * p.source_channels;
  if (count > kMaxIndex32 - 32) return cudaErrorInvalidValue;
  return launch(winograd_weight, {blocks_for(count), kThreads}, stream, p, static_cast<int32_t>(count));
}

}  // namespace d2lfast::cuda
