#include <algorithm>

#include "../../csrc/kernels/conv2d.h"
#include "../../csrc/ops/cpu/conv2d_plan.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(Conv2dKernels, conv2d_kernels);

namespace d2lfast::test {
namespace {

using ops::Axis;
using ops::FlatGrid;

struct Problem {
  DType dtype;
  Image input, output;
  int64_t groups, kernel_h, kernel_w;
  int64_t stride[2], padding[2], dilation[2];
  bool bias, residual;
  Activation activation;
  int64_t band_rows;  // 0: the planner's choice

  int64_t in_per_group() const { return input.c / groups; }
  int64_t out_per_group() const { return output.c / groups; }
  int64_t weights() const { return output.c * in_per_group() * kernel_h * kernel_w; }
};

Strides4 strides_of(const Image& image) {
  if (image.channels_last) return {image.h * image.w * image.c, 1, image.w * image.c, image.c};
  return {image.c * image.h * image.w, image.h * image.w, image.w, 1};
}

struct Pass {
  Axis rows, cols;
  const Image &source_shape, &result_shape;
  const Buffer& source;
  const Buffer* activated;
  bool transposed;
  const Buffer *bias, *residual;
  Activation activation;  // forward: the epilogue; gradient: the one to be derived
  Buffer& result;
};

// What csrc/ops/cpu/conv2d.cpp does between torch and the kernels, with buffers of exact size.
void run_pass(const Conv2dKernels& table, const Problem& p, const Buffer& weight, const Pass& pass) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t element = size_of(accumulator_of(p.dtype));
  const int64_t source_channels = pass.source_shape.c / p.groups;
  const int64_t result_channels = pass.result_shape.c / p.groups;
  const int64_t tile = table.tile(p.dtype, result_channels);
  const int64_t columns = table.tile_columns(p.dtype, tile);
  const int64_t band_rows = p.band_rows > 0 ? std::min(p.band_rows, std::max<int64_t>(1, pass.rows.extent))
                                            : ops::choose_band_rows(pass.rows, pass.cols, source_channels,
                                                                    element, p.input.n * p.groups, 2);
  const FlatGrid grid(pass.rows, pass.cols, band_rows, columns, p.kernel_w, 1);
  const int64_t kernel = p.kernel_h * p.kernel_w, out_stride = p.in_per_group() * kernel;

  Conv2dParams params{};
  params.batch = p.input.n;
  params.groups = p.groups;
  params.source.data = pass.source.data();
  params.source.strides = strides_of(pass.source_shape);
  if (pass.activated != nullptr) {
    params.source.activated = pass.activated->data();
    params.source.activated_strides = strides_of(pass.source_shape);
    params.source.activation = pass.activation;
  }
  params.source.channels = source_channels;
  params.source.height = pass.source_shape.h;
  params.source.width = pass.source_shape.w;
  grid.describe(params.source, pass.rows, pass.cols);
  params.weight = weight.data();
  params.weight_group = p.out_per_group() * out_stride;
  params.weight_result = pass.transposed ? kernel : out_stride;
  params.weight_source = pass.transposed ? out_stride : kernel;
  params.bias = pass.bias != nullptr ? pass.bias->data() : nullptr;
  params.residual = pass.residual != nullptr ? pass.residual->data() : nullptr;
  params.activation = pass.activated != nullptr ? Activation::kNone : pass.activation;
  params.result = pass.result.data();
  params.result_strides = strides_of(pass.result_shape);
  params.result_channels = result_channels;
  params.tile = tile;
  params.band_rows = band_rows;
  params.bands = (pass.rows.extent + band_rows - 1) / band_rows;

