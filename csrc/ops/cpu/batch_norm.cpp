#include "../../kernels/batch_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../kernels/cpu/isa.h"
#include "../activation.h"
#include "../batch_norm.h"
#include "../dtype.h"

namespace d2lfast::cpu {
namespace baseline {
extern const BatchNormKernels batch_norm_kernels;
}
namespace avx2 {
extern const BatchNormKernels batch_norm_kernels;
}
namespace avx512 {
extern const BatchNormKernels batch_norm_kernels;
}
}  // namespace d2lfast::cpu

namespace d2lfast::ops {

namespace {

constexpr int64_t kGrain = 32768;          // elements worth a thread
constexpr int64_t kChunkElements = 16384;  // of the partial sums of a channels-last input
constexpr int64_t kMaxChunks = 256;

const BatchNormKernels& kernels() {
  return cpu::select_table(cpu::baseline::batch_norm_kernels, cpu::avx2::batch_norm_kernels,
                           cpu::avx512::batch_norm_kernels);
}

int64_t grain_of(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_item));
}

// An input as the kernels see it: [N,C,L] planes, or a matrix of pixels whose columns are channels. Rows
// of few channels are joined, so that a column is a (pixel modulo `fold`, channel) and the vectors are full.
struct Geometry {
  int64_t batch, channels, pixels;  // pixels of an image
  bool columns;
  int64_t fold = 1;
  int64_t width;               // fold * channels
  int64_t rows;                // of `width` columns
  int64_t tail;                // columns of the incomplete last row
  int64_t chunk_rows, chunks;  // over the rows, the incomplete one included

  Geometry(const at::Tensor& input, at::MemoryFormat format)
      : batch(input.size(0)), channels(input.size(1)), pixels(1) {
    for (int64_t i = 2; i < input.dim(); ++i) pixels *= input.size(i);
    columns = pixels == 1 || format != at::MemoryFormat::Contiguous;
    const int64_t count = batch * pixels;
    if (channels < 64) {
      // Up to 64 columns and a multiple of 16 where the channels allow it.
      fold = channels % 16 == 0 ? 64 / channels : std::max<int64_t>(1, 16 / (channels & -channels));
      while (fold * channels < 64) fold *= 2;
      fold = std::max<int64_t>(1, std::min(fold, count / 8));
    }
    width = fold * channels;
    rows = count / fold;
    tail = count % fold * channels;
    const int64_t all_rows = rows + (tail > 0);
    chunk_rows = std::max<int64_t>({1, kChunkElements / width, (all_rows + kMaxChunks - 1) / kMaxChunks});
    chunks = (all_rows + chunk_rows - 1) / chunk_rows;
  }

  int64_t count() const { return batch * pixels; }
};

// Values of a per-channel tensor as doubles; `value` where it is not given.
std::vector<double> read_channels(const std::optional<at::Tensor>& tensor, int64_t channels, double value) {
  std::vector<double> values(channels, value);
  if (!tensor.has_value() || !tensor->defined()) return values;
  const int64_t stride = tensor->stride(0);
  const auto read = [&](auto* data) {
    for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<double>(data[c * stride]);
  };
  switch (tensor->scalar_type()) {
    case at::kDouble:
      read(tensor->const_data_ptr<double>());
      break;
    case at::kFloat:
      read(tensor->const_data_ptr<float>());
      break;
    case at::kBFloat16:
      read(tensor->const_data_ptr<at::BFloat16>());
      break;
    default:
      read(tensor->const_data_ptr<at::Half>());
  }
  return values;
}

// tensor = keep * tensor + values
void write_channels(const at::Tensor& tensor, const std::vector<double>& values, double keep = 0) {
  const int64_t stride = tensor.stride(0);
  const auto write = [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    for (size_t c = 0; c < values.size(); ++c) {
      T& element = data[c * stride];
      const double old = keep == 0 ? 0 : keep * static_cast<double>(element);
      element = static_cast<T>(
          static_cast<std::conditional_t<std::is_same_v<T, double>, double, float>>(old + values[c]));
    }
  };
  switch (tensor.scalar_type()) {
    case at::kDouble:
      write(tensor.mutable_data_ptr<double>());
      break;
    case at::kFloat:
      write(tensor.mutable_data_ptr<float>());
      break;
    case at::kBFloat16:
      write(tensor.mutable_data_ptr<at::BFloat16>());
      break;
    default:
      write(tensor.mutable_data_ptr<at::Half>());
  }
}

