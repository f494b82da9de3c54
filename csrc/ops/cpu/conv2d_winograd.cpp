#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "../../kernels/conv2d_winograd.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "../filter_cache.h"
#include "../layout.h"
#include "conv2d_passes.h"
#include "conv2d_winograd_pieces.h"
#include "conv2d_winograd_setup.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(WinogradKernels, conv2d_winograd_kernels);
D2LFAST_DECLARE_TABLES(WinogradKernels, conv2d_winograd_2x2_kernels);

namespace d2lfast::ops {

namespace {

const WinogradKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_winograd_kernels); }

const WinogradKernels& kernels_2x2() { return D2LFAST_SELECT_TABLE(conv2d_winograd_2x2_kernels); }

struct Filter {
  const WinogradKernels& table;
  const WinogradSource& source;
  const WinogradWeight& weight;
  const WinogradResult& result;
  int dtype;
  int64_t lanes, source_blocks, result_blocks;
  int64_t packed_block, staging;  // floats
  const float* kept;              // the packed filters of all blocks, or null

  int64_t products(int64_t tiles) const { return table.planes * (tiles * 2 * lanes + 16); }
};

at::Tensor transformed(const Filter& f) {
  const at::Tensor packed = empty({f.result_blocks * f.packed_block}, at::kFloat);
  float* filters = packed.mutable_data_ptr<float>();
  at::parallel_for(0, f.result_blocks, 1, [&](int64_t begin, int64_t end) {
    float* staging = static_cast<float*>(thread_scratch(f.staging * kFloat));
    for (int64_t b = begin; b < end; ++b) {
      f.table.weight[f.dtype](f.weight, b, filters + b * f.packed_block, staging);
    }
  });
  return packed;
}

// Small filters: every thread takes its tiles from the source to the results, in its second-level cache.
bool filter_tiles(const Filter& f) {
  constexpr int64_t kTileBytes = 400 << 10;
  const WinogradKernels& table = f.table;
  const int64_t chunk = f.source.strips.chunk;
  const int64_t strips = count_strips(f.source.strips, f.source.images.batch);
  const at::Tensor packed = f.kept == nullptr ? transformed(f) : at::Tensor();
  const float* filters = f.kept == nullptr ? packed.const_data_ptr<float>() : f.kept;

  const int64_t most_tiles =
      std::clamp<int64_t>(kTileBytes / (table.planes * kFloat * f.source_blocks * f.lanes), 12, 48);
  const int64_t threads = at::get_num_threads();
  int64_t items = divide_up(strips * chunk, most_tiles);
  items = std::min(strips, divide_up(items, threads) * threads);
  const int64_t tiles = divide_up(strips, items) * chunk;
  const int64_t tile_floats = tiles_size(table, f.source_blocks, tiles);
  std::atomic<bool> finite = true;
  at::parallel_for(0, items, 1, [&](int64_t first, int64_t last) {
    float* memory =
        static_cast<float*>(thread_scratch((tile_floats + f.products(tiles) + f.staging) * kFloat));
    float *products = memory + tile_floats, *staging = products + f.products(tiles);
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = strips * i / items, end = strips * (i + 1) / items;
      const WinogradTiles to = tiles_at(memory, f.source_blocks, (end - begin) * chunk, f.lanes);
      table.source[f.dtype](f.source, begin, end, 0, f.source_blocks, to, 0, staging);
      for (int64_t b = 0; b < f.result_blocks; ++b) {
        if (!table.result[f.dtype](f.result, begin, end, b, to, 0, filters + b * f.packed_block, products,
                                   staging)) {
          finite = false;
        }
      }
    }
  });
  return finite;
}

