#include <algorithm>
#include <utility>

#include "../../csrc/kernels/conv2d_batch.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(Conv2dBatchKernels, conv2d_batch_kernels);

namespace d2lfast::test {
namespace {

struct Planes {
  int64_t channels, height, width;
  bool channels_last;
  int64_t size() const { return channels * height * width; }
  int64_t at(int64_t c, int64_t h, int64_t w) const {
    return channels_last ? (h * width + w) * channels + c : (c * height + h) * width + w;
  }
  BatchPlanes described(int64_t lanes) const {
    if (channels_last) return {channels, height, width, lanes, width * channels * lanes, channels * lanes};
    return {channels, height, width, height * width * lanes, width * lanes, lanes};
  }
};

struct Problem {
  DType dtype;
  Planes source, result;
  int64_t kernel_h, kernel_w, pad_h, pad_w;
  int64_t images;  // of the widest vectors; others take as many as they hold
  bool bias, residual;
};

float* floats(Buffer& buffer) { return static_cast<float*>(buffer.data()); }
const float* floats(const Buffer& buffer) { return static_cast<const float*>(buffer.data()); }

void run(const Conv2dBatchKernels& table, const Problem& p, Random& random, const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes, images = std::min(p.images, lanes);
  const int64_t window = p.kernel_h * p.kernel_w, weights = p.result.channels * p.source.channels * window;
  const auto draw = [&](Buffer& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, random.uniform());
  };
  Buffer source(p.dtype, images * p.source.size()), grad(p.dtype, images * p.result.size());
  Buffer residual(p.dtype, grad.size());
  Buffer weight(DType::kFloat32, weights), bias(DType::kFloat32, p.result.channels);
  for (Buffer* b : {&source, &grad, &weight, &bias, &residual}) draw(*b);
  Buffer interleaved(DType::kFloat32, p.source.size() * lanes),
      grads(DType::kFloat32, p.result.size() * lanes), added(DType::kFloat32, p.result.size() * lanes);
  table.interleave[dtype](source.data(), nullptr, Activation::kNone, p.source.size(), images,
                          floats(interleaved));
  table.interleave[dtype](grad.data(), nullptr, Activation::kNone, p.result.size(), images, floats(grads));
  table.interleave[dtype](residual.data(), nullptr, Activation::kNone, p.result.size(), images,
                          floats(added));
  const Conv2dBatchParams params{p.source.described(lanes),
                                 p.result.described(lanes),
                                 p.kernel_h,
                                 p.kernel_w,
                                 p.pad_h,
                                 p.pad_w,
                                 floats(std::as_const(weight)),
                                 p.bias ? floats(std::as_const(bias)) : nullptr,
                                 Activation::kReLU};
  Buffer sums(DType::kFloat32, p.result.size() * lanes), output(p.dtype, images * p.result.size());
  table.result(params, floats(std::as_const(interleaved)),
               p.residual ? floats(std::as_const(added)) : nullptr, floats(sums));
  table.separate[dtype](floats(std::as_const(sums)), p.result.size(), images, output.data());
  Buffer partial(DType::kFloat32, weights * lanes), partial_bias(DType::kFloat32, p.result.channels * lanes);
  partial.fill(0);
  partial_bias.fill(0);
  table.weight(params, floats(std::as_const(interleaved)), floats(std::as_const(grads)), floats(partial),
               floats(partial_bias));
  Buffer grad_weight(DType::kFloat32, weights), grad_bias(DType::kFloat32, p.result.channels);
  table.sum(floats(std::as_const(partial)), 1, 0, weights, floats(grad_weight));
  table.sum(floats(std::as_const(partial_bias)), 1, 0, p.result.channels, floats(grad_bias));

  std::vector<double> expected(static_cast<size_t>(output.size())),
      expected_weight(static_cast<size_t>(weights)), expected_bias(static_cast<size_t>(p.result.channels));
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t m = 0; m < p.result.channels; ++m) {
      for (int64_t y = 0; y < p.result.height; ++y) {
        for (int64_t x = 0; x < p.result.width; ++x) {
          const int64_t to = n * p.result.size() + p.result.at(m, y, x);
          double sum = (p.bias ? bias.get(m) : 0) + (p.residual ? residual.get(to) : 0);
          expected_bias[static_cast<size_t>(m)] += grad.get(to);
          for (int64_t c = 0; c < p.source.channels; ++c) {
            for (int64_t k = 0; k < window; ++k) {
              const int64_t row = y + k / p.kernel_w - p.pad_h, col = x + k % p.kernel_w - p.pad_w;
              if (row < 0 || row >= p.source.height || col < 0 || col >= p.source.width) continue;
              const int64_t w = (m * p.source.channels + c) * window + k;
              const double value = source.get(n * p.source.size() + p.source.at(c, row, col));
              sum += weight.get(w) * value;
              expected_weight[static_cast<size_t>(w)] += grad.get(to) * value;
            }
          }
          expected[static_cast<size_t>(to)] = std::max(sum, 0.0);
        }
      }
    }
  }
  const int64_t pixels = images * p.result.height * p.result.width;
  expect_close(output, expected, p.source.channels * window + 1, 1, what + ": output");
  expect_close(grad_weight, expected_weight, pixels, 1, what + ": weight");
  expect_close(grad_bias, expected_bias, pixels, 1, what + ": bias");
}

}  // namespace

void test_conv2d_batch(int cases) {
  const auto all = tables(cpu::baseline::conv2d_batch_kernels, cpu::avx2::conv2d_batch_kernels,
                          cpu::avx512::conv2d_batch_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
    Problem p{};
    p.dtype = kTypes[random.between(0, 2)];
    p.kernel_h = random.between(1, 5);
    p.kernel_w = random.chance(50) ? 3 : 5;
    p.pad_h = random.between(-1, 4);
    p.pad_w = random.between(-1, 6);
    p.result = {random.between(1, 9), random.between(1, 9), random.between(4, 20), random.chance(50)};
    p.source = {random.between(1, 4), std::max<int64_t>(1, p.result.height - 2 * p.pad_h + p.kernel_h - 1),
                std::max<int64_t>(1, p.result.width - 2 * p.pad_w + p.kernel_w - 1), random.chance(50)};
    p.images = random.between(1, 16);
    p.bias = random.chance(50);
    p.residual = random.chance(40);
    for (int isa = 0; isa < all.count; ++isa) {
      char what[200];
      std::snprintf(what, sizeof(what),
                    "%s case %d: %s %lldx%lldx%lld to %lldx%lldx%lld k%lldx%lld p%lld,%lld", all.name(isa),
                    number, name_of(p.dtype), (long long)p.source.channels, (long long)p.source.height,
                    (long long)p.source.width, (long long)p.result.channels, (long long)p.result.height,
                    (long long)p.result.width, (long long)p.kernel_h, (long long)p.kernel_w,
                    (long long)p.pad_h, (long long)p.pad_w);
      Random values(static_cast<uint64_t>(number) + 1000);
      run(*all.table[isa], p, values, what);
    }
  }
}

}  // namespace d2lfast::test
