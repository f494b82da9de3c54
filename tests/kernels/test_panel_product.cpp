#include <algorithm>

#include "../../csrc/kernels/panels.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(PanelKernels, panel_product_kernels);

namespace d2lfast::test {
namespace {

struct Problem {
  int type;
  int64_t rows, inner, columns;
  int64_t before, after;  // rows of the packed matrix around those of the product
  int64_t gap;
  bool transposed, accumulate;
};

class Panels {
 public:
  // `random` draws the operands, the same for each instruction set.
  Panels(const PanelKernels& table, const Problem& p, Random random, Agreement& agreement, std::string what)
      : table_(table),
        p_(p),
        dtype_(static_cast<DType>(p.type)),
        lanes_(table.lanes[p.type]),
        random_(random),
        agreement_(agreement),
        what_(std::move(what)) {}

  void test_product() {
    const int64_t total = p_.before + p_.inner + p_.after;
    const PanelGrid grid((p_.columns + lanes_ - 1) / lanes_);
    Matrix b(dtype_, total, p_.columns, p_.gap);
    b.randomise(random_);
    Buffer packed(dtype_, total * grid.vectors * lanes_);
    pack(b, 0, p_.before, grid, packed);
    pack(b, p_.before, p_.inner + p_.after, grid, packed);
    expect_packed(b, grid, packed);

    Matrix a(dtype_, p_.transposed ? p_.inner : p_.rows, p_.transposed ? p_.rows : p_.inner, p_.gap);
    a.randomise(random_);
    Matrix c(dtype_, p_.rows, p_.columns, p_.gap), pieces(dtype_, p_.rows, p_.columns, p_.gap);
    if (p_.accumulate) {
      c.randomise(random_);
      std::memcpy(pieces.buffer.data(), c.buffer.data(),
                  static_cast<size_t>(c.buffer.size() * size_of(dtype_)));
    }
    std::vector<double> expected = c.buffer.values();
    for (int64_t i = 0; i < p_.rows; ++i) {
      for (int64_t j = 0; j < p_.columns; ++j) {
        double sum = p_.accumulate ? c.get(i, j) : 0;
        for (int64_t k = 0; k < p_.inner; ++k) {
          sum += (p_.transposed ? a.get(k, i) : a.get(i, k)) * b.get(p_.before + k, j);
        }
        expected[at(i * c.row + j)] = sum;
      }
    }
    PanelProduct product{};
    product.inner = p_.inner;
    product.columns = p_.columns;
    product.a = a.buffer.data();
    product.a_row = p_.transposed ? 1 : a.row;
    product.a_inner = p_.transposed ? a.row : 1;
    product.b = packed.data();
    product.b_first = p_.before;
    product.b_total = total;
    product.c = c.buffer.data();
    product.c_row = c.row;
    product.accumulate = p_.accumulate;
    table_.product[p_.type](product, 0, p_.rows, 0, grid.count);
    agreement_.check(c.buffer, expected, p_.inner, 1, what_ + ": product");
    product.c = pieces.buffer.data();
    in_pieces(random_, p_.rows, grid.count, [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
      table_.product[p_.type](product, begin, end, first, last);
    });
    expect_same(c.buffer, pieces.buffer, what_ + ": product");
  }

  void test_rows() {
    Matrix matrix(dtype_, p_.rows, p_.columns, p_.gap);
    matrix.randomise(random_);
    Buffer sums(dtype_, p_.columns), table(dtype_, p_.inner * p_.columns);
    std::vector<double> expected = sums.randomise(random_).values();
    std::vector<double> expected_table = table.randomise(random_).values();
    Exact<int64_t> ones(p_.rows);
    for (int64_t i = 0; i < p_.rows; ++i) {
      if (p_.inner > 0) ones[i] = random_.between(0, p_.inner - 1);
      for (int64_t j = 0; j < p_.columns; ++j) {
        expected[at(j)] += matrix.get(i, j);
        if (p_.inner > 0) expected_table[at(ones[i] * p_.columns + j)] += matrix.get(i, j);
      }
    }
    table_.add_rows[p_.type](matrix.buffer.data(), matrix.row, p_.rows, p_.columns, sums.data());
    agreement_.check(sums, expected, p_.rows, 1, what_ + ": sums of rows");
    if (p_.inner == 0) return;
    table_.scatter_rows[p_.type](matrix.buffer.data(), matrix.row, p_.rows, p_.columns, ones.data(),
                                 table.data());
    agreement_.check(table, expected_table, p_.rows, 1, what_ + ": scattered rows");
  }