// Large filters: every thread takes its filters from the weight to the results of a set of tiles that
// stays in the third-level cache; the transformed filters, four times the weight, never leave the second.
bool filter_channels(const Filter& f) {
  constexpr int64_t kSetBytes = 12 << 20, kMostTiles = 48;
  const WinogradKernels& table = f.table;
  const int64_t chunk = f.source.strips.chunk;
  const int64_t strips = count_strips(f.source.strips, f.source.images.batch);
  const int64_t most_strips =
      std::max<int64_t>(1, kSetBytes / (table.planes * kFloat * f.source_blocks * f.lanes) / chunk);
  const int64_t sets = divide_up(strips, most_strips);
  const int64_t set_strips = divide_up(strips, sets), set_tiles = set_strips * chunk;
  const at::Tensor memory = empty({tiles_size(table, f.source_blocks, set_tiles)}, at::kFloat);
  const int64_t run_strips = std::max<int64_t>(1, kMostTiles / chunk);
  const int64_t product_floats = f.products(run_strips * chunk);
  // Few blocks are shared out by tiles too, or a thread would be left with a block more than the others.
  const int64_t threads = at::get_num_threads();
  const bool even = f.result_blocks % threads == 0 || f.result_blocks >= 8 * threads;
  const int64_t parts = even ? 1 : threads;
  std::atomic<bool> finite = true;
  for (int64_t first = 0; first < strips; first += set_strips) {
    const int64_t count = std::min(set_strips, strips - first);
    const int64_t runs = divide_up(count, run_strips);
    const WinogradTiles tiles =
        tiles_at(memory.mutable_data_ptr<float>(), f.source_blocks, count * chunk, f.lanes);
    at::parallel_for(0, f.source_blocks * runs, 1, [&](int64_t begin, int64_t end) {
      float* staging = static_cast<float*>(thread_scratch(f.staging * kFloat));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / runs, from = i % runs * run_strips;
        const int64_t to = std::min(from + run_strips, count);
        table.source[f.dtype](f.source, first + from, first + to, block, block + 1, tiles, from * chunk,
                              staging);
      }
    });
    at::parallel_for(0, f.result_blocks * parts, 1, [&](int64_t begin, int64_t end) {
      float* packed =
          static_cast<float*>(thread_scratch((f.packed_block + product_floats + f.staging) * kFloat));
      float *products = packed + f.packed_block, *staging = products + product_floats;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / parts, part = i % parts;
        const float* filters = f.kept == nullptr ? packed : f.kept + b * f.packed_block;
        if (f.kept == nullptr && (i == begin || part == 0)) {
          table.weight[f.dtype](f.weight, b, packed, staging);
        }
        for (int64_t run = runs * part / parts; run < runs * (part + 1) / parts; ++run) {
          const int64_t from = run * run_strips, to = std::min(from + run_strips, count);
          if (!table.result[f.dtype](f.result, first + from, first + to, b, tiles, from * chunk, filters,
                                     products, staging)) {
            finite = false;
          }
        }
      }
    });
  }
  return finite;
}

// `keepable`: null, or the weight of a forward pass, whose transformed filters inference may keep.
bool filter(const WinogradKernels& table, const WinogradSource& source, const WinogradWeight& weight,
            const WinogradResult& result, DType dtype, const at::Tensor* keepable) {
  constexpr int64_t kSmallFilterBytes = 3 << 20;
  const int64_t lanes = table.lanes;
  Filter f{table,
           source,
           weight,
           result,
           static_cast<int>(dtype),
           lanes,
           divide_up(weight.source_channels, lanes),
           divide_up(weight.result_channels, 2 * lanes),
           0,
           winograd_staging(lanes, source.strips.chunk),
           nullptr};
  f.packed_block = table.planes * winograd_filter_plane(lanes, f.source_blocks);
  at::Tensor kept;
  if (keepable != nullptr && keeps_filters(*keepable)) {
    kept = kept_filters(*keepable, &table, f.result_blocks * f.packed_block);
    if (!kept.defined()) {
      kept = transformed(f);
      keep_filters(*keepable, &table, kept);
    }
    f.kept = kept.const_data_ptr<float>();
  }
  const bool small = f.result_blocks * f.packed_block * kFloat <= kSmallFilterBytes;
  return small || f.result_blocks < at::get_num_threads() ? filter_tiles(f) : filter_channels(f);
}

WinogradWeight weight_params(const at::Tensor& weight, bool transposed) {
  WinogradWeight w{};
  w.data = weight.const_data_ptr();
  w.result_channels = weight.size(transposed ? 1 : 0);
  w.source_channels = weight.size(transposed ? 0 : 1);
  w.result_stride = weight.stride(transposed ? 1 : 0);
  w.source_stride = weight.stride(transposed ? 0 : 1);
  w.h_stride = weight.stride(2);
  w.w_stride = weight.stride(3);
  w.size = weight.numel();
  w.flipped = transposed;
  return w;
}

