#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "../../kernels/cuda/batch_norm.h"
#include "../activation.h"
#include "../batch_norm.h"
#include "../optional_tensor.h"

namespace d2lfast::ops {

inline cuda::BatchNormParams batch_norm_shape(const at::Tensor& input, at::MemoryFormat format) {
  cuda::BatchNormParams p{};
  p.batch = input.size(0);
  p.channels = input.size(1);
  p.pixels = input.numel() / std::max<int64_t>(1, p.batch * p.channels);
  p.columns = format != at::MemoryFormat::Contiguous || p.pixels == 1;
  return p;
}

// The tensors that the sweeps of a gradient read, dense, and the params that point to them.
struct BatchNormGradient {
  at::Tensor source, gradient, activated, weights, saved;
  cuda::BatchNormParams params;

  BatchNormGradient(const at::Tensor& grad_output, const at::Tensor& input,
                    const std::optional<at::Tensor>& weight, const at::Tensor& statistics,
                    const std::optional<at::Tensor>& output, const std::optional<at::Tensor>& mask,
                    Activation activation, at::MemoryFormat format)
      : source(input.contiguous(format)),
        gradient(grad_output.contiguous(format)),
        activated(keeps_output(activation) ? output->contiguous(format) : at::Tensor()),
        weights(contiguous_or_none(weight)),
        saved(statistics.contiguous()) {
    const bool masked = activation == Activation::kReLU && given(mask) && mask->numel() > 0;
    params = batch_norm_shape(source, format);
    params.activation = activation;
    params.input = source.const_data_ptr();
    params.gradient = gradient.const_data_ptr();
    params.activated = data_or_null(activated);
    params.mask = masked ? const_cast<uint8_t*>(mask->const_data_ptr<uint8_t>()) : nullptr;
    params.weight = data_or_null(weights);
    params.statistics = const_cast<void*>(saved.const_data_ptr());
  }
};

}  // namespace d2lfast::ops
