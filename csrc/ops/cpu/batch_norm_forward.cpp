#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "../activation.h"
#include "../allocate.h"
#include "../batch_norm.h"
#include "../dtype.h"
#include "../optional_tensor.h"
#include "batch_norm_runner.h"
#include "operators.h"

namespace d2lfast::ops {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// What backward needs beside the input: the arguments of _batch_norm_act_backward.
struct Saved {
  at::Tensor statistics, mask;
  bool decided_by_output = false;  // backward reads ReLU's decisions off the output and needs no mask
};

// mean, 1 / sqrt(variance + eps) rounded, and the variance, which is biased.
struct Statistics {
  ChannelValues mean, invstd, variance;
  explicit Statistics(int64_t channels) : mean(channels), invstd(channels), variance(channels) {}
  void set(int64_t channel, double center, double first, double second, int64_t count) {
    const double distance = first / count;
    mean[channel] = center + distance;
    const double value = second / count - distance * distance;
    variance[channel] = value < 0 ? 0 : value;
  }
};

void train(BatchNormRunner& run, Statistics& s, DType dtype, double eps, const ChannelValues& weights,
           const ChannelValues& biases) {
  const auto& g = run.geometry;
  auto& k = run.coefficients;
  const auto finish = [&](int64_t c, double first, double second) {
    s.set(c, k.get(Coefficients::kCenter, c), first, second, g.count());
    s.invstd[c] = rounded(dtype, 1 / std::sqrt(s.variance[c] + eps));
    k.set_normalize(c, s.mean[c], s.invstd[c], weights[c], biases[c]);
  };
  if (g.columns) {
    ChannelValues first(g.channels), second(g.channels);
    run.center_columns();
    run.column_sums(run.table.column_moments, first, second);
    for (int64_t c = 0; c < g.channels; ++c) finish(c, first[c], second[c]);
    return run.elementwise(run.table.plane_normalize, run.table.column_normalize);
  }
  const int64_t together = run.channels_together();
  at::parallel_for(0, g.channels, run.grain_of(g.count()), [&](int64_t from, int64_t to) {
    for (int64_t begin = from; begin < to; begin += together) {
      const int64_t end = std::min(to, begin + together);
      for (int64_t c = begin; c < end; ++c) {
        run.center_plane(c);
        double sums[2];
        BatchNormParams p = run.planes(c);
        p.sums = sums;
        run.run(run.table.plane_moments, p);
        finish(c, sums[0], sums[1]);
      }
      // The planes read last are still in the cache.
      run.channels_elementwise(run.table.plane_normalize, begin, end - begin);
    }
  });
}

// Writes to `into`, which may be the input itself, or to a new tensor.
at::Tensor forward(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                   double momentum, double eps, std::string_view activation_name,
                   const OptionalTensor& residual, Saved* saved, const at::Tensor& into = {}) {
  const DType dtype = check_batch_norm(input, weight, bias, running_mean, running_var, training, residual);
  const Activation activation = parse_activation(activation_name);
  const auto format = input.suggest_memory_format();
  const at::Tensor source = input.contiguous(format);
  const at::Tensor shortcut = given(residual) ? residual->contiguous(format) : at::Tensor();
  const int64_t channels = input.size(1);
  at::Tensor output = into.defined() ? into : empty(input.sizes(), input.options().memory_format(format));
  if (saved != nullptr) {
    saved->statistics = empty({3, channels}, input.options().dtype(accumulator_type(input.scalar_type())));
    const bool bits = keeps_mask(activation, given(residual)) && !saved->decided_by_output;
    saved->mask = bits ? empty(batch_norm_mask_size(input, format), input.options().dtype(at::kByte))
                       : empty({0}, input.options().dtype(at::kByte));
  }
  if (input.numel() == 0) {
    if (saved != nullptr) saved->statistics.zero_();
    return output;
  }

  const BatchNormGeometry g(source, format);
  BatchNormRunner run(g, dtype, input.element_size());
  run.base.activation = activation;
  run.base.input = source.const_data_ptr();
  run.base.residual = shortcut.defined() ? shortcut.const_data_ptr() : nullptr;
  run.base.result = output.mutable_data_ptr();
  if (saved != nullptr && saved->mask.numel() > 0) {
    run.base.mask = saved->mask.mutable_data_ptr<uint8_t>();
    std::fill(run.base.mask + g.mask_bytes(), run.base.mask + saved->mask.numel(), uint8_t{0});
  }
  // What has been read is in the caches: it is written there.
  if (!into.defined()) run.choose_stream();
  const ChannelValues weights = read_channels(weight, channels, 1), biases = read_channels(bias, channels, 0);
  Statistics s(channels);
  if (training) {
    train(run, s, dtype, eps, weights, biases);
  } else {
    s.mean = read_channels(running_mean, channels, 0);
    s.variance = read_channels(running_var, channels, 1);
    for (int64_t c = 0; c < channels; ++c) {
      s.invstd[c] = rounded(dtype, 1 / std::sqrt(s.variance[c] + eps));
      run.coefficients.set_normalize(c, s.mean[c], s.invstd[c], weights[c], biases[c]);
    }
    run.elementwise(run.table.plane_normalize, run.table.column_normalize);
  }

  if (saved != nullptr) {
    ChannelValues shifts(channels);
    for (int64_t c = 0; c < channels; ++c) shifts[c] = run.coefficients.get(Coefficients::kShift, c);
    write_row(saved->statistics, 0, s.mean);
    write_row(saved->statistics, 1, s.invstd);
    write_row(saved->statistics, 2, shifts);
  }
  if (training && given(running_mean)) {
    for (double& value : s.mean) value *= momentum;
    write_channels(*running_mean, s.mean, 1 - momentum);
  }
  if (training && given(running_var)) {
    const double unbiased = static_cast<double>(g.count()) / (g.count() - 1);
    for (double& value : s.variance) value *= unbiased * momentum;
    write_channels(*running_var, s.variance, 1 - momentum);
  }
  return output;
}

}  // namespace

