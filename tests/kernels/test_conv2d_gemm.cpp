#include <algorithm>

#include "../../csrc/kernels/conv2d_gemm.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(Conv2dGemmKernels, conv2d_gemm_kernels);

namespace d2lfast::test {
namespace {

struct Problem {
  DType dtype;
  int64_t batch, channels, pixels, results;
  int64_t depth, run, block, panels;  // how the caller divides the work; run 0: whole images
  bool bias, residual;
  Activation activation;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

GemmImages images_of(const Problem& p, int64_t channels, const Buffer& data, const Buffer* activated) {
  return {data.data(), activated != nullptr ? activated->data() : nullptr, p.activation, p.batch, channels,
          p.pixels};
}

void run_product(const Conv2dGemmKernels& table, const Problem& p, const GemmImages& source,
                 const Buffer& weight, bool transposed, const Buffer* bias, const Buffer* residual,
                 Activation activation, int64_t results, Buffer& result) {
  const int dtype = static_cast<int>(p.dtype);
  Buffer packed(accumulator_of(p.dtype), weight.size());
  Conv2dGemmParams params{};
  params.source = source;
  params.weight = weight.data();
  params.weight_result = transposed ? 1 : p.channels;
  params.weight_source = transposed ? p.channels : 1;
  params.weight_size = weight.size();
  params.packed = packed.data();
  params.depth = p.depth;
  params.bias = bias != nullptr ? bias->data() : nullptr;
  params.residual = residual != nullptr ? residual->data() : nullptr;
  params.activation = activation;
  params.result = result.data();
  params.result_channels = results;
  table.pack[dtype](params, 0, divide_up(results, table.rows));
  const int64_t all = p.batch * p.pixels, run = p.run > 0 ? std::min(p.run, p.pixels) : 2 * p.pixels;
  for (int64_t begin = 0; begin < all;) {
    int64_t end = std::min(begin + run, all);
    if (p.run > 0) end = std::min(end, (begin / p.pixels + 1) * p.pixels);
    const int64_t columns = divide_up(end - begin, table.columns[dtype]) * table.columns[dtype];
    Buffer scratch(accumulator_of(p.dtype), (results + std::min(p.depth, source.channels)) * columns);
    table.product[dtype](params, begin, end, std::min(end + run, all), scratch.data());
    begin = end;
  }
}

void run_weight(const Conv2dGemmKernels& table, const Problem& p, const GemmImages& source,
                const GemmImages& gradient, Buffer& grad_weight, Buffer& grad_bias) {
  const int dtype = static_cast<int>(p.dtype);
  const DType accumulator = accumulator_of(p.dtype);
  const int64_t columns = table.columns[dtype], lanes = columns / 2;
  const int64_t panels = divide_up(p.channels, columns);
  Conv2dGemmWeightParams params{source, gradient, divide_up(p.block, lanes) * lanes, p.panels};
  const int64_t steps = p.batch * divide_up(p.pixels, params.block);
  for (int64_t panel = 0; panel < panels; panel += p.panels) {
    Buffer sums(accumulator, p.panels * p.results * columns), bias_sums(accumulator, p.results);
    Buffer scratch(accumulator, (p.panels * columns + p.results) * (params.block + lanes));
    table.weight[dtype](params, panel, 0, steps, sums.data(), panel == 0 ? bias_sums.data() : nullptr,
                        scratch.data());
    for (int64_t c = panel * columns; c < std::min(p.channels, (panel + p.panels) * columns); ++c) {
      const int64_t j = c / columns - panel;
      for (int64_t m = 0; m < p.results; ++m) {
        grad_weight.set(m * p.channels + c, sums.get((j * p.results + m) * columns + c % columns));
      }
    }
    if (panel > 0) continue;
    for (int64_t m = 0; m < p.results; ++m) grad_bias.set(m, bias_sums.get(m));
  }
}

struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

Expected naive(const Problem& p, const Buffer& input, const Buffer& weight, const Buffer& bias,
               const Buffer& residual, const Buffer& grad, const Buffer* output_of) {
  Expected e{std::vector<double>(static_cast<size_t>(p.batch * p.results * p.pixels)),
             std::vector<double>(static_cast<size_t>(input.size())),
             std::vector<double>(static_cast<size_t>(weight.size())),
             std::vector<double>(static_cast<size_t>(p.results))};
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t m = 0; m < p.results; ++m) {
      for (int64_t x = 0; x < p.pixels; ++x) {
        const int64_t at = (n * p.results + m) * p.pixels + x;
        const double g = grad.get(at) *
                         (output_of != nullptr ? activation_derivative(p.activation, output_of->get(at)) : 1);
        double sum = (p.bias ? bias.get(m) : 0) + (p.residual ? residual.get(at) : 0);
        e.grad_bias[static_cast<size_t>(m)] += g;
        for (int64_t c = 0; c < p.channels; ++c) {
          const int64_t from = (n * p.channels + c) * p.pixels + x, k = m * p.channels + c;
          sum += input.get(from) * weight.get(k);
          e.grad_input[static_cast<size_t>(from)] += g * weight.get(k);
          e.grad_weight[static_cast<size_t>(k)] += g * input.get(from);
        }
        e.output[static_cast<size_t>(at)] = activated(p.activation, sum);
      }
    }
  }
  return e;
}

Problem draw(Random& random) {
  Problem p{};
  p.dtype = static_cast<DType>(random.between(0, 3));
  p.batch = random.between(1, 4);
  p.channels = random.chance(30) ? random.between(30, 80) : random.between(1, 20);
  p.results = random.chance(30) ? random.between(30, 80) : random.between(1, 20);
  p.pixels = random.chance(30) ? random.between(60, 150) : random.between(1, 50);
  p.depth = random.chance(50) ? 256 : random.between(1, 30);
  p.run = random.chance(50) ? 0 : random.between(1, 80);
  p.block = random.between(1, 90);
  p.panels = random.between(1, 3);
  p.bias = random.chance(60);
  p.residual = random.chance(40);
  p.activation = static_cast<Activation>(random.chance(50) ? 0 : random.between(1, 3));
  return p;
}

std::string describe(const Problem& p, int64_t number) {
  char text[240];
  std::snprintf(
      text, sizeof(text),
      "gemm case %lld %s batch %lld channels %lld pixels %lld results %lld activation %d depth %lld "
      "run %lld block %lld panels %lld",
      (long long)number, name_of(p.dtype), (long long)p.batch, (long long)p.channels, (long long)p.pixels,
      (long long)p.results, static_cast<int>(p.activation), (long long)p.depth, (long long)p.run,
      (long long)p.block, (long long)p.panels);
  return text;
}

}  // namespace

