#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/conv2d_channels.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_passes.h"
#include "conv2d_plan.h"
#include "conv2d_sums.h"
#include "scratch.h"

namespace d2lfast::cpu {
namespace baseline {
extern const Conv2dChannelsKernels conv2d_channels_kernels;
extern const Conv2dChannelsWeightKernels conv2d_channels_weight_kernels;
}  // namespace baseline
namespace avx2 {
extern const Conv2dChannelsKernels conv2d_channels_kernels;
extern const Conv2dChannelsWeightKernels conv2d_channels_weight_kernels;
}  // namespace avx2
namespace avx512 {
extern const Conv2dChannelsKernels conv2d_channels_kernels;
extern const Conv2dChannelsWeightKernels conv2d_channels_weight_kernels;
}  // namespace avx512
}  // namespace d2lfast::cpu

namespace d2lfast::ops {

namespace {

const Conv2dChannelsKernels& kernels() {
  return cpu::select_table(cpu::baseline::conv2d_channels_kernels, cpu::avx2::conv2d_channels_kernels,
                           cpu::avx512::conv2d_channels_kernels);
}

const Conv2dChannelsWeightKernels& weight_kernels() {
  return cpu::select_table(cpu::baseline::conv2d_channels_weight_kernels,
                           cpu::avx2::conv2d_channels_weight_kernels,
                           cpu::avx512::conv2d_channels_weight_kernels);
}

int64_t packed_element(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

Strides4 strides_of(const at::Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// The blocks of a pass with `groups` groups of `sources` and `results` channels; none where the kernels
// cannot compute it.
struct ChannelsPlan {
  ChannelsMode mode = ChannelsMode::kVertical;
  std::vector<ChannelsBlock> blocks;
  std::vector<int32_t> permutation;

  ChannelsPlan(int64_t groups, int64_t sources, int64_t results, int64_t lanes) {
    const int64_t total = groups * results;
    if (groups > 1 && lanes % results == 0 && sources <= results && total >= lanes &&
        groups * sources >= lanes) {
      mode = sources == 1 && results == 1 ? ChannelsMode::kVertical : ChannelsMode::kPermuted;
      for (int64_t first = 0; first < total; first += lanes) {
        const int64_t channel = std::min(first, total - lanes);
        const int64_t least = channel / results * sources;
        const int64_t source = std::min(least, groups * sources - lanes);
        blocks.push_back({channel, source});
        for (int64_t c = 0; c < sources; ++c) {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            permutation.push_back(static_cast<int32_t>((channel + lane) / results * sources + c - source));
          }
        }
      }
    } else if (results >= lanes) {
      mode = ChannelsMode::kBroadcast;
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t first = 0; first < results; first += lanes) {
          blocks.push_back({g * results + std::min(first, results - lanes), g * sources});
        }
      }
    }
  }
};

// The taps of one axis in a result phase, in order of their offset from the result's position.
struct AxisTaps {
  std::vector<int64_t> kernel, offset;
  AxisTaps(const Axis& axis, size_t phase) {
    std::vector<AxisTap> taps = axis.taps[phase];
    std::sort(taps.begin(), taps.end(), [&](const AxisTap& a, const AxisTap& b) {
      return a.offset * axis.step + axis.phases[a.phase] < b.offset * axis.step + axis.phases[b.phase];
    });
    for (const AxisTap& tap : taps) {
      kernel.push_back(tap.kernel);
      offset.push_back(tap.offset * axis.step + axis.phases[tap.phase] - axis.pad);
    }
  }
};

struct ChannelsPass {
  Axis rows, cols;
  const at::Tensor& source;
  const at::Tensor* activated;
  Activation source_activation;
  const at::Tensor& weight;
  bool transposed;  // result channels are the weight's input channels
  int64_t groups, result_channels;
};

// Params of a pass with everything that they point to but the result.
struct ChannelsSetup {
  Conv2dChannelsParams params{};
  ChannelsPlan plan;
  std::vector<AxisTaps> row_taps, col_taps;
  std::vector<ChannelsPhase> phases;
  at::Tensor packed, zeros;

