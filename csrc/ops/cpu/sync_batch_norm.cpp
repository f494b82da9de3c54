#include <ATen/Parallel.h>

#include "../activation.h"
#include "../allocate.h"
#include "../batch_norm.h"
#include "../dtype.h"
#include "batch_norm_runner.h"
#include "operators.h"

namespace d2lfast::ops {

at::Tensor sync_batch_norm_moments_cpu(const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, "expected input of at least 2 dimensions, but got input of size ",
              input.sizes());
  const DType dtype = kernel_dtype(input, "d2lfast::_sync_batch_norm_moments");
  const int64_t channels = input.size(1);
  at::Tensor moments = zeros({2, channels}, input.options().dtype(at::kDouble));
  if (input.numel() == 0) return moments;
  const auto format = input.suggest_memory_format();
  const at::Tensor source = input.contiguous(format);
  const BatchNormGeometry g(source, format);
  BatchNormRunner run(g, dtype, input.element_size());
  run.base.input = source.const_data_ptr();
  ChannelValues first(channels), second(channels);
  if (g.columns) {
    run.center_columns();
    run.column_sums(run.table.column_moments, first, second);
  } else {
    at::parallel_for(0, channels, run.grain_of(g.count()), [&](int64_t from, int64_t to) {
      for (int64_t c = from; c < to; ++c) {
        run.center_plane(c);
        double sums[2];
        BatchNormParams p = run.planes(c);
        p.sums = sums;
        run.run(run.table.plane_moments, p);
        first[c] = sums[0];
        second[c] = sums[1];
      }
    });
  }
  double* const mean = moments.mutable_data_ptr<double>();
  double* const squares = mean + channels;
  for (int64_t c = 0; c < channels; ++c) {
    const double distance = first[c] / g.count();
    mean[c] = run.coefficients.get(Coefficients::kCenter, c) + distance;
    const double value = second[c] - distance * first[c];
    squares[c] = value < 0 ? 0 : value;
  }
  return moments;
}

std::tuple<at::Tensor, at::Tensor> sync_batch_norm_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const at::Tensor& statistics, const std::optional<at::Tensor>& output,
    const std::optional<at::Tensor>& mask, std::string_view activation_name, const at::Tensor& means,
    bool wants_residual) {
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const Activation activation = parse_activation(activation_name);
  const int64_t channels = input.size(1);
  const auto format = input.suggest_memory_format();
  check_batch_norm_backward(grad_output, input, statistics, output, mask, activation);
  check_sync_batch_norm_means(means, input);
  at::Tensor grad_input = empty(input.sizes(), input.options().memory_format(format));
  at::Tensor grad_residual = wants_residual ? empty(input.sizes(), input.options().memory_format(format))
                                            : empty({0}, input.options());
  if (input.numel() == 0) return {grad_input, grad_residual};

  const at::Tensor x = input.contiguous(format), gradient = grad_output.contiguous(format);
  at::Tensor activated;
  if (keeps_output(activation)) activated = output->contiguous(format);
  const BatchNormGeometry g(x, format);
  BatchNormRunner run(g, dtype, input.element_size());
  run.base.activation = activation;
  run.base.input = x.const_data_ptr();
  run.base.gradient = gradient.const_data_ptr();
  run.base.activated = activated.defined() ? activated.const_data_ptr() : nullptr;
  if (activation == Activation::kReLU && mask.has_value() && mask->defined()) {
    run.base.mask = const_cast<uint8_t*>(mask->const_data_ptr<uint8_t>());
  }
  run.base.result = grad_input.mutable_data_ptr();
  run.base.grad_residual = wants_residual ? grad_residual.mutable_data_ptr() : nullptr;
  run.choose_stream();
  const ChannelValues weights = read_channels(weight, channels, 1);
  const ChannelValues centers = read_row(statistics, 0);
  const ChannelValues inverses = read_row(statistics, 1);
  const ChannelValues shifts = read_row(statistics, 2);
  const ChannelValues first = read_row(means, 0);
  const ChannelValues second = read_row(means, 1);
  Coefficients& k = run.coefficients;
  for (int64_t c = 0; c < channels; ++c) {
    k.set(Coefficients::kCenter, c, centers[c]);
    k.set(Coefficients::kScale, c, weights[c] * inverses[c]);
    k.set(Coefficients::kShift, c, shifts[c]);
    k.set(Coefficients::kSlope, c, -inverses[c] * second[c]);
    k.set(Coefficients::kOffset, c, -first[c]);
  }
  run.elementwise(run.table.plane_gradient, run.table.column_gradient);
  return {grad_input, grad_residual};
}

}  // namespace d2lfast::ops