void test_conv2d_gemm(int cases) {
  const auto all = tables(cpu::baseline::conv2d_gemm_kernels, cpu::avx2::conv2d_gemm_kernels,
                          cpu::avx512::conv2d_gemm_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p = draw(random);
    Buffer input(p.dtype, p.batch * p.channels * p.pixels), weight(p.dtype, p.results * p.channels);
    Buffer bias(p.dtype, p.results), grad(p.dtype, p.batch * p.results * p.pixels);
    Buffer residual(p.dtype, grad.size());
    for (Buffer* buffer : {&input, &weight, &bias, &grad, &residual}) buffer->randomise(random);
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " " + describe(p, number);
      Buffer output(p.dtype, grad.size()), grad_input(p.dtype, input.size());
      Buffer grad_weight(p.dtype, weight.size()), grad_bias(p.dtype, p.results);
      const GemmImages source = images_of(p, p.channels, input, nullptr);
      run_product(*all.table[isa], p, source, weight, false, p.bias ? &bias : nullptr,
                  p.residual ? &residual : nullptr, p.activation, p.results, output);
      const Buffer* derived = p.activation != Activation::kNone ? &output : nullptr;
      const GemmImages gradient = images_of(p, p.results, grad, derived);
      run_product(*all.table[isa], p, gradient, weight, true, nullptr, nullptr, Activation::kNone, p.channels,
                  grad_input);
      run_weight(*all.table[isa], p, source, gradient, grad_weight, grad_bias);

      const Expected e = naive(p, input, weight, bias, residual, grad, derived);
      const int64_t pixels = p.batch * p.pixels;
      expect_close(output, e.output, p.channels, 1, what + ": output");
      expect_close(grad_input, e.grad_input, p.results, 1, what + ": gradient of the input");
      expect_close(grad_weight, e.grad_weight, pixels, 1, what + ": gradient of the weight");
      expect_close(grad_bias, e.grad_bias, pixels, 1, what + ": gradient of the bias");
    }
  }
}

}  // namespace d2lfast::test
