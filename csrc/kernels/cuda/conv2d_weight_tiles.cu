#include "conv2d_weight_tiles.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "conv2d_plan.h"
#include "device.cuh"

// A block stages rows of results, and of what they read, and goes on to the next. A thread has M result
// channels by the taps of one row of the window of one source channel, for every parts-th pixel: a pixel's
// M + taps values from shared memory meet in M * taps products. Of a block's channels it has fours that are
// apart, so that neighbours read the fours between.
namespace d2lfast::cuda {
namespace {

constexpr int kBlocks = 2;                 // of a multiprocessor at least: up to 128 registers a thread
constexpr int64_t kTileBytes = 46 * 1024;  // without opting in, less the lines; more where a row needs it
constexpr int64_t kMaxSharedBytes = 96 * 1024;
constexpr int kMaxLines = 256;
constexpr int kSumPitch = kThreads + 7;  // neighbouring taps and rows of a window in different banks

struct GradientTiles {
  int32_t images, rows, count;  // of a tile: all rows of several images or rows of one; tiles
  int32_t channels;             // result channels of a block, a multiple of M
  int32_t jobs, parts;          // threads for a pixel, and pixels at a time
  int32_t pitch, plane;         // floats of a source row and channel
  int32_t width, source;        // floats of a pixel's gradients; where the source begins
  bool by_fours;                // channels_last: all fours of channels are there, on 16-byte boundaries
  Divider<int32_t> row_tiles, channel_tiles, blocks, kernel_h, source_channels;
};

// Of the source, staged for `rows` of results.
D2LFAST_HOST_DEVICE int64_t source_rows(const Conv2dWeightParams& p, int64_t rows) {
  return (rows - 1) * p.h.stride + int64_t{p.h.kernel - 1} * p.h.dilation + 1;
}

// i / inner and i % inner of i = first, first + step, ...: without a division for each.
struct Counter {
  int32_t outer, inner, step_outer, step_inner, size;

