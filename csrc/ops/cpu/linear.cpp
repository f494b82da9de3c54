#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

#include "../allocate.h"
#include "../linear.h"
#include "operators.h"
#include "panel_products.h"
#include "scratch.h"

namespace d2lfast::ops {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// A linear layer over the rows of a dense input. Rows are taken in parts, which threads share out, and
// blocks, which stay in the cache while all is done with them; both depend on nothing but the shape.
class LinearRows {
 public:
  static constexpr int64_t kPart = 512, kBlock = 128;

  LinearRows(const Tensor& input, const Tensor& weight)
      : type(input.scalar_type() == at::kDouble ? 0 : 1),
        bytes(static_cast<int64_t>(input.element_size())),
        inputs(weight.size(1)),
        outputs(weight.size(0)),
        rows(input.numel() / inputs),
        parts((rows + kPart - 1) / kPart) {}

  int64_t padded(int64_t columns) const { return vectors(columns) * lanes(); }
  const char* at(const Tensor& tensor, int64_t element) const {
    return static_cast<const char*>(tensor.const_data_ptr()) + element * bytes;
  }
  char* at_mutable(const Tensor& tensor, int64_t element) const {
    return static_cast<char*>(tensor.data_ptr()) + element * bytes;
  }

  // body(begin, end, part) for each block of each part.
  template <typename Body>
  void for_blocks(const Body& body) const {
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        const int64_t stop = std::min((part + 1) * kPart, rows);
        for (int64_t row = part * kPart; row < stop; row += kBlock) {
          body(row, std::min(row + kBlock, stop), part);
        }
      }
    });
  }

  // A dense matrix [count,columns] as products want it on the right: itself or packed in scratch memory.
  const void* packed_in_scratch(const void* matrix, int64_t count, int64_t columns) const {
    if (is_packed(columns, columns, lanes())) return matrix;
    void* packed = thread_scratch(static_cast<size_t>(count * padded(columns) * bytes));
    pack(matrix, count, columns, packed);
    return packed;
  }

  // A dense matrix [count,columns], packed for products with it on the right.
  void pack(const void* matrix, int64_t count, int64_t columns, void* packed) const {
    PackRows p{};
    p.inner = p.total = count;
    p.columns = p.matrix_row = columns;
    p.matrix = matrix;
    p.packed = packed;
    kernels.pack_rows[type](p, 0, panels(columns));
  }

  // to[count,columns] (+)= a[count,inner] packed[inner,columns].
  void multiply(const void* a, int64_t a_row, int64_t a_inner, const void* packed, int64_t inner,
                int64_t columns, int64_t count, void* to, bool accumulate) const {
    PanelProduct p{};
    p.inner = p.b_total = inner;
    p.columns = p.c_row = columns;
    p.a = a;
    p.a_row = a_row;
    p.a_inner = a_inner;
    p.b = packed;
    p.c = to;
    p.accumulate = accumulate;
    kernels.product[type](p, 0, count, 0, panels(columns));
  }

  const PanelKernels& kernels = panel_product_kernels();
  const int type;
  const int64_t bytes, inputs, outputs, rows, parts;

 private:
  int64_t lanes() const { return kernels.lanes[type]; }
  int64_t vectors(int64_t columns) const { return (columns + lanes() - 1) / lanes(); }
  int64_t panels(int64_t columns) const { return PanelGrid(vectors(columns)).count; }
};

void check(const Tensor& input, const Tensor& weight, const Optional& bias) {
  const auto type = input.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "_linear takes float32 and float64, got ",
              toString(type));
  check_linear(input, weight, bias);
}

}  // namespace

Tensor linear_cpu(const Tensor& input, const Tensor& weight, const Optional& bias) {
  check(input, weight, bias);
  const LinearRows layer(input, weight);
  const Tensor x = input.contiguous(), w = weight.t().contiguous();
  const Tensor b = bias.has_value() ? bias->contiguous() : Tensor();
  auto sizes = input.sizes().vec();
  sizes.back() = layer.outputs;
  const Tensor output = empty(sizes, input.options());
  const Tensor packed = empty({layer.inputs * layer.padded(layer.outputs)}, input.options());
  layer.pack(w.const_data_ptr(), layer.inputs, layer.outputs, packed.data_ptr());
  const auto size = static_cast<size_t>(layer.outputs * layer.bytes);
  layer.for_blocks([&](int64_t begin, int64_t end, int64_t) {
    char* to = layer.at_mutable(output, begin * layer.outputs);
    for (int64_t row = 0; b.defined() && row < end - begin; ++row) {
      std::memcpy(to + row * static_cast<int64_t>(size), b.const_data_ptr(), size);
    }
    layer.multiply(layer.at(x, begin * layer.inputs), layer.inputs, 1, packed.const_data_ptr(), layer.inputs,
                   layer.outputs, end - begin, to, b.defined());
  });
  return output;
}

// Each block is multiplied with the weight and added to the weight's gradient while it is in the cache. Parts
// have sums of their own, which are added in order.
std::tuple<Tensor, Tensor, Tensor> linear_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, std::array<bool, 3> mask) {
  check(input, weight, {});
  check_linear_gradient(grad_output, input, weight);
  const LinearRows layer(input, weight);
  const int64_t inputs = layer.inputs, outputs = layer.outputs, weights = outputs * inputs;
  const auto options = input.options();
  const Tensor grad = grad_output.contiguous(), x = input.contiguous(), w = weight.contiguous();
  const Tensor grad_input = empty(mask[0] ? input.sizes() : at::IntArrayRef{0}, options);
  const Tensor grad_weight = mask[1] ? zeros({outputs, inputs}, options) : empty({0}, options);
  const Tensor grad_bias = mask[2] ? zeros({outputs}, options) : empty({0}, options);
  const Tensor sums = zeros({layer.parts, weights + outputs}, options);
  const Tensor packed = empty({outputs * layer.padded(inputs)}, options);
  layer.pack(w.const_data_ptr(), outputs, inputs, packed.data_ptr());
  layer.for_blocks([&](int64_t begin, int64_t end, int64_t part) {
    const int64_t count = end - begin;
    const char* rows = layer.at(grad, begin * outputs);
    char* sum = layer.at_mutable(sums, part * (weights + outputs));
    if (mask[0]) {
      layer.multiply(rows, outputs, 1, packed.const_data_ptr(), outputs, inputs, count,
                     layer.at_mutable(grad_input, begin * inputs), false);
    }
    if (mask[1]) {
      const void* block = layer.packed_in_scratch(layer.at(x, begin * inputs), count, inputs);
      layer.multiply(rows, 1, outputs, block, count, inputs, outputs, sum, true);
    }
    if (mask[2]) {
      layer.kernels.add_rows[layer.type](rows, outputs, count, outputs, sum + weights * layer.bytes);
    }
  });
  auto* add_rows = layer.kernels.add_rows[layer.type];
  if (mask[1]) add_rows(layer.at(sums, 0), weights + outputs, layer.parts, weights, grad_weight.data_ptr());
  if (mask[2]) {
    add_rows(layer.at(sums, weights), weights + outputs, layer.parts, outputs, grad_bias.data_ptr());
  }
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace d2lfast::ops