  ChannelsSetup(const ChannelsPass& pass, DType dtype, int64_t lanes)
      : plan(pass.groups, pass.source.size(1) / pass.groups, pass.result_channels / pass.groups, lanes) {
    const auto options = pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type()));
    const int64_t element = packed_element(dtype);
    params.mode = plan.mode;
    params.groups = pass.groups;
    params.source.data = pass.source.const_data_ptr();
    params.source.strides = strides_of(pass.source);
    params.source.height = pass.source.size(2);
    params.source.width = pass.source.size(3);
    if (pass.activated != nullptr) {
      params.source.activated = pass.activated->const_data_ptr();
      params.source.activated_strides = strides_of(*pass.activated);
      params.source.activation = pass.source_activation;
    }
    params.source_channels = pass.source.size(1) / pass.groups;
    params.result_channels = pass.result_channels;
    const at::Tensor& w = pass.weight;
    params.weight = w.const_data_ptr();
    params.weight_group = w.size(0) / pass.groups * w.stride(0);
    params.weight_result = w.stride(pass.transposed ? 1 : 0);
    params.weight_source = w.stride(pass.transposed ? 0 : 1);
    params.weight_h = w.stride(2);
    params.weight_w = w.stride(3);
    params.blocks = static_cast<int64_t>(plan.blocks.size());
    params.block = plan.blocks.data();
    params.permutation = plan.permutation.data();
    zeros =
        ops::zeros({pass.source.size(1) * std::max<int64_t>(1, params.source.strides.c) + lanes}, options);
    params.zeros = zeros.const_data_ptr();
    for (size_t r = 0; r < pass.rows.taps.size(); ++r) row_taps.emplace_back(pass.rows, r);
    for (size_t c = 0; c < pass.cols.taps.size(); ++c) col_taps.emplace_back(pass.cols, c);
    int64_t size = 0;
    std::vector<int64_t> start;
    for (size_t r = 0; r < row_taps.size(); ++r) {
      for (size_t c = 0; c < col_taps.size(); ++c) {
        ChannelsPhase f{};
        f.row = static_cast<int64_t>(r);
        f.col = static_cast<int64_t>(c);
        f.row_step = static_cast<int64_t>(row_taps.size());
        f.col_step = static_cast<int64_t>(col_taps.size());
        f.rows = pass.rows.size[r];
        f.cols = pass.cols.size[c];
        f.step_h = pass.rows.step;
        f.step_w = pass.cols.step;
        f.taps_h = static_cast<int64_t>(row_taps[r].offset.size());
        f.taps_w = static_cast<int64_t>(col_taps[c].offset.size());
        f.tap_row = row_taps[r].offset.data();
        f.tap_col = col_taps[c].offset.data();
        f.kernel_row = row_taps[r].kernel.data();
        f.kernel_col = col_taps[c].kernel.data();
        start.push_back(size);
        size += params.blocks * f.taps_h * params.source_channels * f.taps_w * lanes;
        phases.push_back(f);
      }
    }
    packed = empty({std::max<int64_t>(1, size)}, options);
    for (size_t f = 0; f < phases.size(); ++f) {
      phases[f].packed = static_cast<char*>(packed.mutable_data_ptr()) + start[f] * element;
    }
    params.phases = static_cast<int64_t>(phases.size());
    params.phase = phases.data();
  }
};

