// Runs what a thread of the CUDA pooling kernels does, item by item on the CPU, against a plain reference
// over random shapes. Every index is checked by the sanitizers that the test compiles this with.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "../../csrc/kernels/cuda/pool2d_element.cuh"
#include "../../csrc/kernels/cuda/pool2d_rows.cuh"
#include "../../csrc/kernels/cuda/pool2d_tiles.cuh"

namespace {

using namespace d2lfast;
using namespace d2lfast::cuda;

std::mt19937_64 generator(20240607);

int64_t random_int(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

#define EXPECT(condition, ...)                                    \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: " #condition ": ", __FILE__, __LINE__); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
      std::exit(1);                                               \
    }                                                             \
  } while (0)

// 16-byte accesses need memory that is aligned for them.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t size) : size(size), bytes((size * sizeof(T) + 63) / 64 * 64 + 64) {
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    std::memset(static_cast<void*>(data), 0xa5, bytes);
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  T& operator[](int64_t i) { return data[i]; }
  bool tail_untouched() const {
    const auto* raw = reinterpret_cast<const unsigned char*>(data);
    return std::all_of(raw + size * sizeof(T), raw + bytes, [](unsigned char c) { return c == 0xa5; });
  }
  int64_t size;
  size_t bytes;
  T* data;
};

struct Shape {
  int64_t n, c, h, w, oh, ow;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil) {
  const int64_t reach = size + 2 * pad - dilation * (kernel - 1) - 1;
  if (reach < 0) return 0;
  int64_t out = (reach + (ceil ? stride - 1 : 0)) / stride + 1;
  if (ceil && (out - 1) * stride >= size + pad) --out;
  return out;
}

// fixed: 0 draws any window, else its side; stride 0 likewise.
bool draw(Shape& s, int fixed, int fixed_stride, int lanes) {
  s.n = random_int(1, 3);
  s.c = random_int(1, 3) * lanes;
  s.h = random_int(1, 12);
  s.w = random_int(1, 12);
  s.kernel_h = fixed ? fixed : random_int(1, 5);
  s.kernel_w = fixed ? fixed : random_int(1, 5);
  s.stride_h = fixed ? fixed_stride : random_int(1, 4);
  s.stride_w = fixed ? fixed_stride : random_int(1, 4);
  s.dilation_h = fixed ? 1 : random_int(1, 3);
  s.dilation_w = fixed ? 1 : random_int(1, 3);
  s.pad_h = random_int(0, ((s.kernel_h - 1) * s.dilation_h + 1) / 2);
  s.pad_w = random_int(0, ((s.kernel_w - 1) * s.dilation_w + 1) / 2);
  const bool ceil = random_int(0, 1) != 0;
  s.oh = output_size(s.h, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, ceil);
  s.ow = output_size(s.w, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, ceil);
  return s.oh > 0 && s.ow > 0;
}

template <typename T>
bool same(T a, T b) {
  const auto x = to_compute(a), y = to_compute(b);
  return x == y || (x != x && y != y);
}

// As the launchers: windows of 3 with stride 1 go by tiles of channels_last.
template <typename Window, typename P>
constexpr bool kShared = Window::kernel == 3 && Window::stride == 1 && sizeof(P) == 1;

