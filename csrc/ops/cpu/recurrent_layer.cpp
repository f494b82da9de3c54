#include "recurrent_layer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "../../kernels/cpu/isa.h"

D2LFAST_DECLARE_TABLES(PanelKernels, panel_product_kernels);
D2LFAST_DECLARE_TABLES(RecurrentSequenceKernels, recurrent_sequence_kernels);

namespace d2lfast::ops {

using at::Tensor;

const PanelKernels& panel_product_kernels() { return D2LFAST_SELECT_TABLE(panel_product_kernels); }

const RecurrentSequenceKernels& recurrent_sequence_kernels() {
  return D2LFAST_SELECT_TABLE(recurrent_sequence_kernels);
}

CPURecurrentLayer::CPURecurrentLayer(RecurrentLayer layer)
    : RecurrentLayer(std::move(layer)),
      type(compute == at::kDouble ? 0 : 1),
      lanes(panel_product_kernels().lanes[type]) {}

bool CPURecurrentLayer::small() const {
  constexpr int64_t kCached = 192 << 10;
  return (padded(hidden) * gates_of(mode) * (inputs + state)) * static_cast<int64_t>(bytes()) <= kCached;
}

int64_t CPURecurrentLayer::block_rows() const {
  if (small()) {
    // A function of the shape alone: the sums over blocks must not depend on the threads.
    const int64_t most = batch >= 512 ? 64 : batch >= 128 ? 32 : 16;
    const int64_t blocks = (batch + most - 1) / most;
    return (batch + blocks - 1) / std::max<int64_t>(blocks, 1);
  }
  if (batch >= 128) return 64;
  // Each thread reads the whole recurrent weight in every step, which pays for the saved waiting while the
  // weight comes from the second-level cache and there are rows to use it on.
  constexpr int64_t kCached = 1 << 20, kLeastRows = 12;
  const int64_t shares = std::max<int64_t>(1, at::get_num_threads() / directions);
  const int64_t rows = (batch + shares - 1) / shares;
  const bool cached = padded(hidden) * gates_of(mode) * state * static_cast<int64_t>(bytes()) <= kCached;
  return cached && rows >= kLeastRows ? rows : 0;
}

std::string recurrent_schedule(const std::string& mode, int64_t batch, int64_t inputs, int64_t state,
                               int64_t hidden, int64_t directions, bool wide) {
  RecurrentLayer shape{};
  shape.mode = recurrent_mode(mode);
  shape.batch = batch;
  shape.inputs = inputs;
  shape.state = state;
  shape.hidden = hidden;
  shape.directions = directions;
  shape.compute = wide ? at::kDouble : at::kFloat;
  const CPURecurrentLayer layer(std::move(shape));
  return layer.small() ? "fused" : layer.block_rows() > 0 ? "rows" : "units";
}

Rows rows_of(const CPURecurrentLayer& layer, const Tensor& tensor, bool packed) {
  Rows rows;
  if (!tensor.defined()) return rows;
  // The kernels read through this pointer unless the caller made the tensor.
  rows.data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  rows.layer = &layer;
  rows.packed = packed;
  rows.row = tensor.stride(-2);
  rows.step = packed ? 0 : tensor.stride(-3);
  return rows;
}

Before before(const CPURecurrentLayer& layer, bool reversed, int64_t t) {
  if (reversed) {
    return t + 1 < layer.steps ? Before{t + 1, layer.counts[static_cast<size_t>(t + 1)]} : Before{0, 0};
  }
  return t > 0 ? Before{t - 1, layer.counts[static_cast<size_t>(t)]} : Before{0, 0};
}

bool finite(const Tensor& tensor) {
  const auto check = [](const auto* data, int64_t count) {
    auto sum = *data * 0;
    for (int64_t i = 0; i < count; ++i) sum += data[i] * 0;
    return sum == 0;
  };
  if (tensor.numel() == 0) return true;
  return tensor.scalar_type() == at::kDouble ? check(tensor.const_data_ptr<double>(), tensor.numel())
                                             : check(tensor.const_data_ptr<float>(), tensor.numel());
}

void threaded_product(const CPURecurrentLayer& layer, const PanelProduct& product, int64_t rows) {
  if (rows == 0) return;
  auto* kernel = panel_product_kernels().product[layer.type];
  constexpr int64_t kChunk = 192;
  const int64_t panels = layer.panels(product.columns), chunks = (rows + kChunk - 1) / kChunk;
  const int64_t cost = std::max<int64_t>(1, std::min(rows, kChunk) * product.inner * kPanelVectors);
  at::parallel_for(0, panels * chunks, std::max<int64_t>(1, (1 << 16) / cost),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t panel = task / chunks, row = task % chunks * kChunk;
                       kernel(product, row, std::min(row + kChunk, rows), panel, panel + 1);
                     }
                   });
}

void threaded_pack_rows(const CPURecurrentLayer& layer, const Tensor& matrix, int64_t first, int64_t total,
                        void* packed) {
  PackRows params{};
  params.inner = matrix.size(0);
  params.columns = matrix.size(1);
  params.first = first;
  params.total = total;
  params.matrix = matrix.const_data_ptr();
  params.matrix_row = matrix.stride(0);
  params.packed = packed;
  const int64_t panels = layer.panels(params.columns);
  const int64_t grain =
      std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, params.inner * 4 * layer.lanes));
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    panel_product_kernels().pack_rows[layer.type](params, begin, end);
  });
}

}  // namespace d2lfast::ops
