#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/conv2d.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_passes.h"
#include "conv2d_plan.h"
#include "conv2d_sums.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dKernels, conv2d_kernels);

namespace d2lfast::ops {

namespace {

const Conv2dKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_kernels); }

Strides4 strides_of(const at::Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Geometry of the pass whose result is `result`; `rows` and `cols` are its axes.
struct DirectPass {
  Axis rows, cols;
  const at::Tensor& source;
  const at::Tensor* activated;  // gradient passes: the forward output
  Activation source_activation;
  const at::Tensor& weight;
  bool transposed;  // result channels are the weight's input channels
  const at::Tensor* bias;
  const at::Tensor* residual;
  Activation activation;
  at::Tensor& result;
};

void run_direct(const Conv2dShape& shape, const DirectPass& pass) {
  const Conv2dKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  const int64_t element = accumulator_size(shape.dtype);
  const int64_t groups = shape.groups;
  const int64_t source_channels = pass.source.size(1) / groups;
  const int64_t result_channels = pass.result.size(1) / groups;
  if (pass.result.numel() == 0) return;

  const int64_t tile = table.tile(shape.dtype, result_channels);
  const int64_t columns = table.tile_columns(shape.dtype, tile);
  const int64_t band_rows = choose_band_rows(pass.rows, pass.cols, source_channels, element,
                                             shape.batch * groups, at::get_num_threads());
  const FlatGrid grid(pass.rows, pass.cols, band_rows, columns, pass.weight.stride(2), pass.weight.stride(3));

  Conv2dParams params{};
  params.batch = shape.batch;
  params.groups = groups;
  params.source.data = pass.source.const_data_ptr();
  params.source.strides = strides_of(pass.source);
  if (pass.activated != nullptr) {
    params.source.activated = pass.activated->const_data_ptr();
    params.source.activated_strides = strides_of(*pass.activated);
    params.source.activation = pass.source_activation;
  }
  params.source.channels = source_channels;
  params.source.height = pass.source.size(2);
  params.source.width = pass.source.size(3);
  grid.describe(params.source, pass.rows, pass.cols);
  const int64_t out_stride = pass.weight.stride(0), in_stride = pass.weight.stride(1);
  params.weight = pass.weight.const_data_ptr();
  params.weight_group = pass.weight.size(0) / groups * out_stride;
  params.weight_result = pass.transposed ? in_stride : out_stride;
  params.weight_source = pass.transposed ? out_stride : in_stride;
  const at::Tensor bias = pass.bias != nullptr ? pass.bias->contiguous() : at::Tensor();
  params.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  params.residual = pass.residual != nullptr ? pass.residual->const_data_ptr() : nullptr;
  params.activation = pass.activation;
  params.result = pass.result.mutable_data_ptr();
  params.result_strides = strides_of(pass.result);
  params.result_channels = result_channels;
  params.tile = tile;
  params.band_rows = band_rows;
  params.bands = (pass.rows.extent + band_rows - 1) / band_rows;

  // Result phases, and their weights side by side in one workspace.
  const int64_t blocks = (result_channels + tile - 1) / tile;
  std::vector<Conv2dPhase> phases;
  std::vector<int64_t> start;
  int64_t packed_size = 0;
  for (size_t r = 0; r < pass.rows.taps.size(); ++r) {
    for (size_t c = 0; c < pass.cols.taps.size(); ++c) {
      const size_t f = phases.size();
      Conv2dPhase phase{};
      phase.row = static_cast<int64_t>(r);
      phase.col = static_cast<int64_t>(c);
      phase.row_step = static_cast<int64_t>(pass.rows.taps.size());
      phase.col_step = static_cast<int64_t>(pass.cols.taps.size());
      phase.rows = pass.rows.size[r];
      phase.cols = pass.cols.size[c];
      phase.taps = static_cast<int64_t>(grid.tap_offset[f].size());
      phase.tap_offset = grid.tap_offset[f].data();
      phase.tap_weight = grid.tap_weight[f].data();
      phase.packed_group = blocks * source_channels * phase.taps * tile;
      phases.push_back(phase);
      start.push_back(packed_size);
      packed_size += groups * phase.packed_group;
    }
  }
  at::Tensor packed = empty({std::max<int64_t>(packed_size, 1)},
                            pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type())));
  for (size_t f = 0; f < phases.size(); ++f) {
    phases[f].packed = static_cast<char*>(packed.mutable_data_ptr()) + start[f] * element;
  }
  params.phases = static_cast<int64_t>(phases.size());
  params.phase = phases.data();
  const int64_t pack_cost = std::max<int64_t>(1, packed_size / (groups * params.phases));
  at::parallel_for(0, groups * params.phases, std::max<int64_t>(1, 65536 / pack_cost),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) table.pack[dtype](params, i / groups, i % groups);
                   });

  const int64_t sums_stride = band_rows * grid.grid_width + columns;
  const int64_t grid_size = source_channels * grid.channel_stride;
  const int64_t scratch = (grid_size + tile * sums_stride) * element;
  const int64_t item_cost = band_rows * grid.grid_width * result_channels *
                            std::max<int64_t>(1, source_channels * grid.tap_offset[0].size());
  at::parallel_for(0, shape.batch * groups * params.bands, std::max<int64_t>(1, (1 << 19) / item_cost),
                   [&](int64_t begin, int64_t end) {
                     char* memory = static_cast<char*>(thread_scratch(scratch));
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t band = i % params.bands, rest = i / params.bands;
                       table.band[dtype](params, rest / groups, rest % groups, band, memory,
                                         memory + grid_size * element, sums_stride);
                     }
                   });
}

