#include <cstdint>
#include <type_traits>

#include "conv2d.h"
#include "conv2d_element.cuh"
#include "tensor_core.cuh"

// Convolution as a product of pixels by channels, whose left factor is never built: each step gathers one tap
// and 32 channels of 128 pixels into shared memory, three steps ahead of the tensor cores.
namespace d2lfast::cuda {
namespace {

constexpr int kTilePixels = 128, kTileChannels = 64, kStep = 32, kStages = 3;
constexpr int kPitch = kStep + 8;   // in shared memory: no two rows of a fragment share a bank
constexpr int kBlock = 128;         // threads: 4 warps of 64 x 32 results
constexpr int kPieces = kStep / 8;  // 16-byte pieces of a row
constexpr int kPixelRows = kTilePixels * kPieces / kBlock, kChannelRows = kTileChannels * kPieces / kBlock;

struct ImplicitItems {
  int64_t pixels;
  int32_t channel_tiles, channel_steps, steps;
};

template <typename T>
__global__ void __launch_bounds__(kBlock, 2)
    implicit_gemm(const Conv2dImplicitParams p, const ImplicitItems items) {
  D2LFAST_SHARED(T, left, kStages * kTilePixels * kPitch);
  D2LFAST_SHARED(T, right, kStages * kTileChannels * kPitch);
  const int thread = threadIdx.x;
  const int64_t first_pixel = static_cast<int64_t>(blockIdx.x / items.channel_tiles) * kTilePixels;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.x % items.channel_tiles) * kTileChannels;
  const T* weight = static_cast<const T*>(p.weight);
  const int32_t taps = p.h.kernel * p.w.kernel, piece = thread % kPieces;

  // The pixels whose pieces this thread copies.
  const T* image[kPixelRows];
  int32_t top[kPixelRows], start[kPixelRows];
#pragma unroll
  for (int i = 0; i < kPixelRows; ++i) {
    const int64_t pixel = first_pixel + thread / kPieces + i * (kBlock / kPieces);
    const bool inside = pixel < items.pixels;
    const int64_t row = inside ? pixel / p.w.result : 0;
    const int64_t n = row / p.h.result;
    top[i] = inside ? static_cast<int32_t>(row - n * p.h.result) * p.h.stride - p.h.pad : -(1 << 30);
    start[i] = static_cast<int32_t>(pixel - row * p.w.result) * p.w.stride - p.w.pad;
    image[i] = static_cast<const T*>(p.source) + n * p.h.source * p.w.source * p.source_channels;
  }

  int32_t tap = 0, channel_step = 0;  // of the next step to copy
  const auto copy_step = [&](int stage) {
    if (tap < taps) {
      const int32_t kh = tap / p.w.kernel, kw = tap - kh * p.w.kernel;
      const int32_t c = channel_step * kStep + piece * 8;
      const bool channel_inside = c < p.source_channels;
#pragma unroll
      for (int i = 0; i < kPixelRows; ++i) {
        const int32_t h = top[i] + kh * p.h.dilation, w = start[i] + kw * p.w.dilation;
        const bool valid = channel_inside && h >= 0 && h < p.h.source && w >= 0 && w < p.w.source;
        const int64_t at = valid ? (static_cast<int64_t>(h) * p.w.source + w) * p.source_channels + c : 0;
        const int to = (stage * kTilePixels + thread / kPieces + i * (kBlock / kPieces)) * kPitch + piece * 8;
        copy_async_16(left + to, image[i] + at, valid);
      }
#pragma unroll
      for (int i = 0; i < kChannelRows; ++i) {
        const int32_t row = thread / kPieces + i * (kBlock / kPieces), channel = first_channel + row;
        const bool valid = channel_inside && channel < p.result_channels;
        const int64_t at = valid ? (static_cast<int64_t>(channel) * taps + tap) * p.source_channels + c : 0;
        copy_async_16(right + (stage * kTileChannels + row) * kPitch + piece * 8, weight + at, valid);
      }
      if (++channel_step == items.channel_steps) {
        channel_step = 0;
        ++tap;
      }
    }
    commit_async();
  };

  const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  const int warp_pixel = warp / 2 * 64, warp_channel = warp % 2 * 32;
  float sum[4][4][4] = {};
  for (int stage = 0; stage < kStages - 1; ++stage) copy_step(stage);
  for (int32_t step = 0; step < items.steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    copy_step((step + kStages - 1) % kStages);
    const auto pixels = left + (step % kStages * kTilePixels + warp_pixel + g) * kPitch;
    const auto channels = right + (step % kStages * kTileChannels + warp_channel + g) * kPitch;
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      uint32_t a[4][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i][0] = load_pair(pixels + i * 16 * kPitch + k + 2 * t);
        a[i][1] = load_pair(pixels + (i * 16 + 8) * kPitch + k + 2 * t);
        a[i][2] = load_pair(pixels + i * 16 * kPitch + k + 2 * t + 8);
        a[i][3] = load_pair(pixels + (i * 16 + 8) * kPitch + k + 2 * t + 8);
        b[i][0] = load_pair(channels + i * 8 * kPitch + k + 2 * t);
        b[i][1] = load_pair(channels + i * 8 * kPitch + k + 2 * t + 8);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_16x8x16<T>(sum[i][j], a[i], b[j]);
      }
    }
  }
  wait_async<0>();

#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t channel = first_channel + warp_channel + j * 8 + 2 * t + half;
      if (channel >= p.result_channels) continue;
      const float bias = bias_of<T>(p.bias, channel);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int64_t pixel = first_pixel + warp_pixel + i * 16 + lower * 8 + g;
          if (pixel >= items.pixels) continue;
          static_cast<T*>(p.result)[pixel * p.result_channels + channel] =
              from_compute<T>(activate(sum[i][j][2 * lower + half] + bias, p.activation));
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch_conv2d_implicit(const Conv2dImplicitParams& p, DType dtype, cudaStream_t stream) {
  if (p.source_channels % 8 != 0 || !aligned(p.source, 16) || !aligned(p.weight, 16))
    return cudaErrorInvalidValue;
  const int64_t pixels = p.batch * p.h.result * p.w.result;
  const int32_t channel_tiles = (p.result_channels + kTileChannels - 1) / kTileChannels;
  const int32_t channel_steps = (p.source_channels + kStep - 1) / kStep;
  const int64_t blocks = (pixels + kTilePixels - 1) / kTilePixels * channel_tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const ImplicitItems items{pixels, channel_tiles, channel_steps, channel_steps * p.h.kernel * p.w.kernel};
  const LaunchShape shape{static_cast<unsigned>(blocks), kBlock};
  if (dtype == DType::kBFloat16) return launch(implicit_gemm<BFloat16>, shape, stream, p, items);
  if (dtype == DType::kFloat16) return launch(implicit_gemm<Float16>, shape, stream, p, items);
  return cudaErrorInvalidValue;
}

}  // namespace d2lfast::cuda
