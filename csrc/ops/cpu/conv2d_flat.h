#pragma once

#include "conv2d_passes.h"

namespace d2lfast::ops {

// The part of `planes` in which rows of source and result are equally long: see kernels/conv2d_flat.h.
bool flat_computes(const Conv2dShape& shape, Conv2dPass pass);

bool flat_forward(const Conv2dForward& pass);
bool flat_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input);
bool flat_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias);

// [O,C,KH,KW] to the weight of the data gradient, [G*C,M,KH,KW], turned by half a turn.
at::Tensor turned(const at::Tensor& weight, int64_t groups);

}  // namespace d2lfast::ops
