#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "../allocate.h"
#include "conv2d_winograd_setup.h"
#include "scratch.h"

namespace d2lfast::ops {

namespace {

struct Sizes {
  int64_t source_blocks, result_blocks;
  int64_t block, products, sums;  // floats

  Sizes(const WinogradKernels& table, const Conv2dShape& s)
      : source_blocks(divide_up(s.channels / s.groups, table.lanes)),
        result_blocks(divide_up(s.result_channels / s.groups, 2 * table.lanes)),
        block(table.planes * source_blocks * table.lanes * 2 * table.lanes),
        products(result_blocks * block),
        sums(2 * result_blocks * table.lanes) {}
  int64_t all() const { return products + sums; }
};

}  // namespace

bool winograd_fits_groups(const WinogradKernels& table, const Conv2dShape& shape) {
  constexpr int64_t kProductBytes = 450 << 10;
  return shape.groups > 1 && Sizes(table, shape).products * kFloat <= kProductBytes;
}

// A thread adds up the products of a group over its tiles, which need not leave the cache either. Groups are
// cut into parts for the threads, as many as the shape asks for, so that these do not change a bit.
bool winograd_grad_groups(const WinogradKernels& table, const Conv2dShape& s, const WinogradTensor& images,
                          const WinogradTensor& gradients, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr int64_t kTileBytes = 320 << 10, kItems = 8;
  const int dtype = static_cast<int>(s.dtype);
  const int64_t lanes = table.lanes, staging_floats = winograd_staging(lanes, kLongestStrip);
  const Sizes size(table, s);
  const int64_t gradient_blocks = 2 * size.result_blocks;
  const WinogradStrips strips = strips_of(table, s.result_height(), s.result_width());
  const int64_t all = count_strips(strips, s.batch), chunk = strips.chunk;
  const int64_t strip_bytes = tiles_size(table, size.source_blocks + gradient_blocks, chunk) * kFloat;
  const int64_t run_strips = std::clamp<int64_t>(kTileBytes / strip_bytes, 1, all);
  const int64_t parts = std::min(divide_up(kItems, s.groups), divide_up(all, run_strips));
  const int64_t source_floats = tiles_size(table, size.source_blocks, run_strips * chunk);
  const int64_t gradient_floats = tiles_size(table, gradient_blocks, run_strips * chunk);
  const at::Tensor partial = empty({s.groups, parts, size.all()}, at::kFloat);
  at::parallel_for(0, s.groups * parts, 1, [&](int64_t begin, int64_t end) {
    float* staging =
        static_cast<float*>(thread_scratch((staging_floats + source_floats + gradient_floats) * kFloat));
    float *source_memory = staging + staging_floats, *gradient_memory = source_memory + source_floats;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / parts, part = i % parts;
      const WinogradSource source{images.of_group(g, s.groups), strips, s.padding[0], s.padding[1]};
      const WinogradSource gradient{gradients.of_group(g, s.groups), strips, 0, 0};
      float *products = partial.mutable_data_ptr<float>() + i * size.all(), *sums = products + size.products;
      std::fill_n(sums, size.sums, 0.0f);
      const int64_t first = all * part / parts, last = all * (part + 1) / parts;
      for (int64_t from = first; from < last; from += run_strips) {
        const int64_t until = std::min(from + run_strips, last), tiles = (until - from) * chunk;
        const WinogradTiles source_tiles = tiles_at(source_memory, size.source_blocks, tiles, lanes);
        const WinogradTiles gradient_tiles = tiles_at(gradient_memory, gradient_blocks, tiles, lanes);
        table.source[dtype](source, from, until, 0, size.source_blocks, source_tiles, 0, staging);
        table.gradient[dtype](gradient, from, until, 0, gradient_blocks, gradient_tiles, 0, staging,
                              bias.defined() ? sums : nullptr);
        for (int64_t b = 0; b < size.result_blocks; ++b) {
          table.products(source_tiles, gradient_tiles, 0, size.source_blocks, b, from > first,
                         products + b * size.block);
        }
      }
    }
  });
  const at::Tensor total = parts > 1 ? partial.sum(1) : partial.select(1, 0);
  std::atomic<bool> finite = true;
  at::parallel_for(0, s.groups, 1, [&](int64_t begin, int64_t end) {
    float* staging = static_cast<float*>(thread_scratch(staging_floats * kFloat));
    for (int64_t g = begin; g < end; ++g) {
      const at::Tensor rows = of_group(weight, g, s.groups);
      const WinogradGradWeight to{rows.mutable_data_ptr(), !rows.is_contiguous(), rows.size(0), rows.size(1)};
      const float* products = total.const_data_ptr<float>() + g * size.all();
      for (int64_t b = 0; b < size.result_blocks; ++b) {
        if (!table.grad_weight[dtype](to, 0, size.source_blocks, b, products + b * size.block, staging)) {
          finite = false;
        }
      }
    }
  });
  if (bias.defined()) {
    bias.view({s.groups, -1}).copy_(total.narrow(1, size.products, s.result_channels / s.groups));
  }
  return finite;
}

}  // namespace d2lfast::ops