  __device__ Counter(int32_t first, int32_t step, int32_t inner_size)
      : outer(first / inner_size),
        inner(first - outer * inner_size),
        step_outer(step / inner_size),
        step_inner(step - step_outer * inner_size),
        size(inner_size) {}
  __device__ void next() {
    outer += step_outer;
    inner += step_inner;
    if (inner >= size) {
      inner -= size;
      ++outer;
    }
  }
};

template <int M, int kTaps, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocks)
    weight_tiles(const Conv2dWeightParams p, const GradientTiles t) {
  D2LFAST_SHARED(int32_t, lines, kMaxLines);  // where the source of a line of results begins
  const auto gradients = dynamic_shared<float>();
  const auto sources = gradients + t.source;
  const auto thread = static_cast<int32_t>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int32_t group = static_cast<int32_t>(blockIdx.x);
  const int32_t first = take_remainder(group, t.channel_tiles) * t.channels;
  const int32_t part = thread / t.jobs, job = thread - part * t.jobs;
  // Of a job: source channel, row of the window, block of result channels.
  int32_t channel = job;
  const int32_t block = take_remainder(channel, t.blocks),
                row_of_window = take_remainder(channel, t.kernel_h);
  const auto own_source = sources + (channel * t.plane + row_of_window * p.h.dilation * t.pitch);
  const auto own_gradients = gradients + block * 4;
  const int32_t apart = t.blocks.divisor * 4;
  const int32_t all_results = p.groups * p.result_channels, all_sources = p.groups * p.source_channels;
  const int32_t result_pixels = p.h.result * p.w.result,
                window = static_cast<int32_t>(source_rows(p, t.rows));
  const auto* gradient = static_cast<const float*>(p.gradient);
  const auto* source = static_cast<const float*>(p.source);
  float sum[M][kTaps] = {};
  for (int32_t tile = static_cast<int32_t>(blockIdx.y); tile < t.count; tile += p.splits) {
    int32_t rest = tile;
    const int32_t row0 = take_remainder(rest, t.row_tiles) * t.rows;
    const int64_t image0 = static_cast<int64_t>(rest) * t.images;
    const auto images = static_cast<int32_t>(p.batch - image0 < t.images ? p.batch - image0 : t.images);
    const int32_t rows = p.h.result - row0 < t.rows ? p.h.result - row0 : t.rows;
    const int32_t run = rows * p.w.result;  // of an image
    __syncthreads();
    for (int32_t line = thread; line < images * rows; line += kThreads) {
      const int32_t image = line / rows;
      lines[line] = image * p.source_channels * t.plane + (line - image * rows) * p.h.stride * t.pitch;
    }
    if constexpr (kLast) {
      const float* from = gradient + (image0 * result_pixels + row0 * p.w.result) * all_results +
                          group * p.result_channels + first;
      const auto copy = [&](auto width) {  // neighbouring channels by one access
        constexpr int V = decltype(width)::value;
        for (Counter i(thread, kThreads, t.channels / V); i.outer < images * run; i.next()) {
          const int32_t m = i.inner * V;
          const bool valid = first + m < p.result_channels;
          const auto to = gradients + (i.outer * t.width + m);
          const float* at = from + (static_cast<int64_t>(i.outer) * all_results + m);
          if constexpr (V == 4) {
            copy_async_16(to, at, valid);
          } else {
            copy_async_element(to, at, valid);
          }
        }
      };
      if (t.by_fours) {
        copy(std::integral_constant<int, 4>{});
      } else {
        copy(std::integral_constant<int, 1>{});
      }
    } else {
      // Eight pixels of four channels a warp: whole sectors are read, and no two words of a bank are stored.
      for (int32_t m = lane / 8; m < t.channels; m += 4) {
        const bool valid = first + m < p.result_channels;
        const int64_t channel = image0 * all_results + group * p.result_channels + first + m;
        const float* from = gradient + channel * result_pixels + row0 * p.w.result;
        const auto to = gradients + m;
        for (int32_t image = 0; image < images; ++image) {
          const int64_t begin = static_cast<int64_t>(image) * all_results * result_pixels;
          for (int32_t pixel = warp * 8 + lane % 8; pixel < run; pixel += kThreads / 4) {
            copy_async_element(to + (image * run + pixel) * t.width, from + (begin + pixel), valid);
          }
        }
      }
    }
    const int32_t top = row0 * p.h.stride - p.h.pad, planes = kLast ? images : images * p.source_channels;
    for (int32_t line = warp; line < planes * window; line += kThreads / 32) {
      const int32_t plane = line / window, y = line - plane * window, h = top + y;
      const int32_t image = kLast ? plane : t.source_channels.divide(plane);
      const bool row_valid = is_below(h, p.h.source);
      const int32_t channel = group * p.source_channels + (kLast ? 0 : plane - image * p.source_channels);
      const int64_t row = kLast ? ((image0 + image) * p.h.source + h) * p.w.source * all_sources + channel
                                : (((image0 + image) * all_sources + channel) * p.h.source + h) * p.w.source;
      const auto to = sources + (plane * (kLast ? p.source_channels : 1) * t.plane + y * t.pitch);
      const auto copy = [&](int32_t x, int32_t c) {
        const int32_t w = x - p.w.pad;
        copy_async_element(to + (c * t.plane + x), source + row + (kLast ? w * all_sources + c : w),
                           row_valid && is_below(w, p.w.source));
      };
      if constexpr (kLast) {
        for (Counter i(lane, 32, p.source_channels); i.outer < t.pitch; i.next()) copy(i.outer, i.inner);
      } else {
        for (int32_t x = lane; x < t.pitch; x += 32) copy(x, 0);
      }
    }
    commit_async();
    wait_async<0>();
    __syncthreads();
    if (part >= t.parts) continue;
    Counter at(part, t.parts, p.w.result);
    for (int32_t pixel = part; pixel < images * run; pixel += t.parts, at.next()) {
      const auto from = own_source + (lines[at.outer] + at.inner * p.w.stride);
      float g[M];
#pragma unroll
      for (int m = 0; m < M; m += 4) {
        const auto four = load_shared<4>(own_gradients + (pixel * t.width + m / 4 * apart));
#pragma unroll
        for (int n = 0; n < 4; ++n) g[m + n] = four.lane[n];
      }
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const float value = from[tap];
#pragma unroll
        for (int m = 0; m < M; ++m) sum[m][tap] = fma(g[m], value, sum[m][tap]);
      }
    }
  }
  __syncthreads();
  const auto sums = gradients;  // [M][kTaps][kSumPitch]
#pragma unroll
  for (int i = 0; i < M * kTaps; ++i) sums[i * kSumPitch + thread] = sum[i / kTaps][i % kTaps];
  __syncthreads();
  const int32_t results = p.result_channels - first < t.channels ? p.result_channels - first : t.channels;
  const int32_t of_result = p.source_channels * p.h.kernel * kTaps;
  float* partial =
      static_cast<float*>(p.partial) +
      (static_cast<int64_t>(blockIdx.y) * all_results + group * p.result_channels + first) * of_result;
  for (int32_t i = thread; i < results * of_result; i += kThreads) {
    int32_t result = i / kTaps;
    const int32_t tap = i - result * kTaps, row = take_remainder(result, t.kernel_h);
    const int32_t c = take_remainder(result, t.source_channels);
    const int32_t half = t.blocks.divide(result / 4), m = half * 4 + result % 4;
    const int32_t of = (c * p.h.kernel + row) * t.blocks.divisor + result / 4 - half * t.blocks.divisor;
    float all = 0;
    for (int32_t other = 0; other < t.parts; ++other) {
      all += sums[(m * kTaps + tap) * kSumPitch + other * t.jobs + of];
    }
    partial[i] = all;
  }
}

