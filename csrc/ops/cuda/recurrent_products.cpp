#include "recurrent_products.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "implicit_gemm.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

using at::Tensor;

bool is_16_bit(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// A matrix as images of one pixel: each row is its channels.
constexpr cuda::Conv2dAxis kPixel{1, 1, 1, 1, 0, 1};

// Whether implicit GEMM takes rows of so many floats, rounded to TF32.
bool takes_implicit(const Tensor& a, int64_t rows, std::initializer_list<int64_t> widths) {
  if (a.scalar_type() != at::kFloat || rows == 0 || rows > INT32_MAX / 2 || !recurrent_tf32()) return false;
  return std::all_of(widths.begin(), widths.end(), [](int64_t n) { return n > 0 && n % 4 == 0; });
}

Tensor exact_product(const Tensor& a, const Tensor& b) {
  if (!is_16_bit(a)) return at::mm(a, b);
  // The tests' emulated GPU has no products of 16 bits with sums in float.
  return a.is_cuda() ? at::mm(a, b, at::kFloat) : at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

}  // namespace

bool recurrent_tf32() { return takes_tf32(at::Float32Op::RNN); }

Tensor times_transposed(const Tensor& a, const Tensor& b, const Tensor& bias) {
  const int64_t rows = a.size(0), inner = a.size(1), columns = b.size(0);
  if (!takes_implicit(a, rows, {inner, columns})) {
    if (!bias.defined()) return exact_product(a, b.t());
    return is_16_bit(a) ? exact_product(a, b.t()).add_(bias) : at::addmm(bias, a, b.t());
  }
  const Tensor source = on_16_bytes(a, at::MemoryFormat::Contiguous),
               weight = on_16_bytes(b, at::MemoryFormat::Contiguous);
  const Tensor offset = bias.defined() ? bias.contiguous() : bias;
  const Tensor result = at::empty({rows, columns}, a.options());
  const cuda::Conv2dImplicitParams params{source.const_data_ptr(),
                                          weight.const_data_ptr(),
                                          offset.defined() ? offset.const_data_ptr() : nullptr,
                                          nullptr,
                                          result.mutable_data_ptr(),
                                          Activation::kNone,
                                          rows,
                                          static_cast<int32_t>(inner),
                                          static_cast<int32_t>(columns),
                                          kPixel,
                                          kPixel,
                                          false,
                                          true};
  C10_CUDA_CHECK(cuda::launch_conv2d_implicit(params, DType::kFloat32, current_stream()));
  return result;
}

Tensor transposed_times(const Tensor& a, const Tensor& b) {
  const int64_t rows = a.size(0);
  if (!takes_implicit(a, rows, {a.size(1), b.size(1)})) return exact_product(a.t(), b);
  const Tensor gradient = on_16_bytes(b, at::MemoryFormat::Contiguous),
               source = on_16_bytes(a, at::MemoryFormat::Contiguous);
  const cuda::Conv2dImplicitWeightParams params{gradient.const_data_ptr(),
                                                source.const_data_ptr(),
                                                nullptr,
                                                rows,
                                                static_cast<int32_t>(a.size(1)),
                                                static_cast<int32_t>(b.size(1)),
                                                kPixel,
                                                kPixel,
                                                true,
                                                1};
  const Tensor parts = implicit_weight_parts(params, a);
  return (parts.size(0) == 1 ? parts : add_parts(parts, a)).view({a.size(1), b.size(1)});
}

}  // namespace d2lfast::ops
