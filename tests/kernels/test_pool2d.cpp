#include <algorithm>

#include "../../csrc/ops/cpu/pool2d_tables.h"
#include "support.h"

namespace d2lfast::test {
namespace {

// The families' tables of one instruction set.
struct Pool2dTables {
  const MaxPool2dKernels& max;
  const MaxPool2dGradientKernels& max_gradient;
  const AvgPool2dKernels& average;
  const AdaptivePool2dKernels& adaptive;
};

struct Problem {
  DType dtype;
  Image input, output;
  Window2d window;
  bool count_include_pad, ties, stream;
  int64_t divisor;
};

int64_t extent(int64_t kernel, int64_t dilation) { return dilation * (kernel - 1) + 1; }

// Length of the output, by torch's rule: with ceil_mode the last window must start inside the padded input.
int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil) {
  const int64_t room = size + 2 * pad - extent(kernel, dilation);
  if (room < 0) return 0;
  int64_t out = (room + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (out - 1) * stride >= size + pad) --out;
  return out;
}

Problem draw(Random& random) {
  for (;;) {
    Problem p{};
    p.dtype = static_cast<DType>(random.between(0, 3));
    Window2d& k = p.window;
    k.kernel_h = random.chance(70) ? random.between(1, 3) : random.between(1, 18);
    k.kernel_w = random.chance(70) ? random.between(1, 3) : random.between(1, 18);
    k.stride_h = random.between(1, 4);
    k.stride_w = random.between(1, 4);
    k.pad_h = random.between(0, k.kernel_h / 2);
    k.pad_w = random.between(0, k.kernel_w / 2);
    k.dilation_h = random.chance(80) ? 1 : random.between(2, 3);
    k.dilation_w = random.chance(80) ? 1 : random.between(2, 3);
    const bool last = random.chance(50), ceil = random.chance(40);
    p.input = {random.between(1, 3), random.between(1, 37), random.between(1, 20), random.between(1, 40),
               last};
    p.output = {p.input.n, p.input.c, pooled(p.input.h, k.kernel_h, k.stride_h, k.pad_h, k.dilation_h, ceil),
                pooled(p.input.w, k.kernel_w, k.stride_w, k.pad_w, k.dilation_w, ceil), last};
    p.count_include_pad = random.chance(50);
    p.divisor = random.chance(70) ? 0 : random.chance(50) ? random.between(1, 9) : -random.between(1, 9);
    p.ties = random.chance(50);
    p.stream = random.chance(50);
    if (p.output.h > 0 && p.output.w > 0) return p;
  }
}

std::string describe(const Problem& p, const char* what, int number) {
  const Window2d& k = p.window;
  char text[320];
  std::snprintf(
      text, sizeof(text),
      "%s case %d %s %lldx%lldx%lldx%lld to %lldx%lld%s kernel %lldx%lld stride %lld,%lld padding %lld,%lld "
      "dilation %lld,%lld",
      what, number, name_of(p.dtype), (long long)p.input.n, (long long)p.input.c, (long long)p.input.h,
      (long long)p.input.w, (long long)p.output.h, (long long)p.output.w,
      p.input.channels_last ? " channels_last" : "", (long long)k.kernel_h, (long long)k.kernel_w,
      (long long)k.stride_h, (long long)k.stride_w, (long long)k.pad_h, (long long)k.pad_w,
      (long long)k.dilation_h, (long long)k.dilation_w);
  return text;
}

// Calls a kernel in two ranges of items, each with scratch of the exact size.
template <typename Kernel, typename Params>
void in_two(Kernel kernel, const Params& params, int64_t items, int64_t scratch, DType dtype) {
  for (const auto& [begin, end] : {std::pair{int64_t{0}, items / 2}, std::pair{items / 2, items}}) {
    Buffer memory(accumulator_of(dtype), scratch);
    kernel(params, begin, end, scratch > 0 ? memory.data() : nullptr);
  }
}

int64_t items(const Image& result) { return result.n * (result.channels_last ? result.h : result.c); }

void test_max(const Pool2dTables& tables, const Problem& p, const Buffer& input, const Buffer& grad,
              const std::string& what) {
  const Window2d& k = p.window;
  const int dtype = static_cast<int>(p.dtype);
  const int bytes = k.kernel_h * k.kernel_w <= 256 ? 1 : 4;
  const bool last = p.input.channels_last;
  Buffer output(p.dtype, p.output.size()), again(p.dtype, p.output.size()),
      grad_input(p.dtype, p.input.size());
  Exact<uint8_t> position(p.output.size() * bytes);
  const auto [n, c, h, w, input_last] = p.input;
  MaxPool2dParams params{
      input.data(), output.data(), position.data(), bytes, n, c, h, w, p.output.h, p.output.w, k, last};
  const int64_t scratch = tables.max.scratch(params);
  in_two(tables.max.forward[dtype], params, items(p.output), scratch, p.dtype);
  params.output = again.data();
  params.position = nullptr;
  in_two(tables.max.forward[dtype], params, items(p.output), scratch, p.dtype);
  const MaxPool2dBackwardParams backward{
      grad.data(), position.data(), grad_input.data(), bytes, n,    c,       h,
      w,           p.output.h,      p.output.w,        k,     last, p.stream};
  in_two(tables.max_gradient.backward[dtype], backward, items(p.input), tables.max_gradient.scratch(backward),
         p.dtype);

  std::vector<double> expected(static_cast<size_t>(p.output.size()));
  std::vector<double> expected_grad(static_cast<size_t>(p.input.size()));
  for (int64_t in = 0; in < n; ++in) {
    for (int64_t ic = 0; ic < c; ++ic) {
      for (int64_t y = 0; y < p.output.h; ++y) {
        for (int64_t x = 0; x < p.output.w; ++x) {
          double best = -INFINITY;
          int64_t winner = -1, from = -1;
          for (int64_t i = 0; i < k.kernel_h * k.kernel_w; ++i) {
            const int64_t ih = y * k.stride_h - k.pad_h + i / k.kernel_w * k.dilation_h;
            const int64_t iw = x * k.stride_w - k.pad_w + i % k.kernel_w * k.dilation_w;
            if (ih < 0 || ih >= h || iw < 0 || iw >= w) continue;
            const double value = input.get(p.input.at(in, ic, ih, iw));
            if (winner < 0 || value > best || std::isnan(value)) {
              best = value;
              winner = i;
              from = p.input.at(in, ic, ih, iw);
            }
          }
          const int64_t at = p.output.at(in, ic, y, x);
          expected[static_cast<size_t>(at)] = best;
          if (winner < 0) continue;
          expected_grad[static_cast<size_t>(from)] += grad.get(at);
          int32_t found = 0;
          std::memcpy(&found, &position[at * bytes], static_cast<size_t>(bytes));
          expect(found == winner,
                 what + ": position " + std::to_string(found) + ", expected " + std::to_string(winner));
        }
      }
    }
  }
  for (int64_t i = 0; i < output.size(); ++i) {
    const double a = output.get(i), b = expected[static_cast<size_t>(i)], again_i = again.get(i);
    expect(a == b || (std::isnan(a) && std::isnan(b)), what + ": output");
    expect(a == again_i || (std::isnan(a) && std::isnan(again_i)), what + ": output without positions");
  }
  expect_close(grad_input, expected_grad, k.kernel_h * k.kernel_w, 1, what + ": gradient");
}

void test_avg(const Pool2dTables& tables, Problem p, const Buffer& input, const Buffer& grad,
              const std::string& what) {
  Window2d& k = p.window;
  k.dilation_h = k.dilation_w = 1;
  const int dtype = static_cast<int>(p.dtype);
  const bool last = p.input.channels_last;
  const auto [n, c, h, w, input_last] = p.input;
  Buffer output(p.dtype, p.output.size()), grad_input(p.dtype, p.input.size());
  const AvgPool2dParams forward{input.data(),        output.data(), n,   c, h, w, p.output.h, p.output.w, k,
                                p.count_include_pad, p.divisor,     last};
  in_two(tables.average.forward[dtype], forward, items(p.output), tables.average.forward_scratch(forward),
         p.dtype);
  const AvgPool2dParams backward{
      grad.data(), grad_input.data(),   n,         c,    h,       w, p.output.h, p.output.w,
      k,           p.count_include_pad, p.divisor, last, p.stream};
  in_two(tables.average.backward[dtype], backward, items(p.input), tables.average.backward_scratch(backward),
         p.dtype);

  std::vector<double> expected(static_cast<size_t>(p.output.size()));
  std::vector<double> expected_grad(static_cast<size_t>(p.input.size()));
  for (int64_t in = 0; in < n; ++in) {
    for (int64_t ic = 0; ic < c; ++ic) {
      for (int64_t y = 0; y < p.output.h; ++y) {
        for (int64_t x = 0; x < p.output.w; ++x) {
          // The padded window, clipped to the padded input, then to the input.
          const int64_t top = y * k.stride_h - k.pad_h, left = x * k.stride_w - k.pad_w;
          const int64_t bottom = std::min(top + k.kernel_h, h + k.pad_h);
          const int64_t right = std::min(left + k.kernel_w, w + k.pad_w);
          const int64_t padded = (bottom - top) * (right - left);
          const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(bottom, h);
          const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(right, w);
          const int64_t inside = std::max<int64_t>(0, y1 - y0) * std::max<int64_t>(0, x1 - x0);
          const int64_t divisor = p.divisor != 0 ? p.divisor : p.count_include_pad ? padded : inside;
          const int64_t at = p.output.at(in, ic, y, x);
          double sum = 0;
          for (int64_t ih = y0; ih < y1; ++ih) {
            for (int64_t iw = x0; iw < x1; ++iw) {
              const int64_t from = p.input.at(in, ic, ih, iw);
              sum += input.get(from);
              expected_grad[static_cast<size_t>(from)] += grad.get(at) / static_cast<double>(divisor);
            }
          }
          expected[static_cast<size_t>(at)] = inside > 0 ? sum / static_cast<double>(divisor) : 0;
        }
      }
    }
  }
  const int64_t additions = k.kernel_h * k.kernel_w;
  const double largest = p.ties ? 2 : 1;
  expect_close(output, expected, additions, largest, what + ": output");
  expect_close(grad_input, expected_grad, additions, 1, what + ": gradient");
}

void test_adaptive(const Pool2dTables& tables, const Problem& p, const Buffer& input, const Buffer& grad,
                   const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  const bool last = p.input.channels_last;
  const auto [n, c, h, w, input_last] = p.input;
  const int64_t oh = p.output.h, ow = p.output.w;
  Buffer average(p.dtype, p.output.size()), average_grad(p.dtype, p.input.size());
  Buffer largest(p.dtype, p.output.size()), largest_grad(p.dtype, p.input.size());
  Exact<int64_t> indices(p.output.size());
  const auto& table = tables.adaptive;
  const int64_t scratch = last ? table.pixels_scratch(h, w, oh, ow) : table.scratch(w, oh, ow);
  in_two(table.avg_forward[dtype],
         AdaptivePool2dParams{input.data(), average.data(), nullptr, n, c, h, w, oh, ow, last},
         items(p.output), scratch, p.dtype);
  in_two(table.avg_backward[dtype],
         AdaptivePool2dParams{grad.data(), average_grad.data(), nullptr, n, c, h, w, oh, ow, last},
         items(p.input), scratch, p.dtype);
  in_two(table.max_forward[dtype],
         AdaptivePool2dParams{input.data(), largest.data(), indices.data(), n, c, h, w, oh, ow, last},
         items(p.output), scratch, p.dtype);
  in_two(table.max_backward[dtype],
         AdaptivePool2dParams{grad.data(), largest_grad.data(), indices.data(), n, c, h, w, oh, ow, last},
         last ? n : n * c, h * w * (last ? c : 1), p.dtype);

  std::vector<double> expected(static_cast<size_t>(p.output.size()));
  std::vector<double> expected_grad(static_cast<size_t>(p.input.size())), max_grad(expected_grad);
  for (int64_t in = 0; in < n; ++in) {
    for (int64_t ic = 0; ic < c; ++ic) {
      for (int64_t y = 0; y < oh; ++y) {
        for (int64_t x = 0; x < ow; ++x) {
          const int64_t y0 = y * h / oh, y1 = ((y + 1) * h + oh - 1) / oh;
          const int64_t x0 = x * w / ow, x1 = ((x + 1) * w + ow - 1) / ow;
          const int64_t at = p.output.at(in, ic, y, x);
          const double count = static_cast<double>((y1 - y0) * (x1 - x0));
          double sum = 0, best = -INFINITY;
          int64_t winner = y0 * w + x0;
          for (int64_t ih = y0; ih < y1; ++ih) {
            for (int64_t iw = x0; iw < x1; ++iw) {
              const int64_t from = p.input.at(in, ic, ih, iw);
              const double value = input.get(from);
              sum += value;
              expected_grad[static_cast<size_t>(from)] += grad.get(at) / count;
              if (value > best || std::isnan(value)) {
                best = value;
                winner = ih * w + iw;
              }
            }
          }
          expected[static_cast<size_t>(at)] = sum / count;
          max_grad[static_cast<size_t>(p.input.at(in, ic, winner / w, winner % w))] += grad.get(at);
          expect(indices[at] == winner, what + ": index of the maximum");
          expect(largest.get(at) == best || (std::isnan(best) && std::isnan(largest.get(at))),
                 what + ": maximum");
        }
      }
    }
  }
  const int64_t additions = (h / oh + 2) * (w / ow + 2) + (oh / h + 2) * (ow / w + 2);
  const double magnitude = p.ties ? 2 : 1;
  expect_close(average, expected, additions, magnitude, what + ": average");
  expect_close(average_grad, expected_grad, additions, 1, what + ": gradient of the average");
  expect_close(largest_grad, max_grad, additions, 1, what + ": gradient of the maximum");
}

}  // namespace

