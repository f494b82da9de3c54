#include "batch_norm_channels.h"

#include <cmath>

namespace d2lfast::ops {

namespace {

// Calls body with the tensor's data as a pointer of its type.
template <typename Body>
void with_type(at::ScalarType type, void* data, const Body& body) {
  switch (type) {
    case at::kDouble:
      return body(static_cast<double*>(data));
    case at::kFloat:
      return body(static_cast<float*>(data));
    case at::kBFloat16:
      return body(static_cast<at::BFloat16*>(data));
    default:
      return body(static_cast<at::Half*>(data));
  }
}

// Elements `begin`, `begin + stride`, ... of a tensor's data.
ChannelValues read(const at::Tensor& tensor, int64_t begin, int64_t channels, int64_t stride) {
  ChannelValues values(channels);
  with_type(tensor.scalar_type(), const_cast<void*>(tensor.const_data_ptr()), [&](const auto* data) {
    data += begin;
    if (stride == 1) {
      for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<double>(data[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<double>(data[c * stride]);
    }
  });
  return values;
}

void write(const at::Tensor& tensor, int64_t begin, int64_t stride, const ChannelValues& values,
           double keep) {
  with_type(tensor.scalar_type(), tensor.mutable_data_ptr(), [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
    for (size_t c = 0; c < values.size(); ++c) {
      T& element = data[begin + static_cast<int64_t>(c) * stride];
      const double old = keep == 0 ? 0 : keep * static_cast<double>(element);
      element = static_cast<T>(static_cast<A>(old + values[c]));
    }
  });
}

}  // namespace

ChannelValues read_channels(const std::optional<at::Tensor>& tensor, int64_t channels, double value) {
  if (!tensor.has_value() || !tensor->defined()) return ChannelValues(channels, value);
  return read(*tensor, 0, channels, tensor->stride(0));
}

ChannelValues read_row(const at::Tensor& tensor, int64_t row) {
  return read(tensor, row * tensor.stride(0), tensor.size(1), tensor.stride(1));
}

void write_channels(const at::Tensor& tensor, const ChannelValues& values, double keep) {
  write(tensor, 0, tensor.stride(0), values, keep);
}

void write_row(const at::Tensor& tensor, int64_t row, const ChannelValues& values) {
  write(tensor, row * tensor.stride(0), tensor.stride(1), values, 0);
}

Coefficients::Coefficients(DType dtype, int64_t channels, int64_t fold)
    : wide_(dtype == DType::kFloat64), channels_(channels), fold_(fold) {
  const size_t bytes = kKinds * channels * fold * (wide_ ? sizeof(double) : sizeof(float));
  if (bytes > sizeof(small_)) large_ = std::make_unique_for_overwrite<char[]>(bytes);
  data_ = large_ ? large_.get() : small_;
}

void Coefficients::set(Kind kind, int64_t channel, double value) {
  const int64_t begin = kind * channels_ * fold_ + channel, end = begin + fold_ * channels_;
  if (wide_) {
    for (int64_t i = begin; i < end; i += channels_) reinterpret_cast<double*>(data_)[i] = value;
  } else {
    for (int64_t i = begin; i < end; i += channels_) {
      reinterpret_cast<float*>(data_)[i] = static_cast<float>(value);
    }
  }
}

const void* Coefficients::at(Kind kind, int64_t channel) const {
  return data_ + (kind * channels_ * fold_ + channel) * (wide_ ? sizeof(double) : sizeof(float));
}

double Coefficients::get(Kind kind, int64_t channel) const {
  const void* value = at(kind, channel);
  return wide_ ? *static_cast<const double*>(value) : *static_cast<const float*>(value);
}

void Coefficients::set_normalize(int64_t channel, double mean, double invstd, double weight, double bias) {
  set(kCenter, channel, mean);
  set(kScale, channel, weight * invstd);
  const double correction = (mean - get(kCenter, channel)) * get(kScale, channel);
  set(kShift, channel, std::isfinite(correction) ? bias - correction : bias);
}

}  // namespace d2lfast::ops