void run_channels(const Conv2dShape& shape, const ChannelsPass& pass, const at::Tensor* bias,
                  Activation activation, at::Tensor& result) {
  const Conv2dChannelsKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  const int64_t lanes = table.lanes[dtype];
  ChannelsSetup setup(pass, shape.dtype, lanes);
  Conv2dChannelsParams& params = setup.params;
  at::Tensor wide_bias;
  if (bias != nullptr) {
    wide_bias = bias->to(accumulator_type(bias->scalar_type())).contiguous();
    params.bias = wide_bias.const_data_ptr();
  }
  params.activation = activation;
  params.result = result.mutable_data_ptr();
  params.result_strides = strides_of(result);
  // What the caches cannot hold until it is read again need not be read into them before it is written.
  constexpr size_t kCacheBytes = size_t{32} << 20;
  params.stream = pass.source.nbytes() + result.nbytes() > kCacheBytes && params.result_strides.c == 1 &&
                  result.element_size() == packed_element(shape.dtype) &&
                  reinterpret_cast<uintptr_t>(params.result) % 64 == 0 && result.size(1) % lanes == 0 &&
                  std::all_of(setup.plan.blocks.begin(), setup.plan.blocks.end(),
                              [&](const ChannelsBlock& b) { return b.channel % lanes == 0; });
  const int64_t block_size = setup.packed.numel() / std::max<int64_t>(1, params.blocks * params.phases);
  at::parallel_for(0, params.blocks * params.phases,
                   std::max<int64_t>(1, 65536 / std::max<int64_t>(1, block_size)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       table.pack[dtype](params, i / params.blocks, i % params.blocks);
                     }
                   });
  // A band's source rows, where they are copied, should stay in the second-level cache.
  const int64_t row = pass.source.size(1) * pass.source.size(3);
  const int64_t rows = pass.rows.extent;
  params.band_rows = std::clamp<int64_t>((int64_t{1} << 17) / std::max<int64_t>(1, row), 1, rows);
  if (shape.batch * ((rows + params.band_rows - 1) / params.band_rows) < 2 * at::get_num_threads()) {
    params.band_rows = std::max<int64_t>(1, std::min(params.band_rows, rows / (2 * at::get_num_threads())));
  }
  const int64_t bands = (rows + params.band_rows - 1) / params.band_rows;
  const int64_t source_rows = params.band_rows * pass.rows.step + pass.rows.reach * pass.rows.step + 1;
  const size_t scratch =
      pass.activated != nullptr || pass.source.element_size() != packed_element(shape.dtype)
          ? static_cast<size_t>(std::min(source_rows, pass.source.size(2)) * row *
                                packed_element(shape.dtype))
          : 0;
  const int64_t cost = std::max<int64_t>(1, result.numel() / (shape.batch * bands)) * params.source_channels *
                       shape.kernel_h * shape.kernel_w;
  at::parallel_for(0, shape.batch * bands, std::max<int64_t>(1, (1 << 19) / cost),
                   [&](int64_t begin, int64_t end) {
                     void* memory = scratch > 0 ? thread_scratch(scratch) : nullptr;
                     for (int64_t i = begin; i < end; ++i)
                       table.band[dtype](params, i / bands, i % bands, memory);
                   });
}

// [blocks][taps_h][C][taps_w][lanes] to [O,C,KH,KW].
template <typename A>
void unpack_weight(const ChannelsSetup& setup, const A* partial, int64_t lanes, at::Tensor& weight) {
  const ChannelsPhase& f = setup.phases[0];
  const int64_t channels = setup.params.source_channels;
  A* to = weight.mutable_data_ptr<A>();
  for (const ChannelsBlock& block : setup.plan.blocks) {
    for (int64_t y = 0; y < f.taps_h; ++y) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t x = 0; x < f.taps_w; ++x, partial += lanes) {
          for (int64_t lane = 0; lane < lanes; ++lane) {
            to[(((block.channel + lane) * channels + c) * f.taps_h + f.kernel_row[y]) * f.taps_w +
               f.kernel_col[x]] = partial[lane];
          }
        }
      }
    }
  }
}

template <typename A>
bool finish_weight(const ChannelsSetup& setup, at::Tensor& partial, int64_t chunks, int64_t lanes,
                   at::Tensor* wide_weight, at::Tensor* wide_bias) {
  A* sums = partial.mutable_data_ptr<A>();
  if (!sum_chunks(sums, chunks, partial.size(1))) return false;
  if (wide_weight != nullptr) unpack_weight<A>(setup, sums, lanes, *wide_weight);
  if (wide_bias != nullptr) {
    const A* from = sums + partial.size(1) - setup.params.blocks * lanes;
    A* to = wide_bias->mutable_data_ptr<A>();
    for (const ChannelsBlock& block : setup.plan.blocks) {
      for (int64_t lane = 0; lane < lanes; ++lane) to[block.channel + lane] = *from++;
    }
  }
  return true;
}

at::Tensor as_channels_last(const at::Tensor& t) {
  return t.stride(1) == 1 ? t : t.contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

bool channels_computes(const Conv2dShape& s, Conv2dPass pass) {
  const Conv2dChannelsKernels& table = kernels();
  if (s.cuda || s.kernel_h * s.kernel_w > table.most_taps) return false;
  int64_t sources = s.channels / s.groups, results = s.result_channels / s.groups;
  if (pass == Conv2dPass::kGradInput) std::swap(sources, results);
  if (sources == 0 || results == 0) return false;
  const ChannelsPlan plan(s.groups, sources, results, table.lanes[static_cast<int>(s.dtype)]);
  // Planes are read by broadcasts alone.
  return !plan.blocks.empty() && (s.channels_last || plan.mode == ChannelsMode::kBroadcast);
}

bool channels_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor input = s.channels_last ? as_channels_last(pass.input) : pass.input;
  run_channels(s,
               {forward_axis(s.result_height(), s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
                forward_axis(s.result_width(), s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]), input,
                nullptr, Activation::kNone, pass.weight, false, s.groups, s.result_channels},
               pass.bias, pass.activation, pass.output);
  return true;
}