// The results of every group; `transposed`: of gradients, the data gradient. `bias`, `residual`: or null.
bool filter_groups(const WinogradKernels& table, const Conv2dShape& s, const WinogradTensor& images,
                   const at::Tensor& weight, bool transposed, const at::Tensor* bias,
                   const at::Tensor* residual, Activation activation, at::Tensor& result) {
  const int64_t height = result.size(2), width = result.size(3), all = result.size(1);
  const WinogradStrips strips = strips_of(table, height, width);
  const at::Tensor filters = dense(weight);
  const at::Tensor offsets = bias != nullptr ? bias->contiguous() : at::Tensor();
  const at::Tensor* keepable = transposed || s.groups > 1 ? nullptr : &weight;
  const int64_t top = transposed ? 2 - s.padding[0] : s.padding[0];
  const int64_t left = transposed ? 2 - s.padding[1] : s.padding[1];
  for (int64_t g = 0; g < s.groups; ++g) {
    const WinogradSource source{images.of_group(g, s.groups), strips, top, left};
    const WinogradResult to{result.mutable_data_ptr(),
                            !result.is_contiguous(),
                            all / s.groups,
                            height,
                            width,
                            g * (all / s.groups),
                            all,
                            strips,
                            divide_up(source.images.channels, table.lanes),
                            offsets.defined() ? offsets.const_data_ptr() : nullptr,
                            residual != nullptr ? residual->const_data_ptr() : nullptr,
                            activation};
    const WinogradWeight of_filters = weight_params(of_group(filters, g, s.groups), transposed);
    if (!filter(table, source, of_filters, to, s.dtype, keepable)) return false;
  }
  return true;
}

bool forward(const WinogradKernels& table, const Conv2dForward& pass) {
  return filter_groups(table, pass.shape, WinogradTensor(pass.input, nullptr, Activation::kNone), pass.weight,
                       false, pass.bias, pass.residual, pass.activation, pass.output);
}

bool gradient_of_input(const WinogradKernels& table, const Conv2dBackward& pass, at::Tensor& grad_input) {
  return filter_groups(table, pass.shape, WinogradTensor(pass.grad_output, pass.output, pass.activation),
                       pass.weight, true, nullptr, nullptr, Activation::kNone, grad_input);
}

// Of one group, to its parts of the gradients; of the bias if it is defined.
bool gradient_of_group(const WinogradKernels& table, const Conv2dShape& s, const WinogradImages& images,
                       const WinogradImages& gradients, const at::Tensor& result, const at::Tensor& bias) {
  // Transformed sources and gradients that are to stay in the third-level cache, and products in the second.
  constexpr int64_t kSetBytes = 8 << 20, kProductBytes = 640 << 10, kRunTiles = 32;
  const int dtype = static_cast<int>(s.dtype);
  const int64_t lanes = table.lanes;
  const WinogradStrips strips = strips_of(table, s.result_height(), s.result_width());
  const WinogradSource source{images, strips, s.padding[0], s.padding[1]};
  const WinogradSource gradient{gradients, strips, 0, 0};
  const int64_t source_blocks = divide_up(images.channels, lanes);
  const int64_t result_blocks = divide_up(gradients.channels, 2 * lanes), gradient_blocks = 2 * result_blocks;
  const int64_t blocks = source_blocks + gradient_blocks;
  const int64_t all = count_strips(strips, s.batch), chunk = strips.chunk;
  const int64_t strip_bytes = table.planes * kFloat * blocks * lanes * chunk;
  const int64_t sets = divide_up(all, std::max<int64_t>(1, kSetBytes / strip_bytes));
  const int64_t set_strips = divide_up(all, sets);
  const at::Tensor source_memory = empty({tiles_size(table, source_blocks, set_strips * chunk)}, at::kFloat);
  const at::Tensor gradient_memory =
      empty({tiles_size(table, gradient_blocks, set_strips * chunk)}, at::kFloat);
  const int64_t run_strips = std::max<int64_t>(1, kRunTiles / chunk),
                runs = divide_up(set_strips, run_strips);
  const int64_t sum_size = gradient_blocks * lanes;
  const at::Tensor sums = bias.defined() ? zeros({runs, sum_size}, at::kFloat) : at::Tensor();
  const int64_t staging_floats = winograd_staging(lanes, chunk);

  const int64_t block_floats = table.planes * lanes * 2 * lanes;
  int64_t group = std::max<int64_t>(1, kProductBytes / (block_floats * kFloat));
  group = std::min(group, std::max<int64_t>(1, source_blocks * result_blocks / (2 * at::get_num_threads())));
  const int64_t groups = divide_up(source_blocks, group), items = groups * result_blocks;
  const at::Tensor kept = sets > 1 ? empty({items, group * block_floats}, at::kFloat) : at::Tensor();

  const WinogradGradWeight to{result.mutable_data_ptr(), !result.is_contiguous(), gradients.channels,
                              images.channels};
  std::atomic<bool> finite = true;
  for (int64_t first = 0; first < all; first += set_strips) {
    const int64_t count = std::min(set_strips, all - first), set_runs = divide_up(count, run_strips);
    const WinogradTiles source_tiles =
        tiles_at(source_memory.mutable_data_ptr<float>(), source_blocks, count * chunk, lanes);
    const WinogradTiles gradient_tiles =
        tiles_at(gradient_memory.mutable_data_ptr<float>(), gradient_blocks, count * chunk, lanes);
    at::parallel_for(0, blocks * set_runs, 1, [&](int64_t begin, int64_t end) {
      float* staging = static_cast<float*>(thread_scratch(staging_floats * kFloat));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i % blocks, run = i / blocks, from = run * run_strips;
        const int64_t last = std::min(from + run_strips, count);
        if (block < source_blocks) {
          table.source[dtype](source, first + from, first + last, block, block + 1, source_tiles,
                              from * chunk, staging);
        } else {
          const int64_t b = block - source_blocks;
          table.gradient[dtype](gradient, first + from, first + last, b, b + 1, gradient_tiles, from * chunk,
                                staging,
                                bias.defined() ? sums.mutable_data_ptr<float>() + run * sum_size : nullptr);
        }
      }
    });
    at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      float* memory = static_cast<float*>(
          thread_scratch((staging_floats + (sets > 1 ? 0 : group * block_floats)) * kFloat));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = i % groups * group, last = std::min(from + group, source_blocks);
        float* products =
            sets > 1 ? kept.mutable_data_ptr<float>() + i * group * block_floats : memory + staging_floats;
        table.products(source_tiles, gradient_tiles, from, last, i / groups, first > 0, products);
        if (first + count < all) continue;
        if (!table.grad_weight[dtype](to, from, last, i / groups, products, memory)) finite = false;
      }
    });
  }
  if (bias.defined()) bias.copy_(sums.sum(0).narrow(0, 0, gradients.channels));
  return finite;
}

