#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

#include "../../kernels/conv2d_channels.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_passes.h"
#include "conv2d_plan.h"
#include "conv2d_sums.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dChannelsKernels, conv2d_channels_kernels);
D2LFAST_DECLARE_TABLES(Conv2dChannelsWeightKernels, conv2d_channels_weight_kernels);

namespace d2lfast::ops {

namespace {

const Conv2dChannelsKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_channels_kernels); }

const Conv2dChannelsWeightKernels& weight_kernels() {
  return D2LFAST_SELECT_TABLE(conv2d_channels_weight_kernels);
}

Strides4 strides_of(const at::Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// How a pass with `groups` groups of `sources` and `results` channels meets its sources; none where the
// kernels cannot compute it.
std::optional<ChannelsMode> channels_mode(int64_t groups, int64_t sources, int64_t results, int64_t lanes) {
  if (groups > 1 && lanes % results == 0 && sources <= results && groups * results >= lanes &&
      groups * sources >= lanes) {
    return sources == 1 && results == 1 ? ChannelsMode::kVertical : ChannelsMode::kPermuted;
  }
  return results >= lanes ? std::optional(ChannelsMode::kBroadcast) : std::nullopt;
}

// The blocks of such a pass.
struct ChannelsPlan {
  ChannelsMode mode;
  std::vector<ChannelsBlock> blocks;
  std::vector<int32_t> permutation;

  ChannelsPlan(int64_t groups, int64_t sources, int64_t results, int64_t lanes)
      : mode(channels_mode(groups, sources, results, lanes).value()) {
    const int64_t total = groups * results;
    if (mode != ChannelsMode::kBroadcast) {
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
    } else {
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
    const int64_t element = accumulator_size(dtype);
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

// A pass that computes pixels, ready to run.
struct ChannelsBands {
  ChannelsSetup setup;
  const Conv2dChannelsKernels& table = kernels();
  int dtype;
  int64_t rows;   // of the longest phase
  int64_t width;  // elements of a source row
  bool copied;    // the source rows are
  at::Tensor wide_bias;

  ChannelsBands(const Conv2dShape& shape, const ChannelsPass& pass, const at::Tensor* bias,
                const at::Tensor* residual, Activation activation, at::Tensor& result)
      : setup(pass, shape.dtype, kernels().lanes[static_cast<int>(shape.dtype)]),
        dtype(static_cast<int>(shape.dtype)),
        rows(pass.rows.extent),
        width(pass.source.size(1) * pass.source.size(3)),
        copied(pass.activated != nullptr || pass.source.element_size() != accumulator_size(shape.dtype)) {
    const int64_t lanes = table.lanes[dtype];
    Conv2dChannelsParams& params = setup.params;
    if (bias != nullptr) {
      wide_bias = bias->to(accumulator_type(bias->scalar_type())).contiguous();
      params.bias = wide_bias.const_data_ptr();
    }
    params.residual = residual != nullptr ? residual->const_data_ptr() : nullptr;
    params.activation = activation;
    params.result = result.mutable_data_ptr();
    params.result_strides = strides_of(result);
    // What the caches cannot hold until it is read again need not be read into them before it is written.
    constexpr size_t kCacheBytes = size_t{32} << 20;
    params.stream = pass.source.nbytes() + result.nbytes() > kCacheBytes && params.result_strides.c == 1 &&
                    result.element_size() == accumulator_size(shape.dtype) &&
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
  }

  // Bytes of scratch for at most `band` rows of the phases.
  size_t scratch(int64_t band) const {
    if (!copied) return 0;
    int64_t most = 0;
    for (const ChannelsPhase& f : setup.phases) {
      if (f.taps_h == 0) continue;
      most = std::max(most, (band - 1) * f.step_h + f.tap_row[f.taps_h - 1] + 1);
    }
    int64_t least = most;
    for (const ChannelsPhase& f : setup.phases) {
      if (f.taps_h > 0) least = std::min(least, f.tap_row[0]);
    }
    return static_cast<size_t>(std::min(most - least, setup.params.source.height) * width *
                               accumulator_size(static_cast<DType>(dtype)));
  }

  void run(int64_t image, int64_t begin, int64_t end, void* memory) const {
    table.band[dtype](setup.params, image, begin, end, memory);
  }
};

void run_channels(const Conv2dShape& shape, const ChannelsPass& pass, const at::Tensor* bias,
                  const at::Tensor* residual, Activation activation, at::Tensor& result) {
  const ChannelsBands bands(shape, pass, bias, residual, activation, result);
  // A band's source rows, where they are copied, should stay in the second-level cache.
  const int64_t threads = at::get_num_threads(), rows = bands.rows;
  int64_t band = std::clamp<int64_t>((int64_t{1} << 17) / std::max<int64_t>(1, bands.width), 1, rows);
  if (shape.batch * ((rows + band - 1) / band) < 2 * threads) {
    band = std::max<int64_t>(1, std::min(band, rows / (2 * threads)));
  }
  const int64_t count = (rows + band - 1) / band;
  const size_t scratch = bands.scratch(band);
  const int64_t cost = std::max<int64_t>(1, result.numel() / (shape.batch * count)) *
                       bands.setup.params.source_channels * shape.kernel_h * shape.kernel_w;
  at::parallel_for(0, shape.batch * count, std::max<int64_t>(1, (1 << 19) / cost),
                   [&](int64_t begin, int64_t end) {
                     void* memory = scratch > 0 ? thread_scratch(scratch) : nullptr;
                     for (int64_t i = begin; i < end; ++i) {
                       bands.run(i / count, i % count * band, (i % count + 1) * band, memory);
                     }
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
  const auto mode = channels_mode(s.groups, sources, results, table.lanes[static_cast<int>(s.dtype)]);
  // Planes are read by broadcasts alone.
  return mode.has_value() && (s.channels_last || *mode == ChannelsMode::kBroadcast);
}

bool channels_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor input = s.channels_last ? as_channels_last(pass.input) : pass.input;
  run_channels(s,
               {forward_axis(s.result_height(), s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
                forward_axis(s.result_width(), s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]), input,
                nullptr, Activation::kNone, pass.weight, false, s.groups, s.result_channels},
               pass.bias, pass.residual, pass.activation, pass.output);
  return true;
}

namespace {

// Gradient and output of a backward pass, pixels of adjacent channels and of equal strides.
struct ChannelsGradient {
  at::Tensor grad, output;
  explicit ChannelsGradient(const Conv2dBackward& pass) : grad(as_channels_last(pass.grad_output)) {
    if (pass.output == nullptr) return;
    output = as_channels_last(*pass.output);
    if (output.strides() != grad.strides()) {
      grad = grad.contiguous(at::MemoryFormat::ChannelsLast);
      output = output.contiguous(at::MemoryFormat::ChannelsLast);
    }
  }
  const at::Tensor* activated() const { return output.defined() ? &output : nullptr; }
};

ChannelsPass data_pass(const Conv2dBackward& pass, const ChannelsGradient& g) {
  const Conv2dShape& s = pass.shape;
  return {gradient_axis(s.height, s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
          gradient_axis(s.width, s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]),
          g.grad,
          g.activated(),
          pass.activation,
          pass.weight,
          true,
          s.groups,
          s.channels};
}

// The sums of the weight gradient, ready to run: of each of `chunks` parts of the rows of all results.
struct ChannelsSums {
  const Conv2dBackward& pass;
  const at::Tensor input;
  const bool wants_weight, wants_bias;
  const int dtype;
  const int64_t lanes, element;
  const ChannelsSetup setup;
  Conv2dChannelsWeightParams params{};
  int64_t weight_size, size, chunks;
  at::Tensor partial;
  char* memory;

  ChannelsSums(const Conv2dBackward& backward, const ChannelsGradient& g, bool weight, bool bias)
      : pass(backward),
        input(pass.shape.channels_last ? as_channels_last(pass.input) : pass.input),
        wants_weight(weight),
        wants_bias(bias),
        dtype(static_cast<int>(pass.shape.dtype)),
        lanes(kernels().lanes[dtype]),
        element(accumulator_size(pass.shape.dtype)),
        setup(forward_pass(), pass.shape.dtype, lanes) {
    constexpr int64_t kMostChunks = 16, kMostPartialElements = 4 << 20;
    params.forward = setup.params;
    params.gradient = g.grad.const_data_ptr();
    params.gradient_strides = strides_of(g.grad);
    if (g.output.defined()) {
      params.activated = g.output.const_data_ptr();
      params.activation = pass.activation;
    }
    weight_size = weight ? setup.packed.numel() : 0;
    size = weight_size + (bias ? setup.params.blocks * lanes : 0);
    chunks = std::clamp<int64_t>(std::min(rows(), kMostPartialElements / std::max<int64_t>(1, size)), 1,
                                 kMostChunks);
    partial = zeros({chunks, size}, setup.packed.options());
    memory = static_cast<char*>(partial.mutable_data_ptr());
  }

  int64_t rows() const { return pass.shape.batch * pass.shape.result_height(); }

  size_t scratch() const {
    const Conv2dShape& s = pass.shape;
    const int64_t ring =
        input.element_size() == element ? 0 : (s.dilation[0] * (s.kernel_h - 1) + 1) * s.width * s.channels;
    return static_cast<size_t>((s.result_channels * s.result_width() + ring) * element);
  }

  // Calls run(image, begin, end) for the result rows of a chunk, at most `most` at a time.
  template <typename Run>
  void each(int64_t chunk, int64_t most, const Run& run) const {
    const int64_t height = pass.shape.result_height();
    for (int64_t i = rows() * chunk / chunks, last = rows() * (chunk + 1) / chunks; i < last;) {
      const int64_t first = i % height, until = std::min({height, first + last - i, first + most});
      run(i / height, first, until);
      i += until - first;
    }
  }

  void add(const Conv2dChannelsWeightParams& p, int64_t chunk, int64_t image, int64_t begin, int64_t end,
           void* line) const {
    char* to = memory + chunk * size * element;
    weight_kernels().weight[dtype](p, image, begin, end, wants_weight ? to : nullptr,
                                   wants_bias ? to + weight_size * element : nullptr, line);
  }

  bool finish(at::Tensor* grad_weight, at::Tensor* grad_bias) {
    at::Tensor wide_weight, wide_bias;
    if (wants_weight) wide_weight = empty(pass.weight.sizes(), setup.packed.options());
    if (wants_bias) wide_bias = empty({pass.shape.result_channels}, setup.packed.options());
    at::Tensor* to_weight = wants_weight ? &wide_weight : nullptr;
    at::Tensor* to_bias = wants_bias ? &wide_bias : nullptr;
    if (!(pass.shape.dtype == DType::kFloat64
              ? finish_weight<double>(setup, partial, chunks, lanes, to_weight, to_bias)
              : finish_weight<float>(setup, partial, chunks, lanes, to_weight, to_bias))) {
      return false;
    }
    if (wants_weight) *grad_weight = empty_like(pass.weight).copy_(wide_weight);
    if (wants_bias) *grad_bias = wide_bias.to(pass.weight.scalar_type());
    return true;
  }

 private:
  ChannelsPass forward_pass() const {
    const Conv2dShape& s = pass.shape;
    return {forward_axis(s.result_height(), s.kernel_h, s.stride[0], s.padding[0], s.dilation[0]),
            forward_axis(s.result_width(), s.kernel_w, s.stride[1], s.padding[1], s.dilation[1]),
            input,
            nullptr,
            Activation::kNone,
            pass.weight,
            false,
            s.groups,
            s.result_channels};
  }
};

}  // namespace

bool channels_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const ChannelsGradient gradient(pass);
  run_channels(pass.shape, data_pass(pass, gradient), nullptr, nullptr, Activation::kNone, grad_input);
  return true;
}

bool channels_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  const ChannelsGradient gradient(pass);
  ChannelsSums sums(pass, gradient, grad_weight != nullptr, grad_bias != nullptr);
  at::parallel_for(0, sums.chunks, 1, [&](int64_t first, int64_t last) {
    void* line = thread_scratch(sums.scratch());
    for (int64_t chunk = first; chunk < last; ++chunk) {
      sums.each(chunk, INT64_MAX / 2, [&](int64_t image, int64_t begin, int64_t end) {
        sums.add(sums.params, chunk, image, begin, end, line);
      });
    }
  });
  return sums.finish(grad_weight, grad_bias);
}

bool channels_backward(const Conv2dBackward& pass, at::Tensor& grad_input, at::Tensor* grad_weight,
                       at::Tensor* grad_bias) {
  const Conv2dShape& s = pass.shape;
  const ChannelsGradient gradient(pass);
  const ChannelsPass data = data_pass(pass, gradient);
  const ChannelsBands bands(s, data, nullptr, nullptr, Activation::kNone, grad_input);
  ChannelsSums sums(pass, gradient, grad_weight != nullptr, grad_bias != nullptr);
  // What a band reads twice should stay in the second-level cache.
  constexpr int64_t kBandElements = 1 << 16;
  const int64_t height = s.result_height();
  const int64_t band = std::clamp<int64_t>(
      kBandElements / std::max<int64_t>(1, bands.width + s.channels * s.width), 1, height);
  const auto data_row = [&](int64_t row) { return row * bands.rows / height; };
  const size_t wide = (bands.scratch((band * bands.rows + height - 1) / height + 1) + 63) / 64 * 64;
  at::parallel_for(0, sums.chunks, 1, [&](int64_t first, int64_t last) {
    char* memory = static_cast<char*>(thread_scratch(wide + sums.scratch()));
    Conv2dChannelsWeightParams params = sums.params;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      sums.each(chunk, band, [&](int64_t image, int64_t begin, int64_t end) {
        const int64_t from = data_row(begin), to = data_row(end);
        bands.run(image, from, to, memory);
        const ChannelsRows met = channels_source_rows(bands.setup.params, from, to);
        const bool shared = bands.copied && met.top <= begin && end <= met.bottom;
        params.wide = shared ? memory : nullptr;
        params.wide_top = met.top;
        sums.add(params, chunk, image, begin, end, memory + wide);
      });
    }
  });
  return sums.finish(grad_weight, grad_bias);
}

}  // namespace d2lfast::ops
