#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/kernels/activation.h"
#include "../../csrc/kernels/cpu/isa.h"
#include "../../csrc/kernels/dtype.h"

namespace d2lfast::test {

// xorshift64*: the same cases on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 88172645463325252u) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 2685821657736338717u;
  }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>((next() >> 33) % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(int percent) { return between(1, 100) <= percent; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53 * 2 - 1; }

 private:
  uint64_t state_;
};

inline int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}
inline DType accumulator_of(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}
inline const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return kNames[static_cast<int>(dtype)];
}
inline double unit_roundoff(DType dtype) {
  constexpr double kUnits[] = {0x1p-53, 0x1p-24, 0x1p-8, 0x1p-11};
  return kUnits[static_cast<int>(dtype)];
}

inline uint16_t to_half(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7e00;
  x = std::fabs(x);
  if (x == 0) return sign;
  int exponent = x >= 0x1p-14 ? std::ilogb(x) : -14;
  if (exponent > 15) return static_cast<uint16_t>(sign | 0x7c00);
  double mantissa = std::nearbyint(std::ldexp(x, 10 - exponent));
  if (mantissa == 2048) mantissa = 1024, ++exponent;
  if (exponent > 15) return static_cast<uint16_t>(sign | 0x7c00);
  const int bits = static_cast<int>(mantissa);
  return static_cast<uint16_t>(sign | (bits < 1024 ? bits : ((exponent + 15) << 10) | (bits - 1024)));
}
inline double from_half(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const double magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(mantissa + 1024, exponent - 25);
  return (h & 0x8000) != 0 ? -magnitude : magnitude;
}

// Elements in a block of exactly their size, so that the sanitizer sees the first byte beyond it. Fresh
// memory is NaN (all ones): what a kernel leaves unwritten shows.
class Buffer {
 public:
  Buffer(DType dtype, int64_t size)
      : dtype_(dtype), size_(size), data_(std::malloc(static_cast<size_t>(size * size_of(dtype)))) {
    std::memset(data_, 0xff, static_cast<size_t>(size * size_of(dtype)));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void* data() { return data_; }
  const void* data() const { return data_; }
  int64_t size() const { return size_; }
  DType dtype() const { return dtype_; }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::kFloat64:
        return static_cast<const double*>(data_)[i];
      case DType::kFloat32:
        return static_cast<const float*>(data_)[i];
      case DType::kBFloat16: {
        const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data_)[i]) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
      }
      default:
        return from_half(static_cast<const uint16_t*>(data_)[i]);
    }
  }
  void set(int64_t i, double x) {
    switch (dtype_) {
      case DType::kFloat64:
        static_cast<double*>(data_)[i] = x;
        return;
      case DType::kFloat32:
        static_cast<float*>(data_)[i] = static_cast<float>(x);
        return;
      case DType::kBFloat16: {
        const float value = static_cast<float>(x);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        if (value == value) bits += 0x7fffu + ((bits >> 16) & 1u);
        static_cast<uint16_t*>(data_)[i] = static_cast<uint16_t>(bits >> 16);
        return;
      }
      default:
        static_cast<uint16_t*>(data_)[i] = to_half(x);
    }
  }
  void fill(double x) {
    for (int64_t i = 0; i < size_; ++i) set(i, x);
  }
  Buffer& randomise(Random& random, bool ties = false) {
    for (int64_t i = 0; i < size_; ++i) {
      set(i, ties ? static_cast<double>(random.between(-2, 2)) : random.uniform());
    }
    return *this;
  }
  std::vector<double> values() const {
    std::vector<double> result(static_cast<size_t>(size_));
    for (int64_t i = 0; i < size_; ++i) result[static_cast<size_t>(i)] = get(i);
    return result;
  }

 private:
  DType dtype_;
  int64_t size_;
  void* data_;
};

// Plain [size] of integers or bytes, in a block of exactly its size.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t size) : data_(static_cast<T*>(std::malloc(static_cast<size_t>(size) * sizeof(T)))) {
    std::memset(data_, 0xff, static_cast<size_t>(size) * sizeof(T));
  }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  ~Exact() { std::free(data_); }
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  T* data_;
};

// Rows a distance apart: the gaps between them are NaN, and nothing follows the last.
struct Matrix {
  int64_t rows, columns, row;
  Buffer buffer;

