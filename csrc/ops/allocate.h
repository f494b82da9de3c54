#pragma once

#include <ATen/core/Tensor.h>

namespace d2lfast::ops {

// torch's functions of the same names. Their headers cost each file that allocates two seconds.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor empty_like(const at::Tensor& tensor);

}  // namespace d2lfast::ops
