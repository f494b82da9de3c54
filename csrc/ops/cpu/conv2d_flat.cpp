#include "conv2d_flat.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/conv2d_flat.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_sums.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dFlatKernels, conv2d_flat_kernels);

namespace d2lfast::ops {

namespace {

constexpr int64_t kMostTaps = 128, kMostProducts = 1024;  // of a window, of channels in a group

const Conv2dFlatKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_flat_kernels); }

int64_t floor_div(int64_t a, int64_t b) { return (a - (((a % b) + b) % b)) / b; }

// Rows of the result are as long as those of the source, or of its parts.
bool rows_match(int64_t width, int64_t step, int64_t cols) {
  return step == 1 ? width == cols : (width + step - 1) / step <= cols;
}

// Distances of an axis' taps: k * dilation - padding.
std::vector<int64_t> taps_of(int64_t kernel, int64_t dilation, int64_t padding) {
  std::vector<int64_t> taps;
  for (int64_t k = 0; k < kernel; ++k) taps.push_back(k * dilation - padding);
  return taps;
}

// Geometry of a pass whose result column x meets source columns x * step + tap.
struct FlatSetup {
  Conv2dFlatParams params{};
  std::vector<int64_t> offset;
  std::vector<uint16_t> mask;
  std::vector<uint8_t> uniform;

  FlatSetup(const at::Tensor& source, DType dtype, int64_t groups, int64_t step,
            const std::vector<int64_t>& row_taps, const std::vector<int64_t>& col_taps, int64_t rows,
            int64_t cols, bool activated) {
    Conv2dFlatParams& p = params;
    p.groups = groups;
    p.source_channels = source.size(1) / groups;
    p.source = source.const_data_ptr();
    p.height = source.size(2);
    p.width = source.size(3);
    p.step = step;
    p.copied = step > 1 || activated || source.element_size() != accumulator_size(dtype);
    p.row_stride = cols;
    p.part_size = (p.height + step - 1) / step * cols;
    p.channel_stride = step * step * p.part_size;
    p.taps_w = static_cast<int64_t>(col_taps.size());
    p.taps = static_cast<int64_t>(row_taps.size()) * p.taps_w;
    p.size = rows * cols;
    std::vector<int64_t> first_row, first_col;
    for (const int64_t row : row_taps) {
      for (const int64_t col : col_taps) {
        const int64_t y = floor_div(row, step), x = floor_div(col, step);
        const int64_t part = (row - y * step) * step + col - x * step;
        offset.push_back(part * p.part_size + y * cols + x);
        first_row.push_back(row);
        first_col.push_back(col);
      }
    }
    p.offset = offset.data();
    const int64_t lanes = kernels().lanes[static_cast<int>(dtype)];
    mask.resize(static_cast<size_t>(((p.size + lanes - 1) / lanes + kFlatSpareVectors) * p.taps));
    for (int64_t k = 0; k < p.taps; ++k) {
      for (int64_t y = 0, at = 0; y < rows; ++y) {
        const int64_t row = y * step + first_row[static_cast<size_t>(k)];
        const bool inside = row >= 0 && row < p.height;
        int64_t col = first_col[static_cast<size_t>(k)];
        for (int64_t x = 0; x < cols; ++x, ++at, col += step) {
          if (inside && col >= 0 && col < p.width) {
            mask[static_cast<size_t>(at / lanes * p.taps + k)] |= static_cast<uint16_t>(1u << at % lanes);
          }
        }
      }
    }
    p.mask = mask.data();
    const size_t vectors = static_cast<size_t>((p.size + lanes - 1) / lanes + kFlatSpareVectors);
    uniform.assign(vectors, 1);
    const auto window = static_cast<size_t>(p.taps), width = static_cast<size_t>(p.taps_w);
    for (size_t v = 0; v < vectors; ++v) {
      for (size_t k = width; k < window; ++k) {
        if (mask[v * window + k] != mask[v * window + k % width]) uniform[v] = 0;
      }
    }
    p.uniform = uniform.data();
  }

  int64_t copy_size() const { return params.copied ? params.source_channels * params.channel_stride : 0; }
};

FlatSetup forward_setup(const Conv2dShape& s, const at::Tensor& input) {
  return {input,
          s.dtype,
          s.groups,
          s.stride[0],
          taps_of(s.kernel_h, s.dilation[0], s.padding[0]),
          taps_of(s.kernel_w, s.dilation[1], s.padding[1]),
          s.result_height(),
          s.result_width(),
          false};
}

// The taps of one axis that reach the results of a phase: kernel positions first, first + every, ..., at
// falling distances in the gradient.
struct PhaseTaps {
  int64_t first = 0, every = 1;
  std::vector<int64_t> taps;
  PhaseTaps(int64_t phase, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    for (int64_t k = kernel - 1, last = -1; k >= 0; --k) {
      const int64_t distance = phase + padding - k * dilation;
      if (distance % stride != 0) continue;
      taps.insert(taps.begin(), distance / stride);
      if (last >= 0) every = last - k;
      first = last = k;
    }
  }
};