// Per-channel parameters of accumulator type, repeated `fold` times.
class Parameter {
 public:
  Parameter(DType dtype, int64_t channels, int64_t fold)
      : wide_(dtype == DType::kFloat64), channels_(channels), fold_(fold) {
    if (wide_) {
      doubles_.resize(channels * fold);
    } else {
      floats_.resize(channels * fold);
    }
  }
  // Returns the value after rounding.
  double set(int64_t channel, double value) {
    if (wide_) {
      for (int64_t f = 0; f < fold_; ++f) doubles_[f * channels_ + channel] = value;
      return value;
    }
    const float rounded = static_cast<float>(value);
    for (int64_t f = 0; f < fold_; ++f) floats_[f * channels_ + channel] = rounded;
    return rounded;
  }
  double get(int64_t channel) const { return wide_ ? doubles_[channel] : floats_[channel]; }
  const void* at(int64_t channel) const {
    return wide_ ? static_cast<const void*>(doubles_.data() + channel) : floats_.data() + channel;
  }

 private:
  bool wide_;
  int64_t channels_, fold_;
  std::vector<double> doubles_;
  std::vector<float> floats_;
};

struct Coefficients {
  Parameter center, scale, slope, offset;
  Coefficients(DType dtype, int64_t channels, int64_t fold)
      : center(dtype, channels, fold),
        scale(dtype, channels, fold),
        slope(dtype, channels, fold),
        offset(dtype, channels, fold) {}
};

// Runs the kernels of one input over its parts.
class Runner {
 public:
  Runner(const Geometry& geometry, DType dtype, int64_t element_size)
      : g_(geometry),
        table_(kernels()),
        dtype_(static_cast<int>(dtype)),
        element_(element_size),
        coefficients(dtype, geometry.channels, geometry.columns ? geometry.fold : 1) {}

  // `base`, with the tensors at the part that begins after `elements`.
  BatchNormParams part(int64_t elements, int64_t rows, int64_t columns, int64_t pitch,
                       int64_t channel) const {
    BatchNormParams p = base;
    const int64_t bytes = elements * element_;
    for (const void** pointer : {&p.input, &p.residual, &p.gradient, &p.activated}) {
      if (*pointer != nullptr) *pointer = static_cast<const char*>(*pointer) + bytes;
    }
    for (void** pointer : {&p.result, &p.grad_residual}) {
      if (*pointer != nullptr) *pointer = static_cast<char*>(*pointer) + bytes;
    }
    p.rows = rows;
    p.columns = columns;
    p.pitch = pitch;
    p.center = coefficients.center.at(channel);
    p.scale = coefficients.scale.at(channel);
    p.slope = coefficients.slope.at(channel);
    p.offset = coefficients.offset.at(channel);
    return p;
  }

  // All images' planes of one channel.
  BatchNormParams planes(int64_t channel) const {
    return part(channel * g_.pixels, g_.batch, g_.pixels, g_.channels * g_.pixels, channel);
  }

  void run(const BatchNormKernels::Kernel* kernel, const BatchNormParams& p) const { kernel[dtype_](p); }

  // Rows [begin, end) of the matrix, where `kernel` writes no sums.
  void run_rows(const BatchNormKernels::Kernel* kernel, int64_t begin, int64_t end) const {
    const int64_t full = std::min(end, g_.rows);
    if (full > begin) run(kernel, part(begin * g_.width, full - begin, g_.width, g_.width, 0));
    if (end > g_.rows && g_.tail > 0) run(kernel, part(g_.rows * g_.width, 1, g_.tail, g_.width, 0));
  }

  // A chunk's sums, [2][width].
  void chunk_sums(const BatchNormKernels::Kernel* kernel, int64_t begin, int64_t end, double* sums) const {
    const int64_t full = std::min(end, g_.rows);
    BatchNormParams p = part(begin * g_.width, std::max<int64_t>(0, full - begin), g_.width, g_.width, 0);
    p.sums = sums;
    run(kernel, p);
    if (end > g_.rows && g_.tail > 0) {
      std::vector<double> last(2 * g_.tail);
      p = part(g_.rows * g_.width, 1, g_.tail, g_.width, 0);
      p.sums = last.data();
      run(kernel, p);
      for (int64_t i = 0; i < g_.tail; ++i) {
        sums[i] += last[i];
        sums[g_.width + i] += last[g_.tail + i];
      }
    }
  }