struct GradientPlan {
  GradientTiles tiles{};
  int64_t blocks = 0, bytes = 0;  // no blocks: it does not fit
  int32_t splits = 0;
};

template <typename Body>
auto with_taps(int32_t taps, Body&& body) {
  switch (taps) {
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    default:
      return body(std::integral_constant<int, 11>{});
  }
}

constexpr int64_t kSpreadRow = 32, kSpreadPlane = 8;

// Sets pitch and plane, of `columns` and `rows` or a little more, so that what threads read of the source for
// their first pixels lies in different banks.
void spread(const Conv2dWeightParams& p, GradientTiles& t, int64_t columns, int64_t rows) {
  int least = INT32_MAX;
  for (int64_t i = 0; i < kSpreadRow * kSpreadPlane && least > kThreads / 32; ++i) {
    const int64_t pitch = columns + i % kSpreadRow, plane = rows * pitch + i / kSpreadRow;
    int turns = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      std::array<std::array<int64_t, 32>, 32> met{};  // addresses in each bank
      std::array<int, 32> count{};
      for (int thread = 32 * warp; thread < std::min(32 * warp + 32, t.jobs * t.parts); ++thread) {
        const int64_t part = thread / t.jobs, job = thread % t.jobs / t.blocks.divisor;
        const int64_t row = part / p.w.result * p.h.stride + job % p.h.kernel * p.h.dilation;
        const int64_t address = job / p.h.kernel * plane + row * pitch + part % p.w.result * p.w.stride;
        auto& bank = met[address % 32];
        int& found = count[address % 32];
        const auto end = bank.begin() + found;
        if (std::find(bank.begin(), end, address) == end) bank[found++] = address;
      }
      turns += *std::max_element(count.begin(), count.end());
    }
    if (turns >= least) continue;
    least = turns;
    t.pitch = static_cast<int32_t>(pitch);
    t.plane = static_cast<int32_t>(plane);
  }
}