// `weight`: [G*M,C,KH,KW].
void run_flat(const Conv2dShape& shape, FlatSetup& setup, const at::Tensor& weight, at::Tensor& result) {
  const Conv2dFlatKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  Conv2dFlatParams& p = setup.params;
  p.result_channels = weight.size(0) / p.groups;
  const at::Tensor arranged = widened(weight)
                                  .view({p.groups, p.result_channels, p.source_channels, p.taps})
                                  .permute({0, 2, 3, 1})
                                  .contiguous();
  p.weight = arranged.const_data_ptr();
  p.result = result.mutable_data_ptr();
  // What the caches cannot hold until it is read again need not be read into them before it is written.
  constexpr size_t kCacheBytes = size_t{32} << 20;
  const int64_t vector = table.lanes[dtype] * accumulator_size(shape.dtype);
  p.stream = 2 * result.nbytes() > kCacheBytes && result.element_size() == accumulator_size(shape.dtype) &&
             reinterpret_cast<uintptr_t>(p.result) % 64 == 0 && p.size * result.element_size() % vector == 0;
  const size_t scratch = static_cast<size_t>(setup.copy_size() * accumulator_size(shape.dtype));
  const int64_t cost = std::max<int64_t>(1, p.result_channels * p.size * p.source_channels * p.taps);
  at::parallel_for(0, shape.batch * p.groups, std::max<int64_t>(1, (1 << 19) / cost),
                   [&](int64_t begin, int64_t end) {
                     void* memory = scratch > 0 ? thread_scratch(scratch) : nullptr;
                     for (int64_t i = begin; i < end; ++i) {
                       table.group[dtype](p, i / p.groups, i % p.groups, memory);
                     }
                   });
}

// The data gradient of a strided layer.
void run_phases(const Conv2dBackward& pass, const at::Tensor& grad, const at::Tensor& output,
                at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const Conv2dFlatKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const int64_t step = s.stride[0], cols = s.result_width();
  std::vector<FlatSetup> setups;
  std::vector<at::Tensor> weights;
  std::vector<Conv2dFlatParams> params;
  const at::Tensor wide = widened(pass.weight);
  const at::Tensor grouped =
      wide.view({s.groups, s.result_channels / s.groups, s.channels / s.groups, s.kernel_h, s.kernel_w});
  for (int64_t row = 0; row < step; ++row) {
    const PhaseTaps down(row, s.kernel_h, step, s.padding[0], s.dilation[0]);
    for (int64_t col = 0; col < step; ++col) {
      const PhaseTaps along(col, s.kernel_w, step, s.padding[1], s.dilation[1]);
      const auto h = static_cast<int64_t>(down.taps.size()), w = static_cast<int64_t>(along.taps.size());
      setups.emplace_back(grad, s.dtype, s.groups, 1, h * w > 0 ? down.taps : std::vector<int64_t>(),
                          h * w > 0 ? along.taps : std::vector<int64_t>(), (s.height - row + step - 1) / step,
                          cols, output.defined());
      weights.push_back(grouped.slice(3, down.first, down.first + h * down.every, down.every)
                            .slice(4, along.first, along.first + w * along.every, along.every)
                            .permute({0, 1, 3, 4, 2})
                            .contiguous());
      Conv2dFlatParams p = setups.back().params;
      p.weight = weights.back().const_data_ptr();
      p.result_channels = s.channels / s.groups;
      if (output.defined()) {
        p.activated = output.const_data_ptr();
        p.source_activation = pass.activation;
      }
      params.push_back(p);
    }
  }
  const Conv2dFlatPhases phases{step, params.data(), cols, grad_input.mutable_data_ptr(), s.height, s.width};
  const int64_t part = params[0].result_channels * params[0].size;
  const size_t scratch = static_cast<size_t>(
      (step * step * part + setups[0].copy_size() + table.lanes[dtype]) * accumulator_size(s.dtype));
  const int64_t cost = std::max<int64_t>(1, part * params[0].source_channels * s.kernel_h * s.kernel_w);
  at::parallel_for(0, s.batch * s.groups, std::max<int64_t>(1, (1 << 19) / cost),
                   [&](int64_t begin, int64_t end) {
                     void* memory = thread_scratch(scratch);
                     for (int64_t i = begin; i < end; ++i) {
                       table.phases[dtype](phases, i / s.groups, i % s.groups, memory);
                     }
                   });
}

}  // namespace

at::Tensor turned(const at::Tensor& weight, int64_t groups) {
  const int64_t m = weight.size(0) / groups, c = weight.size(1);
  return weight.reshape({groups, m, c, weight.size(2), weight.size(3)})
      .transpose(1, 2)
      .flip({3, 4})
      .reshape({groups * c, m, weight.size(2), weight.size(3)})
      .contiguous();
}

