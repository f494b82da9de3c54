#include "implicit_gemm.h"

#include <ATen/ops/empty.h>

#include "../dtype.h"
#include "runtime.h"

namespace d2lfast::ops {

bool takes_tf32(at::Float32Op kind) {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, kind) == at::Float32Precision::TF32;
}

at::Tensor on_16_bytes(const at::Tensor& tensor, at::MemoryFormat format) {
  const at::Tensor dense = tensor.contiguous(format);
  const bool aligned = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0;
  return aligned ? dense : dense.clone();
}

at::Tensor add_parts(const at::Tensor& partial, const at::Tensor& like) {
  at::Tensor total = at::empty({partial.size(1)}, like.options());
  C10_CUDA_CHECK(cuda::launch_add_parts(partial.const_data_ptr(), total.mutable_data_ptr(),
                                        static_cast<int32_t>(partial.size(0)), partial.size(1),
                                        kernel_dtype(like, "d2lfast::conv2d"), current_stream()));
  return total;
}

at::Tensor implicit_weight_parts(cuda::Conv2dImplicitWeightParams params, const at::Tensor& like) {
  params.splits = cuda::conv2d_implicit_weight_splits(params);
  const int64_t count =
      int64_t{params.h.kernel} * params.w.kernel * params.source_channels * params.result_channels;
  const at::Tensor partial = at::empty({params.splits, count}, like.options().dtype(at::kFloat));
  params.partial = partial.mutable_data_ptr<float>();
  C10_CUDA_CHECK(
      cuda::launch_conv2d_implicit_weight(params, kernel_dtype(like, "d2lfast::conv2d"), current_stream()));
  return partial;
}

}  // namespace d2lfast::ops
