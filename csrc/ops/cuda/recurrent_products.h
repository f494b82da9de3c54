#pragma once

#include <ATen/core/Tensor.h>

// The products of a recurrent layer that wait for no state, over the rows of all steps at once. Sums are of
// accumulator type. From 16 bits they run on tensor cores by cuBLAS; from float32, where torch lets recurrent
// layers round to TF32 and rows are of 16 bytes, by implicit GEMM; else they are torch's, exact.
namespace d2lfast::ops {

// Whether torch's recurrent layers may round float32 to TF32 on the device.
bool recurrent_tf32();

// a [M,K] times b [N,K] transposed, plus bias [N] where it is defined.
at::Tensor times_transposed(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias = {});

// a [K,M] transposed times b [K,N].
at::Tensor transposed_times(const at::Tensor& a, const at::Tensor& b);

}  // namespace d2lfast::ops