bool gradient_of_weight(const WinogradKernels& table, const Conv2dBackward& pass, at::Tensor* grad_weight,
                        at::Tensor* grad_bias) {
  const Conv2dShape& s = pass.shape;
  if (grad_weight == nullptr || s.batch == 0 || pass.weight.numel() == 0) return false;
  const WinogradTensor images(pass.input, nullptr, Activation::kNone);
  const WinogradTensor gradients(pass.grad_output, pass.output, pass.activation);
  at::Tensor result = empty_like(pass.weight);
  if (!result.is_contiguous() && !result.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    result = empty(pass.weight.sizes(), pass.weight.options());
  }
  at::Tensor sums;
  if (grad_bias != nullptr) sums = empty({s.result_channels}, pass.weight.options());
  if (winograd_fits_groups(table, s)) {
    if (!winograd_grad_groups(table, s, images, gradients, result, sums)) return false;
  } else {
    for (int64_t g = 0; g < s.groups; ++g) {
      const at::Tensor bias = sums.defined() ? of_group(sums, g, s.groups) : at::Tensor();
      if (!gradient_of_group(table, s, images.of_group(g, s.groups), gradients.of_group(g, s.groups),
                             of_group(result, g, s.groups), bias)) {
        return false;
      }
    }
  }
  *grad_weight = result;
  if (grad_bias != nullptr) *grad_bias = sums;
  return true;
}

}  // namespace

bool winograd_forward(const Conv2dForward& pass) {
  if (pass.shape.is_3x3()) return forward(kernels(), pass);
  return pieces_forward(pass, kernels().pieces[static_cast<int>(pass.shape.dtype)]);
}

bool winograd_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  if (pass.shape.is_3x3()) return gradient_of_input(kernels(), pass, grad_input);
  return pieces_grad_input(pass, grad_input, kernels().pieces[static_cast<int>(pass.shape.dtype)]);
}

bool winograd_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  if (pass.shape.is_3x3()) return gradient_of_weight(kernels(), pass, grad_weight, grad_bias);
  return pieces_grad_weight(pass, grad_weight, grad_bias,
                            kernels().pieces[static_cast<int>(pass.shape.dtype)]);
}

bool winograd_2x2_forward(const Conv2dForward& pass) { return forward(kernels_2x2(), pass); }
bool winograd_2x2_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  return gradient_of_input(kernels_2x2(), pass, grad_input);
}
bool winograd_2x2_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  return gradient_of_weight(kernels_2x2(), pass, grad_weight, grad_bias);
}

}  // namespace d2lfast::ops