  const int64_t blocks = (result_channels + tile - 1) / tile;
  std::vector<Conv2dPhase> phases;
  std::vector<int64_t> start;
  int64_t packed_size = 0;
  for (size_t r = 0; r < pass.rows.taps.size(); ++r) {
    for (size_t c = 0; c < pass.cols.taps.size(); ++c) {
      const size_t f = phases.size();
      const int64_t taps = static_cast<int64_t>(grid.tap_offset[f].size());
      phases.push_back({static_cast<int64_t>(r), static_cast<int64_t>(c),
                        static_cast<int64_t>(pass.rows.taps.size()),
                        static_cast<int64_t>(pass.cols.taps.size()), pass.rows.size[r], pass.cols.size[c],
                        taps, grid.tap_offset[f].data(), grid.tap_weight[f].data(), nullptr,
                        blocks * source_channels * taps * tile});
      start.push_back(packed_size);
      packed_size += p.groups * phases.back().packed_group;
    }
  }
  Buffer packed(accumulator_of(p.dtype), packed_size);
  for (size_t f = 0; f < phases.size(); ++f)
    phases[f].packed = static_cast<char*>(packed.data()) + start[f] * element;
  params.phases = static_cast<int64_t>(phases.size());
  params.phase = phases.data();
  for (int64_t f = 0; f < params.phases; ++f) {
    for (int64_t g = 0; g < p.groups; ++g) table.pack[dtype](params, f, g);
  }
  const int64_t sums_stride = band_rows * grid.grid_width + columns;
  Buffer planes(accumulator_of(p.dtype), source_channels * grid.channel_stride);
  Buffer sums(accumulator_of(p.dtype), tile * sums_stride);
  for (int64_t i = 0; i < params.batch * p.groups * params.bands; ++i) {
    const int64_t rest = i / params.bands;
    table.band[dtype](params, rest / p.groups, rest % p.groups, i % params.bands, planes.data(), sums.data(),
                      sums_stride);
  }
}

void run_weight(const Conv2dKernels& table, const Problem& p, const Buffer& input, const Buffer& grad,
                const Buffer* output, Buffer& grad_weight, Buffer& grad_bias) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes[dtype];
  const Axis rows = ops::forward_axis(p.output.h, p.kernel_h, p.stride[0], p.padding[0], p.dilation[0]);
  const Axis cols = ops::forward_axis(p.output.w, p.kernel_w, p.stride[1], p.padding[1], p.dilation[1]);
  const int64_t band_rows = p.band_rows > 0 ? std::min(p.band_rows, rows.extent) : rows.extent;
  const FlatGrid grid(rows, cols, band_rows, cols.extent + cols.reach + 2 * lanes, p.kernel_w, 1);

  Conv2dWeightParams params{};
  params.groups = p.groups;
  params.source.data = input.data();
  params.source.strides = strides_of(p.input);
  params.source.channels = p.in_per_group();
  params.source.height = p.input.h;
  params.source.width = p.input.w;
  grid.describe(params.source, rows, cols);
  const int64_t zero = 0;
  Conv2dSource& gradient = params.gradient;
  gradient.data = grad.data();
  gradient.strides = strides_of(p.output);
  if (output != nullptr) {
    gradient.activated = output->data();
    gradient.activated_strides = strides_of(p.output);
    gradient.activation = p.activation;
  }
  gradient.channels = p.out_per_group();
  gradient.height = p.output.h;
  gradient.width = p.output.w;
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
  const int64_t products = p.in_per_group() * params.taps;
  params.outer_vectors = table.outer_vectors(p.dtype, p.out_per_group(), products, band_rows * p.output.w);
  const int64_t tile = std::max<int64_t>(1, params.outer_vectors * lanes);
  params.partial_width = (p.out_per_group() + tile - 1) / tile * tile;

  const DType accumulator = accumulator_of(p.dtype);
  Buffer partial(accumulator, p.groups * params.partial_width * products),
      partial_bias(accumulator, p.output.c);
  partial.fill(0);
  partial_bias.fill(0);
  Buffer planes(accumulator, p.in_per_group() * grid.channel_stride +
                                 p.out_per_group() * gradient.channel_stride + band_rows * p.output.w * tile);
  for (int64_t g = 0; g < p.groups; ++g) {
    // Two ranges of images, as two threads would have them.
    const int64_t half = p.input.n / 2;
    table.weight[dtype](params, 0, half, g, planes.data(), partial.data(), partial_bias.data());
    table.weight[dtype](params, half, p.input.n, g, planes.data(), partial.data(), partial_bias.data());
  }
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t m = 0; m < p.out_per_group(); ++m) {
      for (int64_t k = 0; k < products; ++k) {
        const int64_t at = params.outer_vectors > 0 ? (g * products + k) * params.partial_width + m
                                                    : (g * params.partial_width + m) * products + k;
        grad_weight.set((g * p.out_per_group() + m) * products + k, partial.get(at));
      }
    }
  }
  for (int64_t m = 0; m < p.output.c; ++m) grad_bias.set(m, partial_bias.get(m));
}

struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

// The definition, in double. `output_of` holds the kernels' output, of which the derivative is a function.
Expected naive(const Problem& p, const Buffer& input, const Buffer& weight, const Buffer& bias,
               const Buffer& residual, const Buffer& grad, const Buffer* output_of) {
  Expected e{std::vector<double>(static_cast<size_t>(p.output.size())),
             std::vector<double>(static_cast<size_t>(p.input.size())),
             std::vector<double>(static_cast<size_t>(p.weights())),
             std::vector<double>(static_cast<size_t>(p.output.c))};
  for (int64_t n = 0; n < p.output.n; ++n) {
    for (int64_t m = 0; m < p.output.c; ++m) {
      for (int64_t y = 0; y < p.output.h; ++y) {
        for (int64_t x = 0; x < p.output.w; ++x) {
          const int64_t at = p.output.at(n, m, y, x);
          double sum = (p.bias ? bias.get(m) : 0) + (p.residual ? residual.get(at) : 0);
          const double g =
              grad.get(at) *
              (output_of != nullptr ? activation_derivative(p.activation, output_of->get(at)) : 1);
          e.grad_bias[static_cast<size_t>(m)] += g;
          for (int64_t c = 0; c < p.in_per_group(); ++c) {
            for (int64_t i = 0; i < p.kernel_h; ++i) {
              for (int64_t j = 0; j < p.kernel_w; ++j) {
                const int64_t h = y * p.stride[0] - p.padding[0] + i * p.dilation[0];
                const int64_t w = x * p.stride[1] - p.padding[1] + j * p.dilation[1];
                if (h < 0 || h >= p.input.h || w < 0 || w >= p.input.w) continue;
                const int64_t from = p.input.at(n, m / p.out_per_group() * p.in_per_group() + c, h, w);
                const int64_t k = ((m * p.in_per_group() + c) * p.kernel_h + i) * p.kernel_w + j;
                sum += input.get(from) * weight.get(k);
                e.grad_input[static_cast<size_t>(from)] += g * weight.get(k);
                e.grad_weight[static_cast<size_t>(k)] += g * input.get(from);
              }
            }
          }
          e.output[static_cast<size_t>(at)] = activated(p.activation, sum);
        }
      }
    }
  }
  return e;
}

Problem draw(Random& random) {
  for (;;) {
    Problem p{};
    p.dtype = static_cast<DType>(random.between(0, 3));
    p.groups = random.chance(30) ? random.between(2, 5) : 1;
    const int64_t in = random.chance(10) ? random.between(16, 40) : random.between(1, 7);
    const int64_t out = random.chance(10) ? random.between(16, 40) : random.between(1, 9);
    p.kernel_h = random.between(1, 5);
    p.kernel_w = random.chance(10) ? random.between(6, 11) : random.between(1, 5);
    for (int i = 0; i < 2; ++i) {
      p.stride[i] = random.chance(60) ? 1 : random.between(2, 4);
      p.padding[i] = random.chance(40) ? 0 : random.between(1, 4);
      p.dilation[i] = random.chance(75) ? 1 : random.between(2, 3);
    }
    const bool last = random.chance(40);
    p.input = {random.between(1, 3), p.groups * in, random.between(1, 14), random.between(1, 37), last};
    const int64_t h = p.input.h + 2 * p.padding[0] - p.dilation[0] * (p.kernel_h - 1) - 1;
    const int64_t w = p.input.w + 2 * p.padding[1] - p.dilation[1] * (p.kernel_w - 1) - 1;
    if (h < 0 || w < 0) continue;
    p.output = {p.input.n, p.groups * out, h / p.stride[0] + 1, w / p.stride[1] + 1,
                random.chance(10) ? !last : last};
    p.bias = random.chance(60);
    p.residual = random.chance(40);
    p.activation = static_cast<Activation>(random.chance(50) ? 0 : random.between(1, 3));
    p.band_rows = random.chance(50) ? random.between(1, 5) : 0;
    return p;
  }
}

