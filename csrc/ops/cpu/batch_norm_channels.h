#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <optional>

#include "../../kernels/dtype.h"

namespace d2lfast::ops {

// A double for each channel; on the stack for as many as most layers have.
using ChannelValues = c10::SmallVector<double, 128>;

// Values of a per-channel tensor; `value` where it is not given.
ChannelValues read_channels(const std::optional<at::Tensor>& tensor, int64_t channels, double value);

// A row of a [rows,C] tensor, without a tensor for it.
ChannelValues read_row(const at::Tensor& tensor, int64_t row);

// tensor = keep * tensor + values
void write_channels(const at::Tensor& tensor, const ChannelValues& values, double keep = 0);
// The same of a row of a [rows,C] tensor, which is overwritten.
void write_row(const at::Tensor& tensor, int64_t row, const ChannelValues& values);

// A value rounded to the kernels' accumulator type.
inline double rounded(DType dtype, double value) {
  return dtype == DType::kFloat64 ? value : static_cast<float>(value);
}

// The kernels' per-channel parameters, of accumulator type and repeated `fold` times.
class Coefficients {
 public:
  enum Kind { kCenter, kScale, kShift, kSlope, kOffset, kKinds };

  Coefficients(DType dtype, int64_t channels, int64_t fold);
  Coefficients(const Coefficients&) = delete;

  // Rounds the value.
  void set(Kind kind, int64_t channel, double value);
  double get(Kind kind, int64_t channel) const;
  const void* at(Kind kind, int64_t channel) const;

  // Normalisation as (input - center) * scale + shift with invstd that has been rounded. The rounding error
  // of the center goes into the shift. Backward sets the same scale from the saved statistics.
  void set_normalize(int64_t channel, double mean, double invstd, double weight, double bias);

 private:
  bool wide_;
  int64_t channels_, fold_;
  alignas(64) char small_[4096];
  std::unique_ptr<char[]> large_;
  char* data_;
};

}  // namespace d2lfast::ops
