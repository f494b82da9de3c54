#include "dtype.h"
#include "recurrent_layer.h"

namespace d2lfast::ops {

using at::Tensor;

RecurrentMode recurrent_mode(std::string_view name) {
  if (name == "tanh") return RecurrentMode::kTanh;
  if (name == "relu") return RecurrentMode::kReLU;
  if (name == "gru") return RecurrentMode::kGRU;
  if (name == "lstm") return RecurrentMode::kLSTM;
  TORCH_CHECK(false, "Unknown recurrent mode: ", name);
}

namespace {

void check_weight(const Tensor& weight, at::IntArrayRef shape, const Tensor& hx, const char* name) {
  TORCH_CHECK(weight.sizes() == shape, "expected ", name, " of size ", shape, ", but got ", weight.sizes());
  TORCH_CHECK(weight.scalar_type() == hx.scalar_type(),
              "expected m1 and m2 to have the same dtype, but got: ", toString(hx.scalar_type()),
              " != ", toString(weight.scalar_type()));
  TORCH_CHECK(weight.device() == hx.device(), "Expected all tensors to be on the same device, but got ",
              hx.device(), " and ", weight.device());
}

void set_steps(RecurrentLayer& layer, const Tensor& input, const std::optional<Tensor>& batch_sizes,
               int64_t batch) {
  layer.batch = batch;
  if (!batch_sizes.has_value() || !batch_sizes->defined()) {
    layer.steps = input.size(0);
    layer.rows = layer.steps * batch;
    TORCH_CHECK(input.size(1) == batch, "Expected hidden batch size ", input.size(1), ", got ", batch);
    TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
    layer.counts.assign(static_cast<size_t>(layer.steps), batch);
    layer.offsets.resize(static_cast<size_t>(layer.steps));
    for (int64_t t = 0; t < layer.steps; ++t) layer.offsets[static_cast<size_t>(t)] = t * batch;
    return;
  }
  TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong && batch_sizes->is_cpu(),
              "batch_sizes should be a 1D int64 tensor on the CPU");
  const Tensor sizes = batch_sizes->contiguous();
  layer.steps = sizes.size(0);
  TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  const int64_t* data = sizes.const_data_ptr<int64_t>();
  layer.counts.assign(data, data + layer.steps);
  int64_t rows = 0, most = batch;
  for (const int64_t count : layer.counts) {
    TORCH_CHECK(count > 0 && count <= most, "batch_sizes should be positive and in decreasing order");
    layer.offsets.push_back(rows);
    rows += count;
    most = count;
  }
  TORCH_CHECK(layer.counts[0] == batch, "Expected hidden batch size ", layer.counts[0], ", got ", batch);
  TORCH_CHECK(rows == input.size(0), "batch_sizes sum up to ", rows, ", but the input has ", input.size(0),
              " rows");
  layer.rows = rows;
}

}  // namespace

RecurrentLayer describe_recurrent_layer(const Tensor& input, const std::optional<Tensor>& batch_sizes,
                                        const Tensor& hx, const std::optional<Tensor>& cx,
                                        at::TensorList weights, std::string_view mode, bool bias,
                                        bool projected, bool reverse) {
  RecurrentLayer layer;
  layer.mode = recurrent_mode(mode);
  layer.reverse = reverse;
  layer.projected = projected;
  const bool packed = batch_sizes.has_value() && batch_sizes->defined();
  layer.tokens = input.scalar_type() == at::kLong;
  TORCH_CHECK(layer.tokens || input.is_floating_point(),
              "d2lfast::_recurrent_layer takes floating-point tensors or int64 tokens, but got ",
              toString(input.scalar_type()));
  const int64_t dims = (packed ? 2 : 3) - layer.tokens;
  TORCH_CHECK(input.dim() == dims, "input must have ", dims, " dimensions, got ", input.dim());
  TORCH_CHECK(layer.tokens || input.scalar_type() == hx.scalar_type(),
              "Input and hidden tensors are not the same dtype, found input tensor with ",
              toString(input.scalar_type()), " and hidden tensor with ", toString(hx.scalar_type()));
  TORCH_CHECK(input.device() == hx.device(), "Input and hidden tensors are not at the same device, found ",
              input.device(), " and ", hx.device());
  TORCH_CHECK(!projected || layer.mode == RecurrentMode::kLSTM, "only an LSTM has a projection");
  layer.compute = accumulator_type(hx.scalar_type());
  kernel_dtype(hx, "d2lfast::_recurrent_layer");  // refuses other types
  const size_t each = 2 + (bias ? 2 : 0) + (projected ? 1 : 0);
  TORCH_CHECK(weights.size() == each || weights.size() == 2 * each, "expected ", each, " weights a direction",
              ", but got ", weights.size());
  layer.directions = static_cast<int64_t>(weights.size() / each);
  TORCH_CHECK(!reverse || layer.directions == 1, "reverse is for layers of one direction");
  TORCH_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2, "expected weights of 2 dimensions, but got ",
              weights[0].dim(), " and ", weights[1].dim());
  layer.inputs = weights[0].size(1);
  layer.state = weights[1].size(1);
  layer.hidden = weights[1].size(0) / gates_of(layer.mode);
  TORCH_CHECK(layer.hidden > 0, "expected weights with rows");
  TORCH_CHECK(layer.tokens || input.size(-1) == layer.inputs, "input.size(-1) must be equal to input_size. ",
              "Expected ", layer.inputs, ", got ", input.size(-1));
  TORCH_CHECK(projected || layer.state == layer.hidden, "expected recurrent weights of ",
              gates_of(layer.mode) * layer.state, " rows, but got ", weights[1].size(0));
  TORCH_CHECK(hx.dim() == 3 && hx.size(0) == layer.directions && hx.size(2) == layer.state,
              "Expected hidden of size [", layer.directions, ", N, ", layer.state, "], got ", hx.sizes());
  set_steps(layer, input, batch_sizes, hx.size(1));
  if (layer.mode == RecurrentMode::kLSTM) {
    TORCH_CHECK(cx.has_value() && cx->defined(), "an LSTM needs a cell state");
    const at::DimVector shape{layer.directions, layer.batch, layer.hidden};
    check_weight(*cx, shape, hx, "cell state");
  }
  const int64_t gates = layer.gates();
  for (int64_t d = 0; d < layer.directions; ++d) {
    const Tensor* given = &weights[static_cast<size_t>(d) * each];
    RecurrentWeights w;
    w.w_ih = *given++;
    w.w_hh = *given++;
    check_weight(w.w_ih, {gates, layer.inputs}, hx, "input weights");
    check_weight(w.w_hh, {gates, layer.state}, hx, "recurrent weights");
    if (bias) {
      w.b_ih = *given++;
      w.b_hh = *given++;
      check_weight(w.b_ih, {gates}, hx, "biases");
      check_weight(w.b_hh, {gates}, hx, "biases");
    }
    if (projected) {
      w.w_hr = *given++;
      check_weight(w.w_hr, {layer.state, layer.hidden}, hx, "projection weights");
    }
    for (Tensor* tensor : {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr}) {
      if (tensor->defined()) *tensor = tensor->to(layer.compute).contiguous();
    }
    layer.weights.push_back(std::move(w));
  }
  return layer;
}

}  // namespace d2lfast::ops
