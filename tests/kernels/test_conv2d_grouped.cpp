#include <algorithm>

#include "../../csrc/kernels/conv2d_channels.h"
#include "../../csrc/kernels/conv2d_flat.h"
#include "../../csrc/kernels/conv2d_planes.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(Conv2dChannelsKernels, conv2d_channels_kernels);
D2LFAST_DECLARE_TABLES(Conv2dChannelsWeightKernels, conv2d_channels_weight_kernels);
D2LFAST_DECLARE_TABLES(Conv2dPlanesKernels, conv2d_planes_kernels);
D2LFAST_DECLARE_TABLES(Conv2dFlatKernels, conv2d_flat_kernels);

namespace d2lfast::test {
namespace {

struct Problem {
  DType dtype;
  Image input, output;
  int64_t groups, kernel, step, padding, dilation;
  Activation activation, derived;  // epilogue; of the source's derivative (kNone: none is taken)
  bool bias, residual;

  int64_t sources() const { return input.c / groups; }
  int64_t results() const { return output.c / groups; }
  int64_t weights() const { return output.c * sources() * kernel * kernel; }
};

Problem draw(Random& random, bool channels_last) {
  for (;;) {
    Problem p{};
    p.dtype = static_cast<DType>(random.between(0, 3));
    constexpr int64_t kWidths[] = {1, 1, 2, 4, 8};
    const int64_t width = kWidths[random.between(0, 4)];
    p.groups =
        channels_last ? random.between(2, 4) * 16 / width + random.between(0, 2) : random.between(1, 4);
    const int64_t multiplier = channels_last || random.chance(70) ? 1 : 3;
    p.kernel = random.chance(60) ? 3 : random.between(1, 5);
    p.step = random.chance(60) ? 1 : random.between(2, 3);
    p.padding = random.between(0, 3);
    p.dilation = random.chance(80) ? 1 : 2;
    p.activation = static_cast<Activation>(random.between(0, 3));
    p.derived = random.chance(60) ? Activation::kNone : static_cast<Activation>(random.between(1, 3));
    p.bias = random.chance(50);
    p.residual = random.chance(40);
    p.input = {random.between(1, 2), p.groups * width, random.between(1, 9), random.between(1, 40),
               channels_last};
    const int64_t extent = p.dilation * (p.kernel - 1) + 1;
    const int64_t rows = (p.input.h + 2 * p.padding - extent) / p.step + 1;
    const int64_t cols = (p.input.w + 2 * p.padding - extent) / p.step + 1;
    if (p.input.h + 2 * p.padding < extent || p.input.w + 2 * p.padding < extent) continue;
    p.output = {p.input.n, p.groups * width * multiplier, rows, cols, channels_last};
    return p;
  }
}

Strides4 strides_of(const Image& i) {
  if (i.channels_last) return {i.h * i.w * i.c, 1, i.w * i.c, i.c};
  return {i.c * i.h * i.w, i.h * i.w, i.w, 1};
}

struct Data {
  Buffer input, derived, weight, wide_weight, bias, grad, residual;
  Data(const Problem& p, Random& random)
      : input(p.dtype, p.input.size()),
        derived(p.dtype, p.input.size()),
        weight(p.dtype, p.weights()),
        wide_weight(accumulator_of(p.dtype), p.weights()),
        bias(accumulator_of(p.dtype), p.output.c),
        grad(p.dtype, p.output.size()),
        residual(p.dtype, p.output.size()) {
    for (Buffer* b : {&input, &derived, &weight, &bias, &grad, &residual}) b->randomise(random);
    for (int64_t i = 0; i < p.weights(); ++i) wide_weight.set(i, weight.get(i));
  }
};

struct Expected {
  std::vector<double> output, grad_weight, grad_bias;
};

Expected naive(const Problem& p, const Data& d) {
  Expected e{std::vector<double>(static_cast<size_t>(p.output.size())),
             std::vector<double>(static_cast<size_t>(p.weights())),
             std::vector<double>(static_cast<size_t>(p.output.c))};
  for (int64_t n = 0; n < p.output.n; ++n) {
    for (int64_t m = 0; m < p.output.c; ++m) {
      for (int64_t y = 0; y < p.output.h; ++y) {
        for (int64_t x = 0; x < p.output.w; ++x) {
          const int64_t at = p.output.at(n, m, y, x);
          const double g = d.grad.get(at);
          double sum = (p.bias ? d.bias.get(m) : 0) + (p.residual ? d.residual.get(at) : 0);
          e.grad_bias[static_cast<size_t>(m)] += g;
          for (int64_t c = 0; c < p.sources(); ++c) {
            for (int64_t i = 0; i < p.kernel * p.kernel; ++i) {
              const int64_t h = y * p.step + i / p.kernel * p.dilation - p.padding;
              const int64_t w = x * p.step + i % p.kernel * p.dilation - p.padding;
              if (h < 0 || h >= p.input.h || w < 0 || w >= p.input.w) continue;
              const int64_t from = p.input.at(n, m / p.results() * p.sources() + c, h, w);
              const int64_t k = (m * p.sources() + c) * p.kernel * p.kernel + i;
              const double v = d.input.get(from);
              sum += d.weight.get(k) * v * activation_derivative(p.derived, d.derived.get(from));
              e.grad_weight[static_cast<size_t>(k)] += g * v;
            }
          }
          e.output[static_cast<size_t>(at)] = activated(p.activation, sum);
        }
      }
    }
  }
  return e;
}

int64_t additions_of(const Problem& p) { return p.sources() * p.kernel * p.kernel; }

// What the params of both kernels say of the source.
template <typename Params>
Params source_params(const Problem& p, const Data& d) {
  Params params{};
  params.groups = p.groups;
  params.source_channels = p.sources();
  params.result_channels = p.results();
  params.source = d.input.data();
  if (p.derived != Activation::kNone) params.activated = d.derived.data();
  params.source_activation = p.derived;
  params.height = p.input.h;
  params.width = p.input.w;
  params.step = p.step;
  params.copied = p.step > 1 || params.activated != nullptr || p.dtype != accumulator_of(p.dtype);
  return params;
}

void run_planes(const Conv2dPlanesKernels& table, const Problem& p, const Data& d, const Expected& e,
                const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  auto params = source_params<Conv2dPlanesParams>(p, d);
  params.part_width = (p.input.w + p.step - 1) / p.step;
  params.taps_h = params.taps_w = p.kernel;
  std::vector<int64_t> rows;
  std::vector<PlanesTap> taps;
  for (int64_t k = 0; k < p.kernel; ++k) {
    const int64_t offset = k * p.dilation - p.padding;
    const int64_t part = ((offset % p.step) + p.step) % p.step;
    rows.push_back(offset);
    taps.push_back(
        {(offset - part) / p.step, (p.input.w - part + p.step - 1) / p.step, part * params.part_width});
  }
  params.tap_row = rows.data();
  params.tap = taps.data();
  params.weight = d.wide_weight.data();
  params.bias = p.bias ? d.bias.data() : nullptr;
  params.residual = p.residual ? d.residual.data() : nullptr;
  params.activation = p.activation;
  Buffer output(p.dtype, p.output.size());
  params.result = output.data();
  params.rows = p.output.h;
  params.cols = p.output.w;
  Buffer scratch(accumulator_of(p.dtype), p.sources() * p.input.h * p.step * params.part_width);
  for (int64_t i = 0; i < p.input.n * p.groups; ++i) {
    const int64_t half = p.output.h / 2;
    table.group[dtype](params, i / p.groups, i % p.groups, 0, half, scratch.data());
    table.group[dtype](params, i / p.groups, i % p.groups, half, p.output.h, scratch.data());
  }
  expect_close(output, e.output, additions_of(p), 1, what + ": output");
  if (p.step > 1 || p.dilation > 1 || p.input.c != p.groups || p.output.c != p.groups ||
      !table.knows_window(p.kernel, p.kernel)) {
    return;
  }
  Conv2dPlanesWeightParams weight{};
  weight.forward = params;
  weight.gradient = d.grad.data();
  const int64_t window = p.kernel * p.kernel;
  Buffer copies(accumulator_of(p.dtype), p.input.h * p.input.w + p.output.h * p.output.w);
  Buffer grad_weight(accumulator_of(p.dtype), p.weights()), partial(accumulator_of(p.dtype), window + 1);
  for (int64_t c = 0; c < p.groups; ++c) {
    partial.fill(0);
    for (int64_t n = 0; n < p.input.n; ++n) table.weight[dtype](weight, n, c, partial.data(), copies.data());
    for (int64_t k = 0; k < window; ++k) grad_weight.set(c * window + k, partial.get(k));
  }
  expect_close(grad_weight, e.grad_weight, p.output.n * p.output.h * p.output.w, 1, what + ": weight");
}

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Four equal phases: every result is there four times.
void run_phases(const Conv2dFlatKernels& table, const Problem& p, const Conv2dFlatParams& params,
                const Expected& e, const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t height = 2 * p.output.h, width = 2 * p.output.w, planes = p.output.n * p.output.c;
  const std::vector<Conv2dFlatParams> phases(4, params);
  Buffer result(p.dtype, planes * height * width), each(p.dtype, p.output.size());
  Buffer scratch(accumulator_of(p.dtype),
                 4 * p.results() * params.size + table.lanes[dtype] + p.sources() * params.channel_stride);
  const Conv2dFlatPhases all{2, phases.data(), p.output.w, result.data(), height, width};
  for (int64_t i = 0; i < p.input.n * p.groups; ++i) {
    table.phases[dtype](all, i / p.groups, i % p.groups, scratch.data());
  }
  for (int64_t phase = 0; phase < 4; ++phase) {
    for (int64_t i = 0; i < p.output.size(); ++i) {
      const int64_t plane = i / params.size, y = i % params.size / p.output.w, x = i % p.output.w;
      each.set(i, result.get((plane * height + 2 * y + phase / 2) * width + 2 * x + phase % 2));
    }
    expect_close(each, e.output, additions_of(p), 1, what + ": flat phase");
  }
}

void run_flat(const Conv2dFlatKernels& table, const Problem& p, const Data& d, const Expected& e,
              const std::string& what) {
  const int64_t parts = (p.input.w + p.step - 1) / p.step;
  if (p.step == 1 ? p.input.w != p.output.w : parts > p.output.w) return;
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes[dtype], window = p.kernel * p.kernel;
  auto params = source_params<Conv2dFlatParams>(p, d);
  params.row_stride = p.output.w;
  params.part_size = (p.input.h + p.step - 1) / p.step * p.output.w;
  params.channel_stride = p.step * p.step * params.part_size;
  params.taps = window;
  params.taps_w = p.kernel;
  params.size = p.output.h * p.output.w;
  std::vector<int64_t> offset;
  std::vector<uint16_t> mask(
      static_cast<size_t>(((params.size + lanes - 1) / lanes + kFlatSpareVectors) * window));
  for (int64_t k = 0; k < window; ++k) {
    const int64_t row = k / p.kernel * p.dilation - p.padding, col = k % p.kernel * p.dilation - p.padding;
    const int64_t y = floor_div(row, p.step), x = floor_div(col, p.step);
    offset.push_back(((row - y * p.step) * p.step + col - x * p.step) * params.part_size + y * p.output.w +
                     x);
    for (int64_t i = 0; i < params.size; ++i) {
      const int64_t h = i / p.output.w * p.step + row, w = i % p.output.w * p.step + col;
      if (h < 0 || h >= p.input.h || w < 0 || w >= p.input.w) continue;
      mask[static_cast<size_t>(i / lanes * window + k)] |= static_cast<uint16_t>(1u << i % lanes);
    }
  }
  params.offset = offset.data();
  params.mask = mask.data();
  std::vector<uint8_t> uniform;
  for (size_t v = 0; v < mask.size() / static_cast<size_t>(window); ++v) {
    uniform.push_back(1);
    for (int64_t k = 0; k < window; ++k) {
      const auto first = v * static_cast<size_t>(window);
      if (mask[first + static_cast<size_t>(k)] != mask[first + static_cast<size_t>(k % p.kernel)])
        uniform[v] = 0;
    }
  }
  params.uniform = uniform.data();
  Buffer weight(accumulator_of(p.dtype), p.weights());
  for (int64_t i = 0; i < p.weights(); ++i) {
    const int64_t k = i % window, c = i / window % p.sources(), m = i / window / p.sources();
    const int64_t g = m / p.results();
    weight.set(((g * p.sources() + c) * window + k) * p.results() + m % p.results(), d.wide_weight.get(i));
  }
  params.weight = weight.data();
  params.bias = p.bias ? d.bias.data() : nullptr;
  params.residual = p.residual ? d.residual.data() : nullptr;
  params.activation = p.activation;
  Buffer output(p.dtype, p.output.size());
  params.result = output.data();
  const int64_t copy = p.sources() * params.channel_stride;
  Buffer scratch(accumulator_of(p.dtype), copy);
  for (int64_t i = 0; i < p.input.n * p.groups; ++i) {
    table.group[dtype](params, i / p.groups, i % p.groups, scratch.data());
  }
  expect_close(output, e.output, additions_of(p), 1, what + ": flat output");
  if (p.step == 1 && !p.residual) run_phases(table, p, params, e, what);
  params.activated = nullptr;
  params.copied = p.step > 1 || p.dtype != accumulator_of(p.dtype);
  const Conv2dFlatWeightParams gradient{params, d.grad.data(), nullptr, Activation::kNone};
  Buffer sums(accumulator_of(p.dtype),
              p.results() * ((p.sources() * window + 1) * lanes + params.size) + copy);
  Buffer grad_weight(accumulator_of(p.dtype), p.weights()), grad_bias(accumulator_of(p.dtype), p.output.c);
  const int64_t element = p.dtype == DType::kFloat64 ? 8 : 4;
  for (int64_t g = 0; g < p.groups; ++g) {
    const int64_t first = g * p.results();
    table.weight[dtype](gradient, 0, p.input.n, g,
                        static_cast<char*>(grad_weight.data()) + first * p.sources() * window * element,
                        static_cast<char*>(grad_bias.data()) + first * element, sums.data());
  }
  const int64_t pixels = p.output.n * p.output.h * p.output.w;
  expect_close(grad_weight, e.grad_weight, pixels, 1, what + ": flat weight");
  expect_close(grad_bias, e.grad_bias, pixels, 1, what + ": flat bias");
}

void run_channels(const Conv2dChannelsKernels& table, const Conv2dChannelsWeightKernels& weight_table,
                  const Problem& p, const Data& d, const Expected& e, const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes[dtype], width = p.sources();
  Conv2dChannelsParams params{};
  params.groups = p.groups;
  params.mode = width == 1 ? ChannelsMode::kVertical : ChannelsMode::kPermuted;
  if (width >= lanes) params.mode = ChannelsMode::kBroadcast;
  params.source = {d.input.data(), strides_of(p.input), p.input.h, p.input.w, nullptr, {}, p.derived};
  if (p.derived != Activation::kNone) {
    params.source.activated = d.derived.data();
    params.source.activated_strides = strides_of(p.input);
  }
  params.source_channels = width;
  params.result_channels = p.output.c;
  params.weight = d.weight.data();
  const int64_t window = p.kernel * p.kernel;
  params.weight_group = width * width * window;
  params.weight_result = width * window;
  params.weight_source = window;
  params.weight_h = p.kernel;
  params.weight_w = 1;
  params.bias = p.bias ? d.bias.data() : nullptr;
  params.residual = p.residual ? d.residual.data() : nullptr;
  params.activation = p.activation;
  Buffer output(p.dtype, p.output.size());
  params.result = output.data();
  params.result_strides = strides_of(p.output);
  std::vector<ChannelsBlock> blocks;
  std::vector<int32_t> permutation;
  for (int64_t first = 0; first < p.output.c; first += lanes) {
    const int64_t channel = std::min(first, p.output.c - lanes);
    blocks.push_back({channel, params.mode == ChannelsMode::kBroadcast ? channel / width * width : channel});
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        permutation.push_back(static_cast<int32_t>((channel + lane) / width * width + c - channel));
      }
    }
  }
  params.blocks = static_cast<int64_t>(blocks.size());
  params.block = blocks.data();
  params.permutation = permutation.data();
  Buffer zeros(accumulator_of(p.dtype), p.input.c + lanes);
  zeros.fill(0);
  params.zeros = zeros.data();
  std::vector<int64_t> taps, kernel;
  for (int64_t k = 0; k < p.kernel; ++k) taps.push_back(k * p.dilation - p.padding), kernel.push_back(k);
  Buffer packed(accumulator_of(p.dtype), params.blocks * window * width * lanes);
  const ChannelsPhase phase{
      0,        0,        1,           1,           p.output.h,    p.output.w,    p.step,       p.step,
      p.kernel, p.kernel, taps.data(), taps.data(), kernel.data(), kernel.data(), packed.data()};
  params.phases = 1;
  params.phase = &phase;
  const int64_t band_rows = std::max<int64_t>(1, p.output.h / 2);
  for (int64_t b = 0; b < params.blocks; ++b) table.pack[dtype](params, 0, b);
  Buffer scratch(accumulator_of(p.dtype), p.input.c * p.input.h * p.input.w);
  for (int64_t n = 0; n < p.input.n; ++n) {
    for (int64_t first = 0; first < p.output.h; first += band_rows) {
      table.band[dtype](params, n, first, first + band_rows, scratch.data());
    }
  }
  expect_close(output, e.output, additions_of(p), 1, what + ": output");
  Conv2dChannelsWeightParams weight{};
  weight.forward = params;
  weight.gradient = d.grad.data();
  weight.gradient_strides = strides_of(p.output);
  Buffer partial(accumulator_of(p.dtype), packed.size()),
      bias(accumulator_of(p.dtype), params.blocks * lanes);
  const int64_t span = (p.kernel - 1) * p.dilation + 1;
  Buffer lines(accumulator_of(p.dtype), p.output.c * p.output.w + span * p.input.w * p.input.c);
  partial.fill(0);
  bias.fill(0);
  for (int64_t n = 0; n < p.input.n; ++n) {
    weight_table.weight[dtype](weight, n, 0, p.output.h, partial.data(), bias.data(), lines.data());
  }
  Buffer grad_weight(accumulator_of(p.dtype), p.weights()), grad_bias(accumulator_of(p.dtype), p.output.c);
  for (int64_t i = 0; i < partial.size(); ++i) {
    const int64_t lane = i % lanes, x = i / lanes % p.kernel, rest = i / lanes / p.kernel;
    const int64_t c = rest % width, y = rest / width % p.kernel, b = rest / width / p.kernel;
    const int64_t m = blocks[static_cast<size_t>(b)].channel + lane;
    grad_weight.set((m * width + c) * window + y * p.kernel + x, partial.get(i));
    grad_bias.set(m, bias.get(b * lanes + lane));
  }
  const int64_t pixels = p.output.n * p.output.h * p.output.w;
  expect_close(grad_weight, e.grad_weight, pixels, 1, what + ": weight");
  expect_close(grad_bias, e.grad_bias, pixels, 1, what + ": bias");
}

}  // namespace