  Matrix(DType dtype, int64_t rows_, int64_t columns_, int64_t gap = 0)
      : rows(rows_),
        columns(columns_),
        row(columns_ + gap),
        buffer(dtype, rows_ == 0 ? 0 : (rows_ - 1) * row + columns_) {}
  Matrix& randomise(Random& random, double scale = 1) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      buffer.set(i / columns * row + i % columns, scale * random.uniform());
    }
    return *this;
  }
  double get(int64_t r, int64_t c) const { return buffer.get(r * row + c); }
  void* from(int64_t r) { return static_cast<char*>(buffer.data()) + r * row * size_of(buffer.dtype()); }
};

// Element (n, c, h, w) of a contiguous or channels_last tensor.
struct Image {
  int64_t n, c, h, w;
  bool channels_last;
  int64_t size() const { return n * c * h * w; }
  int64_t at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return channels_last ? ((in * h + ih) * w + iw) * c + ic : ((in * c + ic) * h + ih) * w + iw;
  }
};

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kReLU:
      return x < 0 ? 0 : x;
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    default:
      return x;
  }
}
// From the output `y`, as the kernels do it.
inline double activation_derivative(Activation activation, double y) {
  switch (activation) {
    case Activation::kReLU:
      return y > 0 ? 1 : 0;
    case Activation::kSigmoid:
      return y * (1 - y);
    case Activation::kTanh:
      return 1 - y * y;
    default:
      return 1;
  }
}

// Ends the program at the first element that is off by more than `roundings` of the result's type and the
// rounding of `additions` additions of terms up to `magnitude`.
inline void expect_close(const Buffer& result, const std::vector<double>& expected, int64_t additions,
                         double magnitude, const std::string& what, int roundings = 1) {
  const double sums = 4 * unit_roundoff(accumulator_of(result.dtype())) * static_cast<double>(additions + 8);
  const double smallest = result.dtype() == DType::kFloat16 ? 0x1p-24 : 0;
  for (int64_t i = 0; i < result.size(); ++i) {
    const double a = result.get(i), b = expected[static_cast<size_t>(i)];
    const double allowed =
        roundings * 1.01 * unit_roundoff(result.dtype()) * std::fabs(b) + sums * magnitude + smallest;
    if (std::isnan(a) != std::isnan(b) || (!std::isnan(b) && !(std::fabs(a - b) <= allowed || a == b))) {
      std::fprintf(stderr, "%s: element %lld is %.9g, expected %.9g\n", what.c_str(),
                   static_cast<long long>(i), a, b);
      std::exit(1);
    }
  }
}

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

inline void expect_same(const Buffer& a, const Buffer& b, const std::string& what) {
  expect(std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size() * size_of(a.dtype()))) == 0,
         what + ": differs between one call and pieces");
}

// Calls run(row_begin, row_end, column_begin, column_end) on four parts, as threads would have them.
template <typename Run>
void in_pieces(Random& random, int64_t rows, int64_t columns, Run run) {
  const int64_t row = random.between(0, rows), column = random.between(0, columns);
  run(row, rows, column, columns);
  run(0, row, column, columns);
  run(row, rows, 0, column);
  run(0, row, 0, column);
}

// Compares the results of one instruction set after another with what is expected and with each other.
class Agreement {
 public:
  void next_set() { results_.emplace_back(); }
  void check(const Buffer& result, const std::vector<double>& expected, int64_t additions, double magnitude,
             const std::string& what) {
    expect_close(result, expected, additions, magnitude, what);
    compare(result, additions, magnitude, what);
  }
  void compare(const Buffer& result, int64_t additions, double magnitude, const std::string& what) {
    const size_t number = results_.back().size();
    for (size_t set = 0; set + 1 < results_.size(); ++set) {
      expect_close(result, results_[set][number], 2 * additions, magnitude, what + " against another set", 2);
    }
    results_.back().push_back(result.values());
  }

 private:
  std::vector<std::vector<std::vector<double>>> results_;
};

// The tables of one family for the instruction sets of this processor, best last.
template <typename Table>
struct Tables {
  const Table* table[3];
  int count;
  const char* name(int i) const { return cpu::isa_name(static_cast<cpu::Isa>(i)); }
};
template <typename Table>
Tables<Table> tables(const Table& baseline, const Table& avx2, const Table& avx512) {
  return {{&baseline, &avx2, &avx512}, static_cast<int>(cpu::detected_isa()) + 1};
}

void test_conv2d(int cases);
void test_conv2d_batch(int cases);
void test_conv2d_gemm(int cases);
void test_conv2d_grouped(int cases);
void test_conv2d_winograd(int cases);
void test_cross_entropy(int cases);
void test_pool2d(int cases);
void test_batch_norm(int cases);
void test_panel_product(int cases);
void test_recurrent(int cases);
void test_recurrent_sequence(int cases);

}  // namespace d2lfast::test
