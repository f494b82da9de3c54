#include "recurrent_generate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "../../kernels/cpu/isa.h"
#include "../../kernels/recurrent.h"
#include "../allocate.h"
#include "recurrent_layer.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(RecurrentKernels, recurrent_kernels);

namespace d2lfast::ops {

namespace {

using at::Tensor;

constexpr int64_t kMostRows = 4;

bool plain(const Tensor& tensor, at::ScalarType type) {
  return tensor.scalar_type() == type && tensor.device().is_cpu() && tensor.layout() == at::kStrided &&
         tensor.is_contiguous() && !tensor.is_neg() && !tensor._is_zerotensor();
}

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return tensor.sizes().equals(at::IntArrayRef(shape.begin(), shape.size()));
}

// result [rows,columns] = x [rows,inner] w [columns,inner]^T
void product(int type, const void* x, const Tensor& w, int64_t rows, void* result) {
  const int64_t columns = w.size(0), inner = w.size(1);
  auto* kernel = panel_product_kernels().row_products[type];
  const void* weight = w.const_data_ptr();
  constexpr int64_t kColumns = 32, kLeast = 1 << 16;
  if (columns * inner <= kLeast) {
    return kernel(x, inner, weight, rows, inner, result, columns, 0, columns);
  }
  const int64_t chunks = (columns + kColumns - 1) / kColumns;
  at::parallel_for(0, chunks, std::max<int64_t>(1, kLeast / (kColumns * inner)),
                   [&](int64_t begin, int64_t end) {
                     kernel(x, inner, weight, rows, inner, result, columns, begin * kColumns,
                            std::min(end * kColumns, columns));
                   });
}

template <typename A>
void add(void* to, const void* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) static_cast<A*>(to)[i] += static_cast<const A*>(from)[i];
}

}  // namespace

std::optional<std::tuple<Tensor, Tensor, Tensor>> recurrent_generate(const Tensor& input, const Tensor& hx,
                                                                     const Tensor* cx,
                                                                     const std::vector<Tensor>& weights,
                                                                     int64_t mode_number, bool bias) {
  const auto mode = static_cast<RecurrentMode>(mode_number);
  const auto type = input.scalar_type();
  if (type != at::kFloat && type != at::kDouble) return {};
  if (input.dim() != 3 || hx.dim() != 3 || input.size(0) != 1) return {};
  const int64_t rows = input.size(1), hidden = hx.size(2), layers = hx.size(0),
                gates = gates_of(mode) * hidden;
  const size_t each = bias ? 4 : 2;
  if (rows < 1 || rows > kMostRows || hidden < 1 || weights.size() != each * static_cast<size_t>(layers))
    return {};
  if (!plain(input, type) || !plain(hx, type) || hx.size(1) != rows) return {};
  if (cx != nullptr && (!plain(*cx, type) || !has_shape(*cx, {layers, rows, hidden}))) return {};
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t place = i % each;
    const int64_t columns = place == 1 || i >= each ? hidden : input.size(2);
    const bool fits = place < 2 ? has_shape(weights[i], {gates, columns}) : has_shape(weights[i], {gates});
    if (!plain(weights[i], type) || !fits) return {};
  }
  const int index = type == at::kDouble ? 0 : 1;
  const auto bytes = static_cast<int64_t>(index == 0 ? sizeof(double) : sizeof(float));
  const auto& kernels = D2LFAST_SELECT_TABLE(recurrent_kernels);
  const Tensor output = empty({1, rows, hidden}, input.options());
  const Tensor h_n = empty({layers, rows, hidden}, input.options());
  const Tensor c_n = cx != nullptr ? empty({layers, rows, hidden}, input.options()) : Tensor();
  char* scratch =
      static_cast<char*>(thread_scratch(static_cast<size_t>(rows * (2 * gates + hidden) * bytes)));
  char* recurrent = scratch + rows * gates * bytes;
  const int64_t size = rows * hidden * bytes;
  const char* x = static_cast<const char*>(input.const_data_ptr());
  for (int64_t layer = 0; layer < layers; ++layer) {
    const Tensor* w = &weights[each * static_cast<size_t>(layer)];
    const char* h = static_cast<const char*>(hx.const_data_ptr()) + layer * size;
    char* y = static_cast<char*>(h_n.data_ptr()) + layer * size;
    const bool simple = gates_of(mode) == 1;
    char* sums = simple ? y : scratch;
    product(index, x, w[0], rows, sums);
    product(index, h, w[1], rows, recurrent);
    RecurrentForward p{};
    p.hidden = hidden;
    p.activation = mode == RecurrentMode::kReLU ? Activation::kReLU : Activation::kTanh;
    p.gates = sums;
    p.b_ih = bias ? w[2].const_data_ptr() : nullptr;
    p.b_hh = bias ? w[3].const_data_ptr() : nullptr;
    p.output = y;
    if (mode == RecurrentMode::kGRU) {
      p.hidden_gates = recurrent;
      p.state = h;
      p.candidate = recurrent + rows * gates * bytes;
      kernels.gru_forward[index](p, 0, rows);
    } else {
      index == 0 ? add<double>(sums, recurrent, rows * gates) : add<float>(sums, recurrent, rows * gates);
      if (simple) {
        kernels.rnn_forward[index](p, 0, rows);
      } else {
        p.state = static_cast<const char*>(cx->const_data_ptr()) + layer * size;
        p.cell = static_cast<char*>(c_n.data_ptr()) + layer * size;
        kernels.lstm_forward[index](p, 0, rows);
      }
    }
    x = y;
  }
  std::memcpy(output.data_ptr(), x, static_cast<size_t>(size));
  return std::make_tuple(output, h_n, c_n);
}

}  // namespace d2lfast::ops
