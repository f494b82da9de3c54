#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include "../../kernels/cuda/conv2d.h"

// What convolutions and other products by implicit GEMM share.
namespace d2lfast::ops {

// Whether torch's own operators of this kind may round float32 to TF32 on the device.
bool takes_tf32(at::Float32Op kind);

// Dense in `format`, beginning on a 16-byte boundary.
at::Tensor on_16_bytes(const at::Tensor& tensor, at::MemoryFormat format);

// Parts [splits,count], added in their order, of the type of `like`.
at::Tensor add_parts(const at::Tensor& partial, const at::Tensor& like);

// Parts of [KH*KW*C*O] in float from tensors of the type of `like`; `params` lacks them and their number.
at::Tensor implicit_weight_parts(cuda::Conv2dImplicitWeightParams params, const at::Tensor& like);

}  // namespace d2lfast::ops