void test_conv2d_grouped(int cases) {
  const auto planes = tables(cpu::baseline::conv2d_planes_kernels, cpu::avx2::conv2d_planes_kernels,
                             cpu::avx512::conv2d_planes_kernels);
  const auto flat = tables(cpu::baseline::conv2d_flat_kernels, cpu::avx2::conv2d_flat_kernels,
                           cpu::avx512::conv2d_flat_kernels);
  const auto channels = tables(cpu::baseline::conv2d_channels_kernels, cpu::avx2::conv2d_channels_kernels,
                               cpu::avx512::conv2d_channels_kernels);
  const auto weights =
      tables(cpu::baseline::conv2d_channels_weight_kernels, cpu::avx2::conv2d_channels_weight_kernels,
             cpu::avx512::conv2d_channels_weight_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const bool channels_last = random.chance(50);
    const Problem p = draw(random, channels_last);
    const Data d(p, random);
    const Expected e = naive(p, d);
    for (int isa = 0; isa < planes.count; ++isa) {
      char what[200];
      std::snprintf(what, sizeof(what), "%s case %d: %s %lldx%lldx%lldx%lld g%lld k%lld s%lld p%lld d%lld",
                    planes.name(isa), number, name_of(p.dtype), (long long)p.input.n, (long long)p.input.c,
                    (long long)p.input.h, (long long)p.input.w, (long long)p.groups, (long long)p.kernel,
                    (long long)p.step, (long long)p.padding, (long long)p.dilation);
      if (channels_last) {
        run_channels(*channels.table[isa], *weights.table[isa], p, d, e, what);
      } else {
        run_planes(*planes.table[isa], p, d, e, what);
        run_flat(*flat.table[isa], p, d, e, what);
      }
    }
  }
}

}  // namespace d2lfast::test