// Gradients of the weight and the bias by dot products over flat grids. Undefined where a sum is not
// finite: a grid's gap columns multiply zero by data of the next row, which is no zero for an infinity.
std::pair<at::Tensor, at::Tensor> direct_weight_gradient(const Conv2dShape& shape,
                                                         const at::Tensor& grad_output,
                                                         const at::Tensor& input, const at::Tensor& weight,
                                                         const at::Tensor* output, Activation activation,
                                                         bool wants_weight, bool wants_bias) {
  constexpr int64_t kMostChunks = 16, kMostPartialElements = 8 << 20;
  const Conv2dKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  const int64_t element = accumulator_size(shape.dtype);
  const int64_t lanes = table.lanes[dtype];
  const Axis rows = forward_axis(shape.result_height(), shape.kernel_h, shape.stride[0], shape.padding[0],
                                 shape.dilation[0]);
  const Axis cols = forward_axis(shape.result_width(), shape.kernel_w, shape.stride[1], shape.padding[1],
                                 shape.dilation[1]);
  const int64_t source_channels = shape.channels / shape.groups;
  const int64_t result_channels = shape.result_channels / shape.groups;
  const int64_t band_rows =
      choose_band_rows(rows, cols, source_channels + result_channels, element, INT64_MAX / 4, 1);
  const FlatGrid grid(rows, cols, band_rows, cols.extent + cols.reach + 2 * lanes, shape.kernel_w, 1);

  Conv2dWeightParams params{};
  params.groups = shape.groups;
  params.source.data = input.const_data_ptr();
  params.source.strides = strides_of(input);
  params.source.channels = source_channels;
  params.source.height = shape.height;
  params.source.width = shape.width;
  grid.describe(params.source, rows, cols);
  const int64_t zero = 0;
  Conv2dSource& gradient = params.gradient;
  gradient.data = grad_output.const_data_ptr();
  gradient.strides = strides_of(grad_output);
  if (output != nullptr) {
    gradient.activated = output->const_data_ptr();
    gradient.activated_strides = strides_of(*output);
    gradient.activation = activation;
  }
  gradient.channels = result_channels;
  gradient.height = shape.result_height();
  gradient.width = shape.result_width();
  gradient.step_h = gradient.step_w = 1;
  gradient.phases = 1;
  gradient.phase_row = gradient.phase_col = &zero;
  gradient.grid_rows = band_rows;
  gradient.grid_width = grid.grid_width;
  gradient.phase_stride = band_rows * grid.grid_width;
  params.vectors = (gradient.phase_stride + lanes - 1) / lanes;
  gradient.channel_stride = ((params.vectors * lanes + 15) / 16 | 1) * 16;
  params.band_rows = band_rows;
  params.bands = (rows.extent + band_rows - 1) / band_rows;
  params.taps = static_cast<int64_t>(grid.tap_offset[0].size());
  params.tap_offset = grid.tap_offset[0].data();

  const int64_t products = source_channels * params.taps;
  params.outer_vectors =
      table.outer_vectors(shape.dtype, result_channels, products, band_rows * shape.result_width());
  const int64_t tile = std::max<int64_t>(1, params.outer_vectors * lanes);
  params.partial_width = (result_channels + tile - 1) / tile * tile;
  const int64_t weight_size = wants_weight ? shape.groups * params.partial_width * products : 0;
  const int64_t size = weight_size + (wants_bias ? shape.result_channels : 0);
  const int64_t chunks = std::clamp<int64_t>(
      std::min(shape.batch, kMostPartialElements / std::max<int64_t>(1, size)), 1, kMostChunks);
  const auto options = weight.options().dtype(accumulator_type(weight.scalar_type()));
  at::Tensor partial = zeros({chunks, size}, options);
  char* memory = static_cast<char*>(partial.mutable_data_ptr());
  const int64_t scratch = (source_channels * grid.channel_stride + result_channels * gradient.channel_stride +
                           band_rows * shape.result_width() * tile) *
                          element;
  at::parallel_for(0, chunks * shape.groups, 1, [&](int64_t begin, int64_t end) {
    void* planes = thread_scratch(scratch);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i / shape.groups;
      char* to = memory + chunk * size * element;
      table.weight[dtype](params, shape.batch * chunk / chunks, shape.batch * (chunk + 1) / chunks,
                          i % shape.groups, planes, wants_weight ? to : nullptr,
                          wants_bias ? to + weight_size * element : nullptr);
    }
  });
  const bool finite = shape.dtype == DType::kFloat64
                          ? sum_chunks(reinterpret_cast<double*>(memory), chunks, size)
                          : sum_chunks(reinterpret_cast<float*>(memory), chunks, size);
  if (!finite) return {};
  const at::Tensor sum = partial.select(0, 0);
  std::pair<at::Tensor, at::Tensor> grads;
  if (wants_weight) {
    grads.first = empty_like(weight);
    at::Tensor total = sum.narrow(0, 0, weight_size);
    if (params.outer_vectors > 0) {
      total = total.view({shape.groups, products, params.partial_width})
                  .narrow(2, 0, result_channels)
                  .transpose(1, 2)
                  .reshape({shape.result_channels, products});
    }
    grads.first.copy_(total.view(weight.sizes()));
  }
  if (wants_bias) {
    grads.second = empty({shape.result_channels}, weight.options());
    grads.second.copy_(sum.narrow(0, weight_size, shape.result_channels));
  }
  return grads;
}

}  // namespace

bool direct_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  run_direct(s, {forward_axis(s.result_height(), s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
                 forward_axis(s.result_width(), s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]),
                 pass.input, nullptr, Activation::kNone, pass.weight, false, pass.bias, pass.residual,
                 pass.activation, pass.output});
  return true;
}

bool direct_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  run_direct(
      s, {gradient_axis(s.height, s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
          gradient_axis(s.width, s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]), pass.grad_output,
          pass.output, pass.activation, pass.weight, true, nullptr, nullptr, Activation::kNone, grad_input});
  return true;
}

bool direct_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  const auto grads =
      direct_weight_gradient(pass.shape, pass.grad_output, pass.input, pass.weight, pass.output,
                             pass.activation, grad_weight != nullptr, grad_bias != nullptr);
  const bool computed = grads.first.defined() || grads.second.defined();
  if (computed && grad_weight != nullptr) *grad_weight = grads.first;
  if (computed && grad_bias != nullptr) *grad_bias = grads.second;
  return computed;
}

}  // namespace d2lfast::ops