GradientPlan search_plan(const Conv2dWeightParams& p) {
  const int32_t taps = p.w.kernel;
  const int64_t jobs_of_block = int64_t{p.source_channels} * p.h.kernel;
  const DeviceLimits limits = device_limits();
  const int32_t m = p.result_channels <= 4 ? 4 : 8;
  const int64_t all_blocks = (p.result_channels + m - 1) / m;
  const int64_t columns = int64_t{p.w.result - 1} * p.w.stride + taps;
  int64_t blocks = std::min(all_blocks, kThreads / jobs_of_block);
  const auto width = [&] { return blocks * m + 4; };
  const auto bytes = [&](int64_t images, int64_t rows) {
    const int64_t plane = source_rows(p, rows) * (columns + kSpreadRow) + kSpreadPlane;
    return 4 * images * (rows * p.w.result * width() + p.source_channels * plane);
  };
  const int64_t most = std::min<int64_t>(kMaxSharedBytes, limits.shared_bytes - 2048);
  while (blocks > 1 && bytes(1, 1) > kTileBytes) blocks = (blocks + 1) / 2;
  const int64_t sums = 4 * int64_t{m} * taps * kSumPitch;
  if (bytes(1, 1) > most || sums > most) return {};
  const int64_t channel_tiles = (all_blocks + blocks - 1) / blocks;
  blocks = (all_blocks + channel_tiles - 1) / channel_tiles;
  int64_t rows = 1, images = 1;
  while (rows < std::min(p.h.result, kMaxLines) && bytes(1, rows + 1) <= kTileBytes) ++rows;
  const int64_t row_tiles = (p.h.result + rows - 1) / rows;
  rows = (p.h.result + row_tiles - 1) / row_tiles;
  const int64_t sharers = p.groups * channel_tiles;
  // Two blocks for each multiprocessor, with an image each before any has two.
  const int64_t there = std::max<int64_t>(1, kBlocks * limits.processors / sharers);
  while (row_tiles == 1 && (images + 1) * rows <= kMaxLines && bytes(images + 1, rows) <= kTileBytes &&
         p.batch / (images + 1) >= there) {
    ++images;
  }
  const int64_t count = (p.batch + images - 1) / images * row_tiles;
  if (count > INT32_MAX / 2 || sharers > INT32_MAX || bytes(images, rows) > most) return {};
  GradientPlan plan;
  GradientTiles& t = plan.tiles;
  t.images = static_cast<int32_t>(images);
  t.rows = static_cast<int32_t>(rows);
  t.count = static_cast<int32_t>(count);
  t.channels = static_cast<int32_t>(blocks * m);
  t.jobs = static_cast<int32_t>(blocks * jobs_of_block);
  t.parts = kThreads / t.jobs;
  t.by_fours = p.result_channels % 4 == 0 && aligned(p.gradient, 16);
  t.width = static_cast<int32_t>(width());
  t.source = static_cast<int32_t>(images * rows * p.w.result * width());
  t.row_tiles = Divider<int32_t>(row_tiles);
  t.channel_tiles = Divider<int32_t>(channel_tiles);
  t.blocks = Divider<int32_t>(blocks);
  t.kernel_h = Divider<int32_t>(p.h.kernel);
  t.source_channels = Divider<int32_t>(p.source_channels);
  spread(p, t, columns, source_rows(p, rows));
  plan.blocks = sharers;
  plan.bytes = std::max(bytes(images, rows), sums);
  plan.splits = static_cast<int32_t>(std::min({there, count, int64_t{256}}));
  return plan;
}

GradientPlan plan_of(const Conv2dWeightParams& p, DType dtype) {
  const int32_t taps = p.w.kernel;
  const bool known = taps == 3 || taps == 5 || taps == 7 || taps == 11;
  const bool depthwise = p.source_channels == 1 && p.result_channels == 1;
  if (dtype != DType::kFloat32 || depthwise || !known || p.w.dilation != 1 ||
      int64_t{p.source_channels} * p.h.kernel > kThreads) {
    return {};
  }
  return kept_plan(conv2d_plan_key(p, false, p.gradient), [&] { return search_plan(p); });
}

template <int M, int kTaps>
cudaError_t launch_plan(const Conv2dWeightParams& p, const GradientPlan& plan, cudaStream_t stream) {
  const LaunchShape shape{{static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.splits)},
                          kThreads,
                          static_cast<size_t>(plan.bytes)};
  const auto kernel = p.channels_last ? weight_tiles<M, kTaps, true> : weight_tiles<M, kTaps, false>;
  return launch(kernel, shape, stream, p, plan.tiles);
}

}  // namespace

int32_t conv2d_weight_tiles_splits(const Conv2dWeightParams& p, DType dtype) {
  return plan_of(p, dtype).splits;
}

bool launch_conv2d_weight_tiles(const Conv2dWeightParams& p, DType dtype, cudaStream_t stream,
                                cudaError_t& error) {
  const GradientPlan plan = plan_of(p, dtype);
  if (plan.blocks == 0) return false;
  if (p.splits != plan.splits) {
    error = cudaErrorInvalidValue;
    return true;
  }
  error = with_taps(p.w.kernel, [&](auto taps) {
    constexpr int kTaps = decltype(taps)::value;
    return p.result_channels <= 4 ? launch_plan<4, kTaps>(p, plan, stream)
                                  : launch_plan<8, kTaps>(p, plan, stream);
  });
  return true;
}

}  // namespace d2lfast::cuda