  // Both sums of every channel of a matrix: [C] and [C].
  void column_sums(const BatchNormKernels::Kernel* kernel, std::vector<double>& first,
                   std::vector<double>& second) const {
    const at::Tensor partial = at::empty({g_.chunks, 2 * g_.width}, at::kDouble);
    double* sums = partial.mutable_data_ptr<double>();
    const int64_t all_rows = g_.rows + (g_.tail > 0);
    at::parallel_for(0, g_.chunks, grain_of(g_.chunk_rows * g_.width), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        chunk_sums(kernel, i * g_.chunk_rows, std::min(all_rows, (i + 1) * g_.chunk_rows),
                   sums + i * 2 * g_.width);
      }
    });
    // Added in the order of the chunks, whoever computed them.
    for (int64_t i = 1; i < g_.chunks; ++i) {
      for (int64_t j = 0; j < 2 * g_.width; ++j) sums[j] += sums[i * 2 * g_.width + j];
    }
    for (int64_t f = 0; f < g_.fold; ++f) {
      for (int64_t c = 0; c < g_.channels; ++c) {
        first[c] += sums[f * g_.channels + c];
        second[c] += sums[g_.width + f * g_.channels + c];
      }
    }
  }

  // An elementwise kernel over everything.
  void elementwise(const BatchNormKernels::Kernel* plane, const BatchNormKernels::Kernel* column) const {
    if (g_.columns) {
      at::parallel_for(0, g_.rows + (g_.tail > 0), grain_of(g_.width),
                       [&](int64_t from, int64_t to) { run_rows(column, from, to); });
    } else {
      at::parallel_for(0, g_.batch * g_.channels, grain_of(g_.pixels), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          run(plane, part(i * g_.pixels, 1, g_.pixels, g_.pixels, i % g_.channels));
        }
      });
    }
  }

 private:
  const Geometry& g_;
  const BatchNormKernels& table_;
  int dtype_;
  int64_t element_;

 public:
  BatchNormParams base{};
  Coefficients coefficients;
  const BatchNormKernels& table() const { return table_; }
};

// The values about which the moments are taken: the mean of a channel's first pixels. The distance to the
// mean is then a few standard deviations at most, and the sums of squares do not cancel.
double finite_center(double sum, int64_t count) {
  const double center = sum / count;
  return std::isfinite(center) ? center : 0;
}

void center_plane(Runner& run, const Geometry& g, int64_t channel) {
  double sums[2];
  BatchNormParams p = run.planes(channel);
  p.columns = std::min<int64_t>(g.pixels, 1024);
  p.rows = std::min<int64_t>(g.batch, 256 / p.columns + 1);
  p.sums = sums;
  run.run(run.table().plane_moments, p);
  run.coefficients.center.set(channel, finite_center(sums[0], p.rows * p.columns));
}

void center_columns(Runner& run, const Geometry& g) {
  BatchNormParams p = run.part(0, std::min<int64_t>(g.rows, 64), g.width, g.width, 0);
  std::vector<double> sums(2 * g.width);
  p.sums = sums.data();
  run.run(run.table().column_moments, p);
  for (int64_t c = 0; c < g.channels; ++c) {
    double sum = 0;
    for (int64_t f = 0; f < g.fold; ++f) sum += sums[f * g.channels + c];
    run.coefficients.center.set(c, finite_center(sum, p.rows * g.fold));
  }
}

struct Statistics {
  std::vector<double> mean, variance;  // biased
  explicit Statistics(int64_t channels) : mean(channels), variance(channels) {}
  void set(int64_t channel, double center, double first, double second, int64_t count) {
    const double distance = first / count;
    mean[channel] = center + distance;
    const double value = second / count - distance * distance;
    variance[channel] = value < 0 ? 0 : value;
  }
};

// result = (input - center) * scale + offset: the rounding error of the center goes into the offset.
void set_normalize(Coefficients& k, int64_t c, double mean, double invstd, double weight, double bias) {
  const double center = k.center.set(c, mean);
  const double scale = k.scale.set(c, weight * invstd);
  const double correction = (mean - center) * scale;
  k.offset.set(c, std::isfinite(correction) ? bias - correction : bias);
}

struct Prepared {
  at::MemoryFormat format;
  at::Tensor input, residual, output;
};

Prepared prepare(const at::Tensor& input, const std::optional<at::Tensor>& residual) {
  Prepared t{input.suggest_memory_format(), {}, {}, {}};
  t.input = input.contiguous(t.format);
  if (residual.has_value() && residual->defined()) t.residual = residual->contiguous(t.format);
  t.output = at::empty(input.sizes(), input.options().memory_format(t.format));
  return t;
}

