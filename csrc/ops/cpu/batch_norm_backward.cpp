#include <ATen/Parallel.h>

#include "../activation.h"
#include "../allocate.h"
#include "../batch_norm.h"
#include "../dtype.h"
#include "batch_norm_runner.h"
#include "operators.h"

namespace d2lfast::ops {

namespace {

// The sweeps of a gradient: the sums over each channel, if wanted, then the elementwise one, if wanted.
// Without terms of the batch one sweep does both. `finish` sets a channel's slope and offset once its sums
// are known.
template <typename Finish>
void sweep(BatchNormRunner& run, bool training, bool sums_wanted, bool sweeps, ChannelValues& first,
           ChannelValues& second, const Finish& finish) {
  const auto& g = run.geometry;
  const auto& table = run.table;
  if (!sums_wanted) {
    if (sweeps) run.elementwise(table.plane_gradient, table.column_gradient);
    return;
  }
  run.base.writes = !training && sweeps;
  const bool again = training && sweeps;
  if (g.columns) {
    run.column_sums(table.column_gradient_sums, first, second);
    if (!again) return;
    for (int64_t c = 0; c < g.channels; ++c) finish(c);
    return run.elementwise(table.plane_gradient, table.column_gradient);
  }
  const int64_t together = run.channels_together();
  at::parallel_for(0, g.channels, run.grain_of(g.count()), [&](int64_t from, int64_t to) {
    for (int64_t begin = from; begin < to; begin += together) {
      const int64_t end = std::min(to, begin + together);
      for (int64_t c = begin; c < end; ++c) {
        double sums[2];
        BatchNormParams p = run.planes(c);
        p.sums = sums;
        run.run(table.plane_gradient_sums, p);
        first[c] = sums[0];
        second[c] = sums[1];
        if (again) finish(c);
      }
      // The planes read last are still in the cache.
      if (again) run.channels_elementwise(table.plane_gradient, begin, end - begin);
    }
  });
}

using OptionalTensor = std::optional<at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// `input`: of forward, or in its place the output (`from_output`), which holds x_hat * weight + bias.
Gradients backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
                   const OptionalTensor& bias, const at::Tensor& statistics, const OptionalTensor& output,
                   const OptionalTensor& mask, bool from_output, bool training,
                   std::string_view activation_name, std::array<bool, 4> output_mask) {
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const Activation activation = parse_activation(activation_name);
  check_batch_norm_backward(grad_output, input, statistics, output, mask, activation);
  const auto format = input.suggest_memory_format();
  const int64_t channels = input.size(1);
  const auto [wants_input, wants_weight, wants_bias, wants_residual] = output_mask;
  const auto parameter_options = weight.has_value() && weight->defined() ? weight->options()
                                 : bias.has_value() && bias->defined()   ? bias->options()
                                                                         : input.options();
  const auto nothing = [&] { return empty({0}, input.options()); };
  const auto like_input = [&] { return empty(input.sizes(), input.options().memory_format(format)); };
  at::Tensor grad_input = wants_input ? like_input() : nothing();
  at::Tensor grad_residual = wants_residual ? like_input() : nothing();
  at::Tensor grad_weight = empty({wants_weight ? channels : 0}, parameter_options);
  at::Tensor grad_bias = empty({wants_bias ? channels : 0}, parameter_options);
  if (input.numel() == 0) {
    grad_weight.zero_();
    grad_bias.zero_();
    return {grad_input, grad_weight, grad_bias, grad_residual};
  }

  const at::Tensor x = input.contiguous(format), gradient = grad_output.contiguous(format);
  at::Tensor activated;
  if (keeps_output(activation)) {
    activated = output->contiguous(format);
  } else if (from_output && activation == Activation::kReLU) {
    activated = x;
  }
  const BatchNormGeometry g(x, format);
  BatchNormRunner run(g, dtype, input.element_size());
  run.base.activation = activation;
  run.base.input = x.const_data_ptr();
  run.base.gradient = gradient.const_data_ptr();
  run.base.activated = activated.defined() ? activated.const_data_ptr() : nullptr;
  if (activation == Activation::kReLU && mask.has_value() && mask->defined()) {
    run.base.mask = const_cast<uint8_t*>(mask->const_data_ptr<uint8_t>());
  }
  // The gradient of the residual falls out of the sweep that writes the input's.
  const at::Tensor scratch = wants_residual && !wants_input ? like_input() : grad_input;
  run.base.result = scratch.mutable_data_ptr();
  run.base.grad_residual = wants_residual ? grad_residual.mutable_data_ptr() : nullptr;
  run.choose_stream();
  run.batch_terms = training;
  const bool sweeps = wants_input || wants_residual;
  const bool sums_wanted = wants_weight || wants_bias || (training && sweeps);

  Coefficients& k = run.coefficients;
  const ChannelValues weights = read_channels(weight, channels, 1);
  const ChannelValues centers = from_output ? read_channels(bias, channels, 0) : read_row(statistics, 0);
  const ChannelValues inverses = read_row(statistics, 1);
  const ChannelValues shifts = read_row(statistics, 2);
  // x_hat = (x - center) * unit
  ChannelValues units = inverses;
  for (int64_t c = 0; c < channels; ++c) {
    if (from_output) units[c] = 1 / weights[c];
    k.set(Coefficients::kCenter, c, centers[c]);
    k.set(Coefficients::kScale, c, weights[c] * inverses[c]);
    k.set(Coefficients::kShift, c, shifts[c]);
  }
  ChannelValues first(channels), second(channels);
  sweep(run, training, sums_wanted, sweeps, first, second, [&](int64_t c) {
    k.set(Coefficients::kSlope, c, -units[c] * units[c] * second[c] / g.count());
    k.set(Coefficients::kOffset, c, -first[c] / g.count());
  });
  if (wants_bias) write_channels(grad_bias, first);
  if (wants_weight) {
    for (int64_t c = 0; c < channels; ++c) second[c] *= units[c];
    write_channels(grad_weight, second);
  }
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

}  // namespace

Gradients batch_norm_act_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                      const OptionalTensor& weight, const at::Tensor& statistics,
                                      const OptionalTensor& output, const OptionalTensor& mask, bool training,
                                      std::string_view activation, std::array<bool, 4> output_mask) {
  return backward(grad_output, input, weight, {}, statistics, output, mask, false, training, activation,
                  output_mask);
}

Gradients batch_norm_inplace_backward_cpu(const at::Tensor& grad_output, const at::Tensor& output,
                                          const OptionalTensor& weight, const OptionalTensor& bias,
                                          const at::Tensor& statistics, bool training,
                                          std::string_view activation, std::array<bool, 4> output_mask) {
  return backward(grad_output, output, weight, bias, statistics, output, {}, true, training, activation,
                  output_mask);
}

}  // namespace d2lfast::ops
