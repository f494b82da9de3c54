#include <algorithm>

#include "../../csrc/kernels/batch_norm.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(BatchNormKernels, batch_norm_kernels);

namespace d2lfast::test {
namespace {

struct Problem {
  DType dtype;
  int64_t rows, columns, pitch;
  Activation activation;
  bool by_column, by_row, residual, grad_residual, mask, reversed, from_output;

  // The last row ends at its last column, not at its pitch.
  int64_t size() const { return (rows - 1) * pitch + columns; }
  int64_t channels() const { return by_column ? columns : by_row ? rows : 1; }
};

Problem draw(Random& random) {
  Problem p{};
  p.dtype = static_cast<DType>(random.between(0, 3));
  p.by_column = random.chance(50);
  p.by_row = !p.by_column && random.chance(40);
  p.rows = random.chance(10) ? random.between(255, 600) : random.between(1, 9);
  p.columns = !p.by_column && random.chance(3) ? random.between(8000, 9000) : random.between(1, 140);
  p.pitch = p.columns + (random.chance(50) ? 0 : random.between(1, 40));
  p.activation = static_cast<Activation>(random.chance(40) ? 0 : random.between(1, 3));
  p.residual = random.chance(40);
  p.grad_residual = random.chance(40);
  p.mask = p.residual || random.chance(30);
  p.reversed = !p.by_row && random.chance(30);
  p.from_output = random.chance(50);
  return p;
}

void test_one(const BatchNormKernels& table, const Problem& p, Random random, const std::string& what) {
  const int dtype = static_cast<int>(p.dtype);
  const DType accumulator = accumulator_of(p.dtype);
  Buffer input(p.dtype, p.size()), residual(p.dtype, p.size()), gradient(p.dtype, p.size());
  Buffer output(p.dtype, p.size()), result(p.dtype, p.size()), grad_residual(p.dtype, p.size());
  for (Buffer* buffer : {&input, &residual, &gradient}) buffer->randomise(random);
  Buffer center(accumulator, p.channels()), scale(accumulator, p.channels());
  Buffer slope(accumulator, p.channels()), offset(accumulator, p.channels()),
      shift(accumulator, p.channels());
  for (Buffer* buffer : {&center, &scale, &slope, &offset, &shift}) buffer->randomise(random);
  Exact<double> sums(2 * p.channels());
  const int64_t mask_pitch = (p.columns + 7) / 8;
  Exact<uint8_t> mask(p.rows * mask_pitch);

  BatchNormParams params{};
  params.rows = p.rows;
  params.columns = p.columns;
  params.channel_step = p.by_row ? 1 : 0;
  params.pitch = p.reversed ? -p.pitch : p.pitch;
  params.mask_pitch = p.reversed ? -mask_pitch : mask_pitch;
  params.activation = p.activation;
  const int64_t first = p.reversed ? (p.rows - 1) * p.pitch : 0;
  const auto at_first = [&](Buffer& buffer) {
    return static_cast<void*>(static_cast<char*>(buffer.data()) + first * size_of(p.dtype));
  };
  params.input = at_first(input);
  params.residual = p.residual ? at_first(residual) : nullptr;
  if (p.mask) params.mask = &mask[p.reversed ? (p.rows - 1) * mask_pitch : 0];
  params.shift = shift.data();
  params.center = center.data();
  params.scale = scale.data();
  params.slope = slope.data();
  params.offset = offset.data();
  params.sums = sums.data();

  const auto each = [&](const auto& body) {
    for (int64_t i = 0; i < p.rows; ++i) {
      for (int64_t j = 0; j < p.columns; ++j) body(i * p.pitch + j, p.by_column ? j : p.by_row ? i : 0);
    }
  };
  const auto expect_sums = [&](const std::vector<double>& expected, const std::string& kind) {
    const double additions = static_cast<double>(p.rows * (p.by_column ? 1 : p.columns));
    const double allowed = 4 * unit_roundoff(accumulator) * std::sqrt(additions) * additions * 4;
    for (int64_t i = 0; i < 2 * p.channels(); ++i) {
      expect(std::fabs(sums[i] - expected[static_cast<size_t>(i)]) <= allowed,
             what + ": " + kind + " " + std::to_string(sums[i]) + ", expected " +
                 std::to_string(expected[static_cast<size_t>(i)]));
    }
  };
  // What lies between the rows belongs to others.
  const auto expect_gaps = [&](const Buffer& buffer) {
    for (int64_t i = 0; i + 1 < p.rows; ++i) {
      for (int64_t j = p.columns; j < p.pitch; ++j) {
        expect(std::isnan(buffer.get(i * p.pitch + j)), what + ": wrote between the rows");
      }
    }
  };

  std::vector<double> expected(static_cast<size_t>(2 * p.channels()));
  each([&](int64_t at, int64_t c) {
    const double d = input.get(at) - center.get(c);
    expected[static_cast<size_t>(c)] += d;
    expected[static_cast<size_t>(p.channels() + c)] += d * d;
  });
  // A call sums one channel's planes.
  if (!p.by_row) {
    (p.by_column ? table.column_moments : table.plane_moments)[dtype](params);
    expect_sums(expected, "moments");
  }

  const auto unwritten = std::vector<double>(static_cast<size_t>(p.size()), NAN);
  std::vector<double> values(unwritten);
  each([&](int64_t at, int64_t c) {
    const double y = (input.get(at) - center.get(c)) * scale.get(c) + shift.get(c);
    values[static_cast<size_t>(at)] = activated(p.activation, y + (p.residual ? residual.get(at) : 0));
  });
  params.result = at_first(output);
  (p.by_column ? table.column_normalize : table.plane_normalize)[dtype](params);
  expect_close(output, values, 4, 2, what + ": output");
  expect_gaps(output);

  params.gradient = at_first(gradient);
  params.activated = p.activation != Activation::kReLU || p.from_output ? at_first(output) : nullptr;
  // From the output: the decisions of the mask, or of the second look at the input, have to agree with it.
  const auto g_of = [&](int64_t at) {
    return gradient.get(at) * activation_derivative(p.activation, output.get(at));
  };
  std::fill(expected.begin(), expected.end(), 0);
  each([&](int64_t at, int64_t c) {
    expected[static_cast<size_t>(c)] += g_of(at);
    expected[static_cast<size_t>(p.channels() + c)] += g_of(at) * (input.get(at) - center.get(c));
  });
  if (!p.by_row) {
    (p.by_column ? table.column_gradient_sums : table.plane_gradient_sums)[dtype](params);
    expect_sums(expected, "sums of the gradient");
  }

  std::vector<double> residual_values(unwritten);
  if (!p.by_row) {
    Buffer written(p.dtype, p.size()), written_residual(p.dtype, p.size());
    values = unwritten;
    each([&](int64_t at, int64_t c) {
      values[static_cast<size_t>(at)] = g_of(at) * scale.get(c);
      residual_values[static_cast<size_t>(at)] = g_of(at);
    });
    BatchNormParams both = params;
    both.writes = true;
    both.slope = both.offset = nullptr;
    both.result = at_first(written);
    both.grad_residual = p.grad_residual ? at_first(written_residual) : nullptr;
    std::fill_n(sums.data(), 2 * p.channels(), NAN);
    (p.by_column ? table.column_gradient_sums : table.plane_gradient_sums)[dtype](both);
    expect_sums(expected, "sums beside the gradient");
    expect_close(written, values, 4, 2, what + ": gradient beside the sums");
    expect_gaps(written);
    if (p.grad_residual) {
      expect_close(written_residual, residual_values, 1, 1,
                   what + ": gradient of the residual beside the sums");
      expect_gaps(written_residual);
    }
  }

  values = unwritten;
  each([&](int64_t at, int64_t c) {
    values[static_cast<size_t>(at)] =
        (g_of(at) + (input.get(at) - center.get(c)) * slope.get(c) + offset.get(c)) * scale.get(c);
    residual_values[static_cast<size_t>(at)] = g_of(at);
  });
  params.result = at_first(result);
  params.grad_residual = p.grad_residual ? at_first(grad_residual) : nullptr;
  (p.by_column ? table.column_gradient : table.plane_gradient)[dtype](params);
  expect_close(result, values, 4, 2, what + ": gradient");
  expect_gaps(result);
  if (p.grad_residual) {
    expect_close(grad_residual, residual_values, 1, 1, what + ": gradient of the residual");
    expect_gaps(grad_residual);
  }
}

}  // namespace

void test_batch_norm(int cases) {
  const auto all = tables(cpu::baseline::batch_norm_kernels, cpu::avx2::batch_norm_kernels,
                          cpu::avx512::batch_norm_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p = draw(random);
    for (int isa = 0; isa < all.count; ++isa) {
      char text[200];
      std::snprintf(text, sizeof(text), "%s batch_norm case %d %s %lldx%lld pitch %lld %s activation %d%s",
                    all.name(isa), number, name_of(p.dtype), (long long)p.rows, (long long)p.columns,
                    (long long)p.pitch,
                    p.by_column ? "columns"
                    : p.by_row  ? "planes of channels"
                                : "planes",
                    static_cast<int>(p.activation), p.residual ? " residual" : "");
      test_one(*all.table[isa], p, random, text);
    }
  }
}

}  // namespace d2lfast::test