std::string describe(const Problem& p, int64_t number) {
  char text[320];
  std::snprintf(
      text, sizeof(text),
      "conv2d case %lld %s input %lldx%lldx%lldx%lld output %lldx%lldx%lld%s groups %lld kernel %lldx%lld "
      "stride %lld,%lld padding %lld,%lld dilation %lld,%lld activation %d band %lld",
      (long long)number, name_of(p.dtype), (long long)p.input.n, (long long)p.input.c, (long long)p.input.h,
      (long long)p.input.w, (long long)p.output.c, (long long)p.output.h, (long long)p.output.w,
      p.input.channels_last ? " channels_last" : "", (long long)p.groups, (long long)p.kernel_h,
      (long long)p.kernel_w, (long long)p.stride[0], (long long)p.stride[1], (long long)p.padding[0],
      (long long)p.padding[1], (long long)p.dilation[0], (long long)p.dilation[1],
      static_cast<int>(p.activation), (long long)p.band_rows);
  return text;
}

}  // namespace

void test_conv2d(int cases) {
  const auto all =
      tables(cpu::baseline::conv2d_kernels, cpu::avx2::conv2d_kernels, cpu::avx512::conv2d_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p = draw(random);
    Buffer input(p.dtype, p.input.size()), weight(p.dtype, p.weights()), bias(p.dtype, p.output.c);
    Buffer grad(p.dtype, p.output.size()), residual(p.dtype, p.output.size());
    for (Buffer* buffer : {&input, &weight, &bias, &grad, &residual}) buffer->randomise(random);
    std::vector<std::vector<double>> first;
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " " + describe(p, number);
      Buffer output(p.dtype, p.output.size()), grad_input(p.dtype, p.input.size());
      Buffer grad_weight(p.dtype, p.weights()), grad_bias(p.dtype, p.output.c);
      run_pass(*all.table[isa], p, weight,
               {ops::forward_axis(p.output.h, p.kernel_h, p.stride[0], p.padding[0], p.dilation[0]),
                ops::forward_axis(p.output.w, p.kernel_w, p.stride[1], p.padding[1], p.dilation[1]), p.input,
                p.output, input, nullptr, false, p.bias ? &bias : nullptr, p.residual ? &residual : nullptr,
                p.activation, output});
      const Buffer* derived = p.activation != Activation::kNone ? &output : nullptr;
      run_pass(*all.table[isa], p, weight,
               {ops::gradient_axis(p.input.h, p.kernel_h, p.stride[0], p.padding[0], p.dilation[0]),
                ops::gradient_axis(p.input.w, p.kernel_w, p.stride[1], p.padding[1], p.dilation[1]), p.output,
                p.input, grad, derived, true, nullptr, nullptr,
                derived != nullptr ? p.activation : Activation::kNone, grad_input});
      run_weight(*all.table[isa], p, input, grad, derived, grad_weight, grad_bias);

      const Expected e = naive(p, input, weight, bias, residual, grad, derived);
      const int64_t kernel = p.kernel_h * p.kernel_w, pixels = p.output.n * p.output.h * p.output.w;
      expect_close(output, e.output, p.in_per_group() * kernel, 1, what + ": output");
      expect_close(grad_input, e.grad_input, p.out_per_group() * kernel, 1, what + ": gradient of the input");
      expect_close(grad_weight, e.grad_weight, pixels, 1, what + ": gradient of the weight");
      expect_close(grad_bias, e.grad_bias, pixels, 1, what + ": gradient of the bias");
      if (isa == 0) {
        for (const Buffer* b : {&output, &grad_input, &grad_weight, &grad_bias}) first.push_back(b->values());
        continue;
      }
      // Another instruction set may add in another order, no more. Where an activation is derived, its kink
      // may tell two outputs apart that are almost equal.
      const std::string apart = what + ": differs from baseline in result ";
      const Buffer* results[] = {&output, &grad_input, &grad_weight, &grad_bias};
      const int64_t additions = std::max({pixels, p.in_per_group() * kernel, p.out_per_group() * kernel});
      for (size_t i = 0; i < (derived != nullptr ? 1 : 4); ++i) {
        expect_close(*results[i], first[i], additions, 2, apart + std::to_string(i), 2);
      }
    }
  }
}

}  // namespace d2lfast::test