void test_pool2d(int cases) {
  const auto of = [](const auto& max, const auto& gradient, const auto& average, const auto& adaptive) {
    return Pool2dTables{max, gradient, average, adaptive};
  };
  namespace cpu = d2lfast::cpu;
  const Pool2dTables baseline =
      of(cpu::baseline::pool2d_max_kernels, cpu::baseline::pool2d_max_gradient_kernels,
         cpu::baseline::pool2d_average_kernels, cpu::baseline::pool2d_adaptive_kernels);
  const Pool2dTables avx2 = of(cpu::avx2::pool2d_max_kernels, cpu::avx2::pool2d_max_gradient_kernels,
                               cpu::avx2::pool2d_average_kernels, cpu::avx2::pool2d_adaptive_kernels);
  const Pool2dTables avx512 = of(cpu::avx512::pool2d_max_kernels, cpu::avx512::pool2d_max_gradient_kernels,
                                 cpu::avx512::pool2d_average_kernels, cpu::avx512::pool2d_adaptive_kernels);
  const auto all = tables(baseline, avx2, avx512);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    Problem p = draw(random);
    Problem undilated = p;
    undilated.window.dilation_h = undilated.window.dilation_w = 1;
    const Window2d& k = p.window;
    undilated.output.h = pooled(p.input.h, k.kernel_h, k.stride_h, k.pad_h, 1, number % 2 == 0);
    undilated.output.w = pooled(p.input.w, k.kernel_w, k.stride_w, k.pad_w, 1, number % 2 == 0);
    Problem adaptive = p;
    adaptive.output.h = random.between(1, 9);
    adaptive.output.w = random.between(1, 9);
    Buffer input(p.dtype, p.input.size());
    input.randomise(random, p.ties);
    if (random.chance(20)) input.set(random.between(0, input.size() - 1), -INFINITY);
    Buffer with_nan(p.dtype, p.input.size());
    for (int64_t i = 0; i < input.size(); ++i) with_nan.set(i, random.chance(3) ? NAN : input.get(i));
    const bool finite = [&] {
      for (int64_t i = 0; i < input.size(); ++i) {
        if (!std::isfinite(input.get(i))) return false;
      }
      return true;
    }();
    const auto gradient = [&](const Problem& problem) { return problem.output.size(); };
    Buffer grad(p.dtype, gradient(p)), avg_grad(p.dtype, gradient(undilated)),
        adaptive_grad(p.dtype, gradient(adaptive));
    for (Buffer* buffer : {&grad, &avg_grad, &adaptive_grad}) buffer->randomise(random);
    for (int isa = 0; isa < all.count; ++isa) {
      const Pool2dTables& table = *all.table[isa];
      const std::string name = std::string(all.name(isa)) + " ";
      test_max(table, p, input, grad, name + describe(p, "max_pool2d", number));
      test_max(table, p, with_nan, grad, name + describe(p, "max_pool2d with NaN", number));
      if (!finite) continue;
      test_avg(table, undilated, input, avg_grad, name + describe(undilated, "avg_pool2d", number));
      test_adaptive(table, adaptive, input, adaptive_grad,
                    name + describe(adaptive, "adaptive_pool2d", number));
    }
  }
}

}  // namespace d2lfast::test