bool channels_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor grad = as_channels_last(pass.grad_output);
  const at::Tensor output = pass.output != nullptr ? as_channels_last(*pass.output) : at::Tensor();
  run_channels(
      s,
      {gradient_axis(s.height, s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
       gradient_axis(s.width, s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]), grad,
       pass.output != nullptr ? &output : nullptr, pass.activation, pass.weight, true, s.groups, s.channels},
      nullptr, Activation::kNone, grad_input);
  return true;
}

bool channels_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  constexpr int64_t kMostChunks = 16, kMostPartialElements = 4 << 20;
  const Conv2dShape& s = pass.shape;
  const Conv2dChannelsKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const int64_t lanes = table.lanes[dtype];
  const int64_t element = packed_element(s.dtype);
  const at::Tensor input = s.channels_last ? as_channels_last(pass.input) : pass.input;
  at::Tensor grad = as_channels_last(pass.grad_output), output;
  if (pass.output != nullptr) {
    output = as_channels_last(*pass.output);
    if (output.strides() != grad.strides()) {
      grad = grad.contiguous(at::MemoryFormat::ChannelsLast);
      output = output.contiguous(at::MemoryFormat::ChannelsLast);
    }
  }
  const ChannelsPass forward{
      forward_axis(s.result_height(), s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
      forward_axis(s.result_width(), s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]),
      input,
      nullptr,
      Activation::kNone,
      pass.weight,
      false,
      s.groups,
      s.result_channels};
  const ChannelsSetup setup(forward, s.dtype, lanes);
  Conv2dChannelsWeightParams params{};
  params.forward = setup.params;
  params.gradient = grad.const_data_ptr();
  params.gradient_strides = strides_of(grad);
  if (output.defined()) {
    params.activated = output.const_data_ptr();
    params.activation = pass.activation;
  }
  const int64_t weight_size = grad_weight != nullptr ? setup.packed.numel() : 0;
  const int64_t size = weight_size + (grad_bias != nullptr ? setup.params.blocks * lanes : 0);
  const int64_t rows = s.batch * s.result_height();
  const int64_t chunks =
      std::clamp<int64_t>(std::min(rows, kMostPartialElements / std::max<int64_t>(1, size)), 1, kMostChunks);
  at::Tensor partial = zeros({chunks, size}, setup.packed.options());
  char* memory = static_cast<char*>(partial.mutable_data_ptr());
  const int64_t ring =
      input.element_size() == element ? 0 : (s.dilation[0] * (s.kernel_h - 1) + 1) * s.width * s.channels;
  const size_t scratch = static_cast<size_t>((s.result_channels * s.result_width() + ring) * element);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    void* line = thread_scratch(scratch);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      char* to = memory + chunk * size * element;
      for (int64_t i = rows * chunk / chunks, last = rows * (chunk + 1) / chunks; i < last;) {
        const int64_t image = i / s.result_height(), first = i % s.result_height();
        const int64_t until = std::min(s.result_height(), first + last - i);
        weight_kernels().weight[dtype](params, image, first, until, grad_weight != nullptr ? to : nullptr,
                                       grad_bias != nullptr ? to + weight_size * element : nullptr, line);
        i += until - first;
      }
    }
  });
  at::Tensor wide_weight, wide_bias;
  if (grad_weight != nullptr) wide_weight = empty(pass.weight.sizes(), setup.packed.options());
  if (grad_bias != nullptr) wide_bias = empty({s.result_channels}, setup.packed.options());
  at::Tensor* to_weight = grad_weight != nullptr ? &wide_weight : nullptr;
  at::Tensor* to_bias = grad_bias != nullptr ? &wide_bias : nullptr;
  if (!(s.dtype == DType::kFloat64
            ? finish_weight<double>(setup, partial, chunks, lanes, to_weight, to_bias)
            : finish_weight<float>(setup, partial, chunks, lanes, to_weight, to_bias))) {
    return false;
  }
  if (grad_weight != nullptr) *grad_weight = empty_like(pass.weight).copy_(wide_weight);
  if (grad_bias != nullptr) *grad_bias = wide_bias.to(pass.weight.scalar_type());
  return true;
}

}  // namespace d2lfast::ops
