#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/conv2d_planes.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_flat.h"
#include "conv2d_passes.h"
#include "conv2d_sums.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dPlanesKernels, conv2d_planes_kernels);

namespace d2lfast::ops {

namespace {

constexpr int64_t kMostTaps = 16;  // of an axis

const Conv2dPlanesKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_planes_kernels); }

int64_t floor_div(int64_t a, int64_t b) { return (a - (((a % b) + b) % b)) / b; }

// Taps and sizes of a pass whose result column x meets source columns x * step + k * dilation - padding.
struct PlanesSetup {
  Conv2dPlanesParams params{};
  std::vector<int64_t> rows;
  std::vector<PlanesTap> taps;

  PlanesSetup(const at::Tensor& source, const at::Tensor& weight, int64_t groups, int64_t step,
              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t result_rows, int64_t result_cols) {
    params.groups = groups;
    params.source_channels = source.size(1) / groups;
    params.source = source.const_data_ptr();
    params.height = source.size(2);
    params.width = source.size(3);
    params.step = step;
    params.part_width = (params.width + step - 1) / step;
    params.taps_h = weight.size(2);
    params.taps_w = weight.size(3);
    for (int64_t k = 0; k < params.taps_h; ++k) rows.push_back(k * dilation[0] - padding[0]);
    for (int64_t k = 0; k < params.taps_w; ++k) {
      const int64_t offset = k * dilation[1] - padding[1];
      const int64_t column = floor_div(offset, step), part = offset - column * step;
      taps.push_back({column, (params.width - part + step - 1) / step, part * params.part_width});
    }
    params.tap_row = rows.data();
    params.tap = taps.data();
    params.weight = weight.const_data_ptr();
    params.result_channels = weight.size(0) / groups;
    params.rows = result_rows;
    params.cols = result_cols;
  }
};

// Where the result goes, and whether the source is copied.
void set_result(const Conv2dShape& shape, PlanesSetup& setup, at::Tensor& result) {
  Conv2dPlanesParams& p = setup.params;
  const int64_t element = accumulator_size(shape.dtype);
  p.result = result.mutable_data_ptr();
  p.copied = p.step > 1 || p.activated != nullptr || result.element_size() != element;
  // What the caches cannot hold until it is read again need not be read into them before it is written.
  constexpr size_t kCacheBytes = size_t{32} << 20;
  p.stream = 2 * result.nbytes() > kCacheBytes && result.element_size() == element &&
             p.result_channels == 1 && reinterpret_cast<uintptr_t>(p.result) % 64 == 0 &&
             p.rows * p.cols * element % 64 == 0;
}

size_t scratch_of(const Conv2dShape& shape, const Conv2dPlanesParams& p) {
  const int64_t copy = p.copied ? p.source_channels * p.height * p.step * p.part_width : 0;
  return static_cast<size_t>((copy + (p.stream ? p.rows * p.cols : 0)) * accumulator_size(shape.dtype));
}

void run_planes(const Conv2dShape& shape, PlanesSetup& setup, at::Tensor& result) {
  const Conv2dPlanesKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  Conv2dPlanesParams& p = setup.params;
  set_result(shape, setup, result);
  // Bands only where there are too few groups for the threads; a band reads some rows twice.
  const int64_t items = shape.batch * p.groups;
  const int64_t bands =
      items >= 2 * at::get_num_threads() ? 1 : std::min<int64_t>(p.rows, 2 * at::get_num_threads());
  p.stream = p.stream && bands == 1;
  const size_t scratch = scratch_of(shape, p);
  const int64_t cost = std::max<int64_t>(
      1, p.result_channels * p.rows * p.cols * p.source_channels * p.taps_h * p.taps_w / bands);
  at::parallel_for(0, items * bands, std::max<int64_t>(1, (1 << 19) / cost), [&](int64_t begin, int64_t end) {
    void* memory = scratch > 0 ? thread_scratch(scratch) : nullptr;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands, item = i / bands;
      table.group[dtype](p, item / p.groups, item % p.groups, p.rows * band / bands,
                         p.rows * (band + 1) / bands, memory);
    }
  });
}