template <typename Window, int V, bool Planar, typename T, typename P, typename Index>
void check(const Shape& s) {
  const int64_t inputs = s.n * s.c * s.h * s.w, outputs = s.n * s.c * s.oh * s.ow;
  const auto at = [&](int64_t n, int64_t c, int64_t y, int64_t x, int64_t height, int64_t width) {
    return Planar ? ((n * s.c + c) * height + y) * width + x : ((n * height + y) * width + x) * s.c + c;
  };
  Buffer<T> input(inputs), output(outputs), plain(outputs), grad_output(outputs), grad_input(inputs);
  Buffer<P> position(outputs);
  Buffer<int64_t> index(outputs);
  // Few distinct values make ties; small integers make sums exact in every type and order.
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t kind = random_int(0, 30);
    const float special = kind == 0 ? std::nanf("") : kind == 1 ? INFINITY : -INFINITY;
    input[i] = from_compute<T>(kind < 4 ? special : static_cast<float>(random_int(-3, 3)));
  }
  for (int64_t i = 0; i < outputs; ++i) {
    grad_output[i] = from_compute<T>(static_cast<float>(random_int(-4, 4)));
  }

  const PoolGeometry g{static_cast<int32_t>(Planar ? 1 : s.c),
                       static_cast<int32_t>(s.h),
                       static_cast<int32_t>(s.w),
                       static_cast<int32_t>(s.oh),
                       static_cast<int32_t>(s.ow),
                       s.kernel_h,
                       s.kernel_w,
                       s.stride_h,
                       s.stride_w,
                       s.pad_h,
                       s.pad_w,
                       s.dilation_h,
                       s.dilation_w};
  const int64_t images = Planar ? s.n * s.c : s.n;
  const auto no_position = static_cast<NoPosition*>(nullptr);
  const auto written = PoolItems<Index>::of(images, g.channels, s.oh, s.ow, V);
  const auto single = PoolItems<Index>::of(images, g.channels, s.oh, s.ow, 1);
  const auto gathered = PoolItems<Index>::of(images, g.channels, gradient_blocks<Window>(g.height, g.pad_h),
                                             gradient_blocks<Window>(g.width, g.pad_w), V);
  if constexpr (kShared<Window, P>) {
    const auto tiles =
        PoolItems<Index>::of(images, s.c, tiles_of(s.oh, kTileSide), tiles_of(s.ow, kTileSide), V);
    const auto sources =
        PoolItems<Index>::of(images, s.c, tiles_of(s.h, kGradientRows), tiles_of(s.w, kTileSide), V);
    for (Index i = 0; i < tiles.count; ++i) {
      pool_tile_item<V>(i, input.data, output.data, position.data, g, tiles);
      pool_tile_item<V>(i, input.data, plain.data, no_position, g, tiles);
    }
    for (Index i = 0; i < sources.count; ++i) {
      pool_tile_backward_item<V>(i, grad_output.data, position.data, grad_input.data, g, sources);
    }
  } else {
    for (Index i = 0; i < written.count; ++i) {
      pool_item<Window, V, Planar>(i, input.data, output.data, position.data, g, written);
      pool_item<Window, V, Planar>(i, input.data, plain.data, no_position, g, written);
    }
    for (Index i = 0; i < gathered.count; ++i) {
      pool_backward_item<Window, V, Planar>(i, grad_output.data, position.data, grad_input.data, g, gathered);
    }
  }
  for (Index i = 0; i < single.count; ++i) pool_index_item(i, position.data, index.data, g, single);

  std::vector<double> expected_grad(inputs, 0.0);
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t c = 0; c < s.c; ++c) {
      for (int64_t oh = 0; oh < s.oh; ++oh) {
        for (int64_t ow = 0; ow < s.ow; ++ow) {
          double best = -INFINITY;
          int64_t best_h = -1, best_w = -1, best_tap = 0;
          for (int kh = 0; kh < s.kernel_h; ++kh) {
            for (int kw = 0; kw < s.kernel_w; ++kw) {
              const int64_t h = oh * s.stride_h - s.pad_h + kh * s.dilation_h;
              const int64_t w = ow * s.stride_w - s.pad_w + kw * s.dilation_w;
              if (h < 0 || h >= s.h || w < 0 || w >= s.w) continue;
              const double value = to_compute(input[at(n, c, h, w, s.h, s.w)]);
              if (best_h < 0 || value > best || std::isnan(value)) {
                best = value;
                best_h = h;
                best_w = w;
                best_tap = kh * s.kernel_w + kw;
              }
            }
          }
          const int64_t o = at(n, c, oh, ow, s.oh, s.ow);
          const T wanted = from_compute<T>(static_cast<Compute<T>>(best));
          EXPECT(same(output[o], wanted), "%g, not %g", double(to_compute(output[o])), best);
          EXPECT(same(plain[o], wanted), "%g, not %g", double(to_compute(plain[o])), best);
          if (best_h < 0) continue;
          EXPECT(int64_t(position[o]) == best_tap, "%ld, not %ld", long(position[o]), long(best_tap));
          EXPECT(index[o] == best_h * s.w + best_w, "%ld", long(index[o]));
          expected_grad[at(n, c, best_h, best_w, s.h, s.w)] += to_compute(grad_output[o]);
        }
      }
    }
  }
  for (int64_t i = 0; i < inputs; ++i) {
    EXPECT(to_compute(grad_input[i]) == expected_grad[i], "gradient %ld: %g, not %g", long(i),
           double(to_compute(grad_input[i])), expected_grad[i]);
  }
  EXPECT(output.tail_untouched() && plain.tail_untouched() && position.tail_untouched() &&
             index.tail_untouched() && grad_input.tail_untouched(),
         "written past the end");
}