  void test_ones() {
    Matrix x(dtype_, p_.rows, p_.inner, p_.gap);
    Exact<int64_t> places(p_.rows), ones(p_.rows);
    for (int64_t i = 0; i < p_.rows; ++i) {
      for (int64_t k = 0; k < p_.inner; ++k) x.buffer.set(i * x.row + k, k % 2 == 0 ? 0.0 : -0.0);
      if (p_.inner == 0) continue;
      places[i] = random_.between(0, p_.inner - 1);
      x.buffer.set(i * x.row + places[i], 1);
    }
    const auto found = [&] {
      return table_.find_ones[p_.type](x.buffer.data(), x.row, p_.rows, p_.inner, ones.data());
    };
    expect(found() == (p_.rows == 0 || p_.inner > 0), what_ + ": rows with one are not recognised");
    if (p_.rows == 0 || p_.inner == 0) return;
    for (int64_t i = 0; i < p_.rows; ++i) {
      expect(ones[i] == places[i], what_ + ": place of the one in row " + std::to_string(i));
    }
    const int64_t row = random_.between(0, p_.rows - 1), place = row * x.row + places[row];
    for (const double wrong : {0.0, 2.0, -1.0, static_cast<double>(NAN)}) {
      x.buffer.set(place, wrong);
      expect(!found(), what_ + ": takes " + std::to_string(wrong) + " for one");
    }
    x.buffer.set(place, 1);
    if (p_.inner == 1) return;
    const int64_t other = (places[row] + random_.between(1, p_.inner - 1)) % p_.inner;
    for (const double second : {1.0, 1e-30, static_cast<double>(NAN)}) {
      x.buffer.set(row * x.row + other, second);
      expect(!found(), what_ + ": overlooks a second number");
    }
  }

  void test_row_products() {
    const int64_t rows = std::min<int64_t>(p_.rows, 5);
    Matrix x(dtype_, rows, p_.inner, p_.gap), result(dtype_, rows, p_.columns, p_.gap);
    Matrix pieces(dtype_, rows, p_.columns, p_.gap);
    Buffer w(dtype_, p_.columns * p_.inner);
    x.randomise(random_);
    w.randomise(random_);
    std::vector<double> expected = result.buffer.values();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < p_.columns; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < p_.inner; ++k) sum += x.get(i, k) * w.get(j * p_.inner + k);
        expected[at(i * result.row + j)] = sum;
      }
    }
    const auto run = [&](Matrix& to, int64_t begin, int64_t end) {
      table_.row_products[p_.type](x.buffer.data(), x.row, w.data(), rows, p_.inner, to.buffer.data(), to.row,
                                   begin, end);
    };
    run(result, 0, p_.columns);
    agreement_.check(result.buffer, expected, p_.inner, 1, what_ + ": products of rows");
    const int64_t cut = random_.between(0, p_.columns);
    run(pieces, cut, p_.columns);
    run(pieces, 0, cut);
    expect_same(result.buffer, pieces.buffer, what_ + ": products of rows");
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  void pack(Matrix& b, int64_t first, int64_t inner, const PanelGrid& grid, Buffer& packed) {
    if (inner == 0) return;
    const PackRows params{inner, p_.columns, first, b.rows, b.from(first), b.row, packed.data()};
    const int64_t cut = random_.between(0, grid.count);
    table_.pack_rows[p_.type](params, cut, grid.count);
    table_.pack_rows[p_.type](params, 0, cut);
  }

  void expect_packed(const Matrix& b, const PanelGrid& grid, const Buffer& packed) {
    int64_t i = 0;
    for (int64_t panel = 0; panel < grid.count; ++panel) {
      expect(grid.begin(panel + 1) - grid.begin(panel) <= kPanelVectors, what_ + ": panels too wide");
      for (int64_t k = 0; k < b.rows; ++k) {
        for (int64_t j = grid.begin(panel) * lanes_; j < grid.begin(panel + 1) * lanes_; ++j, ++i) {
          expect(packed.get(i) == (j < p_.columns ? b.get(k, j) : 0), what_ + ": packed rows");
        }
      }
    }
    expect(i == packed.size(), what_ + ": size of the packed rows");
  }

  const PanelKernels& table_;
  const Problem& p_;
  DType dtype_;
  int64_t lanes_;
  Random random_;
  Agreement& agreement_;
  std::string what_;
};

Problem draw(Random& random) {
  Problem p{};
  p.type = static_cast<int>(random.between(0, 1));
  p.rows = random.between(0, 20);
  // The kernels divide K in slices of 512.
  p.inner = random.chance(8) ? random.between(510, 1030) : random.between(0, 40);
  p.columns = random.chance(30) && p.inner < 500 ? random.between(60, 200) : random.between(0, 40);
  p.before = random.chance(50) ? random.between(0, 9) : 0;
  p.after = random.chance(50) ? random.between(0, 9) : 0;
  p.gap = random.chance(50) ? random.between(0, 5) : 0;
  p.transposed = random.chance(40);
  p.accumulate = random.chance(40);
  return p;
}

}  // namespace

void test_panel_product(int cases) {
  const auto all = tables(cpu::baseline::panel_product_kernels, cpu::avx2::panel_product_kernels,
                          cpu::avx512::panel_product_kernels);
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p = draw(random);
    Agreement agreement;
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " panels case " + std::to_string(number) + " " +
                               name_of(static_cast<DType>(p.type)) + " " + std::to_string(p.rows) + "x" +
                               std::to_string(p.inner) + "x" + std::to_string(p.columns);
      agreement.next_set();
      Panels panels(*all.table[isa], p, random, agreement, what);
      panels.test_product();
      panels.test_rows();
      panels.test_ones();
      panels.test_row_products();
    }
  }
}

}  // namespace d2lfast::test
