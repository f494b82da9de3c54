#pragma once

#include <ATen/core/Tensor.h>

#include "../../kernels/activation.h"
#include "../conv2d_algorithm.h"

namespace d2lfast::ops {

// The passes of the algorithms of our own. Tensors are batched [N,C,H,W], of any strides, and agree with
// `shape`. A pass returns false where it has computed nothing that may be used; `aten` does it then.

struct Conv2dForward {
  const Conv2dShape& shape;
  const at::Tensor &input, &weight;
  const at::Tensor* bias;      // or null
  const at::Tensor* residual;  // or null; laid out as the output
  Activation activation;
  at::Tensor& output;  // allocated, contiguous or channels_last
};

struct Conv2dBackward {
  const Conv2dShape& shape;
  const at::Tensor &grad_output, &input, &weight;
  const at::Tensor* output;  // of the forward pass, null without an activation
  Activation activation;
};

struct Conv2dPasses {
  bool (*forward)(const Conv2dForward& pass);
  // `grad_input`: allocated, contiguous or channels_last.
  bool (*grad_input)(const Conv2dBackward& pass, at::Tensor& grad_input);
  // Null: not wanted. To be allocated like the weight and [O].
  bool (*grad_weight)(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);
  // Null, or both in one sweep over input and gradient, bit for bit as above. False: `grad_input` is valid,
  // the others are not.
  bool (*backward)(const Conv2dBackward& pass, at::Tensor& grad_input, at::Tensor* grad_weight,
                   at::Tensor* grad_bias) = nullptr;
};

bool direct_forward(const Conv2dForward& pass);
bool direct_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool direct_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// Vectors along the batch: dense layers of step 1 on small images.
bool batch_computes(const Conv2dShape& shape, Conv2dPass pass);
double batch_filled(int64_t batch);  // the share of the lanes that hold images
bool batch_forward(const Conv2dForward& pass);
bool batch_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool batch_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// Dense kernels, the data gradient of stride 1. False where a result is not finite: a tile's arithmetic
// spreads NaN and infinity.
bool winograd_forward(const Conv2dForward& pass);
bool winograd_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool winograd_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// Tiles of 2x2 results, for 3x3 kernels of stride 1.
bool winograd_2x2_forward(const Conv2dForward& pass);
bool winograd_2x2_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool winograd_2x2_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// 1x1 kernels without padding on contiguous images.
bool gemm_forward(const Conv2dForward& pass);
bool gemm_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool gemm_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// Vectors along the channels: grouped and depthwise layers in channels_last, stems in both layouts.
bool channels_computes(const Conv2dShape& shape, Conv2dPass pass);
bool channels_forward(const Conv2dForward& pass);
bool channels_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool channels_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);
bool channels_backward(const Conv2dBackward& pass, at::Tensor& grad_input, at::Tensor* grad_weight,
                       at::Tensor* grad_bias);

// Vectors along the columns of planes that are read in place: grouped and depthwise layers in NCHW.
bool planes_computes(const Conv2dShape& shape, Conv2dPass pass);
bool planes_forward(const Conv2dForward& pass);
bool planes_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool planes_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);
bool planes_backward(const Conv2dBackward& pass, at::Tensor& grad_input, at::Tensor* grad_weight,
                     at::Tensor* grad_bias);

}  // namespace d2lfast::ops