bool same_steps(const Conv2dShape& s) { return s.stride[0] == s.stride[1]; }

// A tile of rows reads each vector of a depthwise layer's source once for three of its taps; elsewhere, or
// where rows are much shorter than vectors, flat planes win.
bool flat(const Conv2dShape& s, Conv2dPass pass) {
  const bool depthwise = s.groups == s.channels && s.result_channels == s.channels;
  return flat_computes(s, pass) && (!depthwise || s.stride[0] > 1 || s.result_width() <= 8);
}

}  // namespace

bool planes_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (s.cuda || s.channels_last || s.kernel_h > kMostTaps || s.kernel_w > kMostTaps) return false;
  const bool unit_steps = s.stride[0] == 1 && s.stride[1] == 1;
  switch (pass) {
    case Conv2dPass::kForward:
      return same_steps(s);
    case Conv2dPass::kGradInput:
      return unit_steps || flat(s, pass);
    default:
      if (flat(s, pass)) return true;
      return unit_steps && s.dilation[0] == 1 && s.dilation[1] == 1 && s.groups == s.channels &&
             s.result_channels == s.channels && kernels().knows_window(s.kernel_h, s.kernel_w);
  }
}

bool planes_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  if (flat(s, Conv2dPass::kForward)) return flat_forward(pass);
  const at::Tensor input = pass.input.contiguous(), weight = widened(pass.weight);
  PlanesSetup setup(input, weight, s.groups, s.stride[0], s.padding, s.dilation, s.result_height(),
                    s.result_width());
  const at::Tensor bias = pass.bias != nullptr ? widened(*pass.bias) : at::Tensor();
  if (bias.defined()) setup.params.bias = bias.const_data_ptr();
  if (pass.residual != nullptr) setup.params.residual = pass.residual->const_data_ptr();
  setup.params.activation = pass.activation;
  run_planes(s, setup, pass.output);
  return true;
}