bool flat_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (s.cuda || s.channels_last || s.stride[0] != s.stride[1] || s.channels == 0 ||
      s.kernel_h * s.kernel_w > kMostTaps) {
    return false;
  }
  const int64_t cols = s.result_width(), results = s.result_channels / s.groups;
  // Every phase of the data gradient has rows that are no longer than the gradient's.
  if (pass == Conv2dPass::kGradInput) return rows_match(s.width, s.stride[0], cols);
  if (pass == Conv2dPass::kGradWeight && s.channels / s.groups * results > kMostProducts) return false;
  return rows_match(s.width, s.stride[0], cols);
}

bool flat_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor input = pass.input.contiguous();
  FlatSetup setup = forward_setup(s, input);
  const at::Tensor bias = pass.bias != nullptr ? widened(*pass.bias) : at::Tensor();
  if (bias.defined()) setup.params.bias = bias.const_data_ptr();
  if (pass.residual != nullptr) setup.params.residual = pass.residual->const_data_ptr();
  setup.params.activation = pass.activation;
  run_flat(s, setup, pass.weight, pass.output);
  return true;
}

bool flat_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor grad = pass.grad_output.contiguous();
  const at::Tensor output = pass.output != nullptr ? pass.output->contiguous() : at::Tensor();
  if (s.stride[0] > 1) {
    run_phases(pass, grad, output, grad_input);
    return true;
  }
  FlatSetup setup(grad, s.dtype, s.groups, 1,
                  taps_of(s.kernel_h, s.dilation[0], s.dilation[0] * (s.kernel_h - 1) - s.padding[0]),
                  taps_of(s.kernel_w, s.dilation[1], s.dilation[1] * (s.kernel_w - 1) - s.padding[1]),
                  s.height, s.width, output.defined());
  if (output.defined()) {
    setup.params.activated = output.const_data_ptr();
    setup.params.source_activation = pass.activation;
  }
  run_flat(s, setup, turned(pass.weight, s.groups), grad_input);
  return true;
}

bool flat_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  constexpr int64_t kMostChunks = 16, kItems = 64;
  const Conv2dShape& s = pass.shape;
  const Conv2dFlatKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const at::Tensor input = pass.input.contiguous(), grad = pass.grad_output.contiguous();
  const at::Tensor output = pass.output != nullptr ? pass.output->contiguous() : at::Tensor();
  FlatSetup setup = forward_setup(s, input);
  Conv2dFlatParams& p = setup.params;
  p.result_channels = s.result_channels / s.groups;
  const Conv2dFlatWeightParams params{p, grad.const_data_ptr(),
                                      output.defined() ? output.const_data_ptr() : nullptr, pass.activation};
  const int64_t window = p.source_channels * p.taps, element = accumulator_size(s.dtype);
  const int64_t weight_size = s.result_channels * window, size = weight_size + s.result_channels;
  // Few chunks where the groups alone are work for every thread: each ends in sums over lanes.
  const int64_t chunks =
      std::clamp<int64_t>(std::min(s.batch, (kItems + s.groups - 1) / s.groups), 1, kMostChunks);
  at::Tensor partial =
      empty({chunks, size}, pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type())));
  char* memory = static_cast<char*>(partial.mutable_data_ptr());
  const int64_t lanes = table.lanes[dtype];
  const size_t scratch = static_cast<size_t>(
      (p.result_channels * ((window + 1) * lanes + p.size) + setup.copy_size()) * element);
  const int64_t cost =
      std::max<int64_t>(1, p.result_channels * window * p.size * ((s.batch + chunks - 1) / chunks));
  at::parallel_for(
      0, chunks * s.groups, std::max<int64_t>(1, (1 << 19) / cost), [&](int64_t begin, int64_t end) {
        void* copies = thread_scratch(scratch);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t chunk = i / s.groups, group = i % s.groups, first = group * p.result_channels;
          char* to = memory + chunk * size * element;
          table.weight[dtype](params, s.batch * chunk / chunks, s.batch * (chunk + 1) / chunks, group,
                              to + first * window * element, to + (weight_size + first) * element, copies);
        }
      });
  if (!(s.dtype == DType::kFloat64 ? sum_chunks(reinterpret_cast<double*>(memory), chunks, size)
                                   : sum_chunks(reinterpret_cast<float*>(memory), chunks, size))) {
    return false;
  }
  const at::Tensor sum = partial.select(0, 0);
  if (grad_weight != nullptr) {
    *grad_weight = empty_like(pass.weight);
    grad_weight->copy_(sum.narrow(0, 0, weight_size).view(pass.weight.sizes()));
  }
  if (grad_bias != nullptr) {
    *grad_bias = sum.narrow(0, weight_size, s.result_channels)
                     .to(pass.weight.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  }
  return true;
}

}  // namespace d2lfast::ops