// Groups of neighbours of a row give what single elements give, which check() compares with the reference.
template <typename Rows, typename T>
int check_groups(int32_t width, bool ceil) {
  using Window = FixedWindow<Rows::kernel, Rows::stride>;
  constexpr int32_t kSide = Rows::kernel, kStride = Rows::stride, kPad = Rows::pad;
  const int32_t height = static_cast<int32_t>(random_int(1, 9));
  const int32_t out_height = static_cast<int32_t>(output_size(height, kSide, kStride, kPad, 1, ceil));
  const int32_t out_width = static_cast<int32_t>(output_size(width, kSide, kStride, kPad, 1, ceil));
  if (out_height < 1 || out_width < 1) return 0;
  const PoolGeometry g{1,       height,  width, out_height, out_width, kSide, kSide,
                       kStride, kStride, kPad,  kPad,       1,         1};
  const int64_t images = 3, inputs = images * height * width, outputs = images * out_height * out_width;
  Buffer<T> input(inputs), output(outputs), grad_output(outputs), grad_input(inputs);
  Buffer<uint8_t> position(outputs);
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t kind = random_int(0, 30);
    const float special = kind == 0 ? std::nanf("") : kind == 1 ? INFINITY : -INFINITY;
    input[i] = from_compute<T>(kind < 8 ? special : static_cast<float>(random_int(-3, 3)));
  }
  for (int64_t i = 0; i < outputs; ++i) {
    grad_output[i] = from_compute<T>(static_cast<float>(random_int(-4, 4)));
  }
  const auto single = PoolItems<int32_t>::of(images, 1, out_height, out_width, 1);
  const auto gathered = PoolItems<int32_t>::of(images, 1, gradient_blocks<Window>(height, kPad),
                                               gradient_blocks<Window>(width, kPad), 1);
  for (int32_t i = 0; i < single.count; ++i)
    pool_item<Window, 1, true>(i, input.data, output.data, position.data, g, single);
  for (int32_t i = 0; i < gathered.count; ++i) {
    pool_backward_item<Window, 1, true>(i, grad_output.data, position.data, grad_input.data, g, gathered);
  }

  int checked = 0;
  const auto expect_forward = [&](int64_t rows, int64_t groups, auto&& item) {
    Buffer<T> values(outputs), plain(outputs);
    Buffer<uint8_t> taps(outputs);
    const auto items = PoolItems<int32_t>::of(images, 1, rows, groups, 1);
    for (int32_t i = 0; i < items.count; ++i) {
      item(i, values.data, taps.data, items);
      item(i, plain.data, static_cast<NoPosition*>(nullptr), items);
    }
    for (int64_t i = 0; i < outputs; ++i) {
      EXPECT(same(output[i], values[i]) && same(output[i], plain[i]), "output %ld", long(i));
      EXPECT(position[i] == taps[i], "position %ld: %d, not %d", long(i), taps[i], position[i]);
    }
    EXPECT(values.tail_untouched() && plain.tail_untouched() && taps.tail_untouched(), "past the end");
    ++checked;
  };
  const auto expect_gradient = [&](int64_t rows, int64_t groups, auto&& item) {
    Buffer<T> values(inputs);
    const auto items = PoolItems<int32_t>::of(images, 1, rows, groups, 1);
    for (int32_t i = 0; i < items.count; ++i) item(i, values.data, items);
    for (int64_t i = 0; i < inputs; ++i) EXPECT(same(grad_input[i], values[i]), "gradient %ld", long(i));
    EXPECT(values.tail_untouched(), "past the end");
    ++checked;
  };

  if constexpr (kStride == kSide || kPad > 0) {
    if (takes_rows<Rows>(g, kRowInputs<T>)) {
      expect_forward(out_height, out_width / kRowOutputs<Rows, T>,
                     [&](int32_t i, T* to, auto* taps, const auto& items) {
                       pool_rows_item<Rows>(i, input.data, to, taps, g, items);
                     });
    }
  }
  for (const bool pairs : {false, true}) {
    const int64_t bands = gradient_blocks<Rows>(height, kPad);
    if (!pairs || width % 2 == 0) {
      expect_gradient(bands, (width + kBandInputs - 1) / kBandInputs,
                      [&](int32_t i, T* to, const auto& items) {
                        pool_band_item<Rows, false>(i, grad_output.data, position.data, to, g, items, pairs);
                      });
    }
    if (takes_rows<Rows>(g, kBandInputs)) {
      expect_gradient(bands, width / kBandInputs, [&](int32_t i, T* to, const auto& items) {
        pool_band_item<Rows, true>(i, grad_output.data, position.data, to, g, items, pairs);
      });
    }
  }
  return checked;
}