at::Tensor batch_norm_act_cpu(const at::Tensor& input, const OptionalTensor& weight,
                              const OptionalTensor& bias, const OptionalTensor& running_mean,
                              const OptionalTensor& running_var, bool training, double momentum, double eps,
                              std::string_view activation, const OptionalTensor& residual) {
  return forward(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual, nullptr);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_saving_cpu(
    const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training, double momentum,
    double eps, std::string_view activation, const OptionalTensor& residual) {
  Saved saved;
  at::Tensor output = forward(input, weight, bias, running_mean, running_var, training, momentum, eps,
                              activation, residual, &saved);
  return {std::move(output), std::move(saved.statistics), std::move(saved.mask)};
}

namespace {

at::Tensor inplace(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                   double momentum, double eps, std::string_view activation, const OptionalTensor& residual,
                   bool saves) {
  at::assert_no_internal_overlap(input);
  if (given(residual)) at::assert_no_partial_overlap(input, *residual);
  Saved saved;
  saved.decided_by_output = true;
  const bool direct = input.is_contiguous(input.suggest_memory_format());
  const at::Tensor output =
      forward(input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual,
              saves ? &saved : nullptr, direct ? input : at::Tensor());
  if (!direct) input.copy_(output);
  return saved.statistics;
}

}  // namespace

void batch_norm_act_inplace_cpu(const at::Tensor& input, const OptionalTensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& running_mean,
                                const OptionalTensor& running_var, bool training, double momentum, double eps,
                                std::string_view activation, const OptionalTensor& residual) {
  inplace(input, weight, bias, running_mean, running_var, training, momentum, eps, activation, residual,
          false);
}

at::Tensor batch_norm_inplace_saving_cpu(const at::Tensor& input, const OptionalTensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& running_mean,
                                         const OptionalTensor& running_var, bool training, double momentum,
                                         double eps, std::string_view activation,
                                         const OptionalTensor& residual) {
  return inplace(input, weight, bias, running_mean, running_var, training, momentum, eps, activation,
                 residual, true);
}

}  // namespace d2lfast::ops