namespace {

struct PlanesGradient {
  at::Tensor grad, output;
  explicit PlanesGradient(const Conv2dBackward& pass) : grad(pass.grad_output.contiguous()) {
    if (pass.output != nullptr) output = pass.output->contiguous();
  }
};

PlanesSetup data_setup(const Conv2dBackward& pass, const PlanesGradient& g, const at::Tensor& turned_weight) {
  const Conv2dShape& s = pass.shape;
  const int64_t padding[] = {s.dilation[0] * (s.kernel_h - 1) - s.padding[0],
                             s.dilation[1] * (s.kernel_w - 1) - s.padding[1]};
  PlanesSetup setup(g.grad, turned_weight, s.groups, 1, padding, s.dilation, s.height, s.width);
  if (g.output.defined()) {
    setup.params.activated = g.output.const_data_ptr();
    setup.params.source_activation = pass.activation;
  }
  return setup;
}

// Gradients of a depthwise layer's weight and bias and, unless `data` is null, of its input.
bool sum_planes(const Conv2dBackward& pass, const PlanesGradient& g, const Conv2dPlanesParams* data,
                at::Tensor* grad_weight, at::Tensor* grad_bias) {
  constexpr int64_t kMostChunks = 16;
  const Conv2dShape& s = pass.shape;
  const Conv2dPlanesKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const at::Tensor input = pass.input.contiguous();
  const auto options = pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type()));
  const PlanesSetup setup(input, pass.weight, s.groups, 1, s.padding, s.dilation, s.result_height(),
                          s.result_width());
  Conv2dPlanesWeightParams params{};
  params.forward = setup.params;
  params.gradient = g.grad.const_data_ptr();
  if (g.output.defined()) {
    params.activated = g.output.const_data_ptr();
    params.activation = pass.activation;
  }
  const int64_t window = s.kernel_h * s.kernel_w, chunks = std::clamp<int64_t>(s.batch, 1, kMostChunks);
  at::Tensor partial = zeros({chunks, s.channels, window + 1}, options);
  char* memory = static_cast<char*>(partial.mutable_data_ptr());
  const int64_t element = accumulator_size(s.dtype), result = s.result_height() * s.result_width();
  const size_t copies = static_cast<size_t>((s.height * s.width + result) * element);
  const size_t aligned = (copies + 63) / 64 * 64;
  const size_t scratch = aligned + (data != nullptr ? scratch_of(s, *data) : 0);
  const int64_t cost = std::max<int64_t>(1, result * window * ((s.batch + chunks - 1) / chunks));
  at::parallel_for(
      0, chunks * s.channels, std::max<int64_t>(1, (1 << 19) / cost), [&](int64_t begin, int64_t end) {
        char* copy = static_cast<char*>(thread_scratch(scratch));
        Conv2dPlanesParams of_copy = data != nullptr ? *data : Conv2dPlanesParams{};
        const bool copied = of_copy.copied;
        of_copy.copied = false;
        for (int64_t chunk = begin / s.channels, last; begin < end; begin = last, ++chunk) {
          last = std::min(end, (chunk + 1) * s.channels);
          // Neighbours in memory one after the other: the kernels fetch the next plane.
          for (int64_t image = s.batch * chunk / chunks; image < s.batch * (chunk + 1) / chunks; ++image) {
            for (int64_t i = begin; i < last; ++i) {
              const int64_t channel = i % s.channels;
              table.weight[dtype](params, image, channel, memory + i * (window + 1) * element, copy);
              if (data == nullptr) continue;
              if (copied) of_copy.source = copy - (image * s.channels + channel) * result * element;
              table.group[dtype](of_copy, image, channel, 0, of_copy.rows, copy + aligned);
            }
          }
        }
      });
  const int64_t size = s.channels * (window + 1);
  if (!(s.dtype == DType::kFloat64 ? sum_chunks(reinterpret_cast<double*>(memory), chunks, size)
                                   : sum_chunks(reinterpret_cast<float*>(memory), chunks, size))) {
    return false;
  }
  const at::Tensor sum = partial.select(0, 0);
  if (grad_weight != nullptr) {
    *grad_weight = empty_like(pass.weight);
    grad_weight->copy_(sum.narrow(1, 0, window).reshape(pass.weight.sizes()));
  }
  if (grad_bias != nullptr) {
    *grad_bias = sum.select(1, window).to(pass.weight.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  }
  return true;
}

}  // namespace

bool planes_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  if (flat(s, Conv2dPass::kGradInput)) return flat_grad_input(pass, grad_input);
  const PlanesGradient gradient(pass);
  const at::Tensor weight = widened(turned(pass.weight, s.groups));
  PlanesSetup setup = data_setup(pass, gradient, weight);
  run_planes(s, setup, grad_input);
  return true;
}

bool planes_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  if (flat(pass.shape, Conv2dPass::kGradWeight)) return flat_grad_weight(pass, grad_weight, grad_bias);
  return sum_planes(pass, PlanesGradient(pass), nullptr, grad_weight, grad_bias);
}

bool planes_backward(const Conv2dBackward& pass, at::Tensor& grad_input, at::Tensor* grad_weight,
                     at::Tensor* grad_bias) {
  const Conv2dShape& s = pass.shape;
  if (flat(s, Conv2dPass::kGradInput) || flat(s, Conv2dPass::kGradWeight)) {
    planes_grad_input(pass, grad_input);
    return planes_grad_weight(pass, grad_weight, grad_bias);
  }
  const PlanesGradient gradient(pass);
  const at::Tensor weight = widened(turned(pass.weight, s.groups));
  PlanesSetup setup = data_setup(pass, gradient, weight);
  set_result(s, setup, grad_input);
  return sum_planes(pass, gradient, &setup.params, grad_weight, grad_bias);
}

}  // namespace d2lfast::ops
