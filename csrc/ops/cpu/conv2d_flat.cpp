#include "conv2d_flat.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "../../kernels/conv2d_flat.h"
#include "../../kernels/cpu/isa.h"
#include "../dtype.h"
#include "conv2d_sums.h"
#include "scratch.h"

namespace d2lfast::cpu {
namespace baseline {
extern const Conv2dFlatKernels conv2d_flat_kernels;
}
namespace avx2 {
extern const Conv2dFlatKernels conv2d_flat_kernels;
}
namespace avx512 {
extern const Conv2dFlatKernels conv2d_flat_kernels;
}
}  // namespace d2lfast::cpu

namespace d2lfast::ops {

namespace {

constexpr int64_t kMostTaps = 128, kMostProducts = 1024;  // of a window, of channels in a group

const Conv2dFlatKernels& kernels() {
  return cpu::select_table(cpu::baseline::conv2d_flat_kernels, cpu::avx2::conv2d_flat_kernels,
                           cpu::avx512::conv2d_flat_kernels);
}

int64_t accumulator_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

int64_t floor_div(int64_t a, int64_t b) { return (a - (((a % b) + b) % b)) / b; }

at::Tensor widened(const at::Tensor& t) { return t.to(accumulator_type(t.scalar_type())).contiguous(); }

// Rows of the result are as long as those of the source, or of its parts.
bool rows_match(int64_t width, int64_t step, int64_t cols) {
  return step == 1 ? width == cols : (width + step - 1) / step <= cols;
}

// Geometry of a pass whose result column x meets source columns x * step + k * dilation - padding.
struct FlatSetup {
  Conv2dFlatParams params{};
  std::vector<int64_t> offset;
  std::vector<uint16_t> mask;

  FlatSetup(const at::Tensor& source, DType dtype, int64_t groups, int64_t step, at::IntArrayRef kernel,
            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t rows, int64_t cols, bool activated) {
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
    p.taps = kernel[0] * kernel[1];
    p.size = rows * cols;
    std::vector<int64_t> first_row, first_col;
    for (int64_t i = 0; i < kernel[0]; ++i) {
      for (int64_t k = 0; k < kernel[1]; ++k) {
        const int64_t row = i * dilation[0] - padding[0], col = k * dilation[1] - padding[1];
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
  }

  int64_t copy_size() const { return params.copied ? params.source_channels * params.channel_stride : 0; }
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
  if (pass == Conv2dPass::kGradInput) return s.stride[0] == 1 && cols == s.width;
  if (pass == Conv2dPass::kGradWeight && s.channels / s.groups * results > kMostProducts) return false;
  return rows_match(s.width, s.stride[0], cols);
}

bool flat_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor input = pass.input.contiguous();
  FlatSetup setup(input, s.dtype, s.groups, s.stride[0], {s.kernel_h, s.kernel_w}, s.padding, s.dilation,
                  s.result_height(), s.result_width(), false);
  const at::Tensor bias = pass.bias != nullptr ? widened(*pass.bias) : at::Tensor();
  if (bias.defined()) setup.params.bias = bias.const_data_ptr();
  setup.params.activation = pass.activation;
  run_flat(s, setup, pass.weight, pass.output);
  return true;
}

bool flat_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor grad = pass.grad_output.contiguous();
  const at::Tensor output = pass.output != nullptr ? pass.output->contiguous() : at::Tensor();
  const int64_t padding[] = {s.dilation[0] * (s.kernel_h - 1) - s.padding[0],
                             s.dilation[1] * (s.kernel_w - 1) - s.padding[1]};
  FlatSetup setup(grad, s.dtype, s.groups, 1, {s.kernel_h, s.kernel_w}, padding, s.dilation, s.height,
                  s.width, output.defined());
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
  FlatSetup setup(input, s.dtype, s.groups, s.stride[0], {s.kernel_h, s.kernel_w}, s.padding, s.dilation,
                  s.result_height(), s.result_width(), false);
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
      at::empty({chunks, size}, pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type())));
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
    *grad_weight = at::empty_like(pass.weight);
    grad_weight->copy_(sum.narrow(0, 0, weight_size).view(pass.weight.sizes()));
  }
  if (grad_bias != nullptr) {
    *grad_bias = sum.narrow(0, weight_size, s.result_channels)
                     .to(pass.weight.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  }
  return true;
}

}  // namespace d2lfast::ops