template <typename T>
int check_all_groups(int rounds) {
  int checked = 0;
  for (int round = 0; round < rounds; ++round) {
    for (const bool ceil : {false, true}) {
      const int32_t any = static_cast<int32_t>(random_int(1, 30));
      for (const int32_t width : {any, 8 * static_cast<int32_t>(random_int(1, 4))}) {
        checked += check_groups<RowWindow<2, 2, 0>, T>(width, ceil) +
                   check_groups<RowWindow<3, 2, 0>, T>(width, ceil) +
                   check_groups<RowWindow<3, 2, 1>, T>(width, ceil);
      }
    }
  }
  return checked;
}

template <typename T, typename P, typename Index>
int check_layouts(int rounds) {
  int checked = 0;
  Shape s;
  for (int round = 0; round < rounds; ++round) {
    if (draw(s, 0, 0, 1)) check<AnyWindow, 1, true, T, P, Index>(s), ++checked;
    if (draw(s, 0, 0, 1)) check<AnyWindow, 1, false, T, P, Index>(s), ++checked;
    if (draw(s, 0, 0, kVectorWidth<T>)) check<AnyWindow, kVectorWidth<T>, false, T, P, Index>(s), ++checked;
    if (draw(s, 2, 2, 1)) check<FixedWindow<2, 2>, 1, true, T, P, Index>(s), ++checked;
    if (draw(s, 3, 2, 1)) check<FixedWindow<3, 2>, 1, true, T, P, Index>(s), ++checked;
    constexpr int V = kVectorWidth<T>;
    if (draw(s, 2, 2, V)) check<FixedWindow<2, 2>, V, false, T, P, Index>(s), ++checked;
    if (draw(s, 3, 2, V)) check<FixedWindow<3, 2>, V, false, T, P, Index>(s), ++checked;
    if (draw(s, 3, 1, V)) check<FixedWindow<3, 1>, V, false, T, P, Index>(s), ++checked;
  }
  return checked;
}

void check_divider() {
  for (int round = 0; round < 200000; ++round) {
    const int64_t d = random_int(1, int64_t{1} << random_int(1, 30));
    const int32_t n = static_cast<int32_t>(random_int(0, kMaxIndex32));
    EXPECT(Divider<int32_t>(d).divide(n) == n / d, "%d / %ld", n, long(d));
    const int64_t wide = random_int(0, int64_t{1} << 40);
    EXPECT(Divider<int64_t>(d).divide(wide) == wide / d, "%ld / %ld", long(wide), long(d));
  }
  for (int64_t d : {int64_t{1}, int64_t{2}, int64_t{3}, kMaxIndex32, int64_t{INT32_MAX}}) {
    for (int64_t n : {int64_t{0}, d - 1, d, kMaxIndex32, int64_t{INT32_MAX}}) {
      const int32_t dividend = static_cast<int32_t>(n);
      EXPECT(Divider<int32_t>(d).divide(dividend) == n / d, "%ld / %ld", long(n), long(d));
    }
  }
}

// The rounding of a 16-bit type is right if no neighbour of the result is nearer to the value.
template <typename T>
void check_rounding(uint16_t infinity) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const float wide = to_compute(value);
    const uint16_t back = from_compute<T>(wide).bits;
    const bool nan = (bits & 0x7fff) > infinity;
    EXPECT(nan ? std::isnan(wide) && (back & 0x7fff) > infinity : back == bits, "%x -> %x", bits, back);
    if ((bits & 0x7fff) + 1 >= infinity) continue;
    const float next = to_compute(T{static_cast<uint16_t>(bits + 1)});
    const float middle = wide + (next - wide) / 2;
    const float below = std::nextafterf(middle, wide), above = std::nextafterf(middle, next);
    EXPECT(from_compute<T>(below).bits == bits, "below the middle of %x", bits);
    EXPECT(from_compute<T>(above).bits == bits + 1, "above the middle of %x", bits);
    EXPECT(from_compute<T>(middle).bits == bits + (bits & 1), "the middle of %x", bits);
  }
}

}  // namespace

int main() {
  check_divider();
  check_rounding<BFloat16>(0x7f80);
  check_rounding<Float16>(0x7c00);
  const int checked =
      check_layouts<double, uint8_t, int32_t>(150) + check_layouts<float, uint8_t, int32_t>(150) +
      check_layouts<BFloat16, uint8_t, int32_t>(150) + check_layouts<Float16, uint8_t, int32_t>(150) +
      check_layouts<float, int32_t, int64_t>(150);
  const int groups = check_all_groups<double>(40) + check_all_groups<float>(40) +
                     check_all_groups<BFloat16>(40) + check_all_groups<Float16>(40);
  std::printf("%d cases, %d of groups\n", checked, groups);
  return checked > 3000 && groups > 4000 ? 0 : 1;
}