void point_forward(Runner& run, const Prepared& t, Activation activation) {
  run.base.activation = activation;
  run.base.input = t.input.const_data_ptr();
  run.base.residual = t.residual.defined() ? t.residual.const_data_ptr() : nullptr;
  run.base.result = t.output.mutable_data_ptr();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> train_cpu(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    double momentum, double eps, std::string_view activation_name,
    const std::optional<at::Tensor>& residual) {
  const DType dtype = check_batch_norm(input, weight, bias, running_mean, running_var, true, residual);
  const Activation activation = parse_activation(activation_name);
  const Prepared t = prepare(input, residual);
  const int64_t channels = input.size(1);
  const auto statistics_type = input.options().dtype(accumulator_type(input.scalar_type()));
  at::Tensor save_mean = at::empty({channels}, statistics_type);
  at::Tensor save_invstd = at::empty({channels}, statistics_type);
  if (input.numel() == 0) {
    save_mean.zero_();
    save_invstd.zero_();
    return {t.output, save_mean, save_invstd};
  }

  const Geometry g(t.input, t.format);
  Runner run(g, dtype, input.element_size());
  point_forward(run, t, activation);
  Coefficients& k = run.coefficients;
  Statistics s(g.channels);
  const auto weights = read_channels(weight, g.channels, 1), biases = read_channels(bias, g.channels, 0);
  std::vector<double> invstd(g.channels);
  const auto finish = [&](int64_t c) {
    invstd[c] = 1 / std::sqrt(s.variance[c] + eps);
    set_normalize(k, c, s.mean[c], invstd[c], weights[c], biases[c]);
  };
  if (g.columns) {
    std::vector<double> first(g.channels), second(g.channels);
    center_columns(run, g);
    run.column_sums(run.table().column_moments, first, second);
    for (int64_t c = 0; c < g.channels; ++c) {
      s.set(c, k.center.get(c), first[c], second[c], g.count());
      finish(c);
    }
    run.elementwise(run.table().plane_normalize, run.table().column_normalize);
  } else {
    at::parallel_for(0, g.channels, grain_of(g.count()), [&](int64_t from, int64_t to) {
      for (int64_t c = from; c < to; ++c) {
        center_plane(run, g, c);
        double sums[2];
        BatchNormParams p = run.planes(c);
        p.sums = sums;
        run.run(run.table().plane_moments, p);
        s.set(c, k.center.get(c), sums[0], sums[1], g.count());
        finish(c);
        run.run(run.table().plane_normalize, run.planes(c));
      }
    });
  }

  write_channels(save_mean, s.mean);
  write_channels(save_invstd, invstd);
  if (running_mean.has_value() && running_mean->defined()) {
    for (double& value : s.mean) value *= momentum;
    write_channels(*running_mean, s.mean, 1 - momentum);
  }
  if (running_var.has_value() && running_var->defined()) {
    const double unbiased = static_cast<double>(g.count()) / (g.count() - 1);
    for (double& value : s.variance) value *= unbiased * momentum;
    write_channels(*running_var, s.variance, 1 - momentum);
  }
  return {t.output, save_mean, save_invstd};
}

at::Tensor forward_cpu(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                       const std::optional<at::Tensor>& running_var, bool training, double momentum,
                       double eps, std::string_view activation_name,
                       const std::optional<at::Tensor>& residual) {
  if (training) {
    return std::get<0>(
        train_cpu(input, weight, bias, running_mean, running_var, momentum, eps, activation_name, residual));
  }
  const DType dtype = check_batch_norm(input, weight, bias, running_mean, running_var, false, residual);
  const Activation activation = parse_activation(activation_name);
  const Prepared t = prepare(input, residual);
  if (input.numel() == 0) return t.output;
  const Geometry g(t.input, t.format);
  Runner run(g, dtype, input.element_size());
  point_forward(run, t, activation);
  const auto weights = read_channels(weight, g.channels, 1), biases = read_channels(bias, g.channels, 0);
  const auto mean = read_channels(running_mean, g.channels, 0);
  const auto variance = read_channels(running_var, g.channels, 1);
  for (int64_t c = 0; c < g.channels; ++c) {
    set_normalize(run.coefficients, c, mean[c], 1 / std::sqrt(variance[c] + eps), weights[c], biases[c]);
  }
  run.elementwise(run.table().plane_normalize, run.table().column_normalize);
  return t.output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const at::Tensor& mean, const at::Tensor& spread, const std::optional<at::Tensor>& output, bool training,
    double eps, std::string_view activation_name, std::array<bool, 4> output_mask) {
  const DType dtype = kernel_dtype(input, "d2lfast::batch_norm_act");
  const Activation activation = parse_activation(activation_name);
  TORCH_CHECK(grad_output.sizes() == input.sizes() && grad_output.scalar_type() == input.scalar_type(),
              "expected grad_output of size ", input.sizes(), " and type ", input.toString(), ", but got ",
              grad_output.sizes(), " and ", grad_output.toString());
  TORCH_CHECK(activation == Activation::kNone || (output.has_value() && output->sizes() == input.sizes() &&
                                                  output->scalar_type() == input.scalar_type()),
              "expected the output of the activation");
  const auto format = input.suggest_memory_format();
  const int64_t channels = input.size(1);
  TORCH_CHECK(mean.numel() == channels && spread.numel() == channels && mean.dim() == 1 && spread.dim() == 1,
              "expected statistics of ", channels, " channels");
  const auto [wants_input, wants_weight, wants_bias, wants_residual] = output_mask;
  const auto parameter_options =
      weight.has_value() && weight->defined() ? weight->options() : input.options();
  const auto nothing = [&] { return at::empty({0}, input.options()); };
  const auto like_input = [&] { return at::empty(input.sizes(), input.options().memory_format(format)); };
  at::Tensor grad_input = wants_input ? like_input() : nothing();
  at::Tensor grad_residual = wants_residual ? like_input() : nothing();
  at::Tensor grad_weight = at::empty({wants_weight ? channels : 0}, parameter_options);
  at::Tensor grad_bias = at::empty({wants_bias ? channels : 0}, parameter_options);
  if (input.numel() == 0) {
    grad_weight.zero_();
    grad_bias.zero_();
    return {grad_input, grad_weight, grad_bias, grad_residual};
  }

  const at::Tensor x = input.contiguous(format), gradient = grad_output.contiguous(format);
  at::Tensor activated;
  if (activation != Activation::kNone) activated = output->contiguous(format);
  const Geometry g(x, format);
  Runner run(g, dtype, input.element_size());
  run.base.activation = activation;
  run.base.input = x.const_data_ptr();
  run.base.gradient = gradient.const_data_ptr();
  run.base.activated = activated.defined() ? activated.const_data_ptr() : nullptr;
  // The gradient of the residual falls out of the sweep that writes the input's.
  const at::Tensor scratch = wants_residual && !wants_input ? like_input() : grad_input;
  run.base.result = scratch.mutable_data_ptr();
  run.base.grad_residual = wants_residual ? grad_residual.mutable_data_ptr() : nullptr;
  const bool sweeps = wants_input || wants_residual;
  const bool sums_wanted = wants_weight || wants_bias || (training && sweeps);

  Coefficients& k = run.coefficients;
  const auto weights = read_channels(weight, channels, 1);
  const auto means = read_channels(mean, channels, 0);
  auto inverses = read_channels(spread, channels, 0);
  if (!training) {
    for (double& value : inverses) value = 1 / std::sqrt(value + eps);
  }
  std::vector<double> first(channels), second(channels);
  for (int64_t c = 0; c < channels; ++c) k.center.set(c, means[c]);
  const auto finish = [&](int64_t c) {
    const double scale = weights[c] * inverses[c];
    k.scale.set(c, scale);
    k.slope.set(c, training ? -scale * inverses[c] * inverses[c] * second[c] / g.count() : 0);
    k.offset.set(c, training ? -scale * first[c] / g.count() : 0);
  };
  const auto& table = run.table();
  if (g.columns || !sums_wanted) {
    if (sums_wanted) run.column_sums(table.column_gradient_sums, first, second);
    for (int64_t c = 0; c < channels; ++c) finish(c);
    if (sweeps) run.elementwise(table.plane_gradient, table.column_gradient);
  } else {
    at::parallel_for(0, channels, grain_of(g.count()), [&](int64_t from, int64_t to) {
      for (int64_t c = from; c < to; ++c) {
        double sums[2];
        BatchNormParams p = run.planes(c);
        p.sums = sums;
        run.run(table.plane_gradient_sums, p);
        first[c] = sums[0];
        second[c] = sums[1];
        finish(c);
        if (sweeps) run.run(table.plane_gradient, run.planes(c));
      }
    });
  }
  if (wants_bias) write_channels(grad_bias, first);
  if (wants_weight) {
    for (int64_t c = 0; c < channels; ++c) second[c] *= inverses[c];
    write_channels(grad_weight, second);
  }
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2lfast, CPU, m) {
  m.impl("batch_norm_act", forward_cpu);
  m.impl("_batch_norm_act_train", train_cpu);
  m.impl("_batch_norm_act_backward", backward_cpu);
}

}  // namespace d2lfast::ops
