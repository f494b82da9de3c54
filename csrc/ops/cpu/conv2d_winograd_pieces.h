#pragma once

#include "../../kernels/conv2d_winograd.h"
#include "conv2d_passes.h"

namespace d2lfast::ops {

// Convolutions of larger kernels or strides, rewritten as 3x3 convolutions of stride 1 (WinogradPieces) that
// the winograd passes then compute. The data gradient needs stride 1.
using WinogradPiecesKernel = void (*)(const WinogradPieces& pieces, int64_t begin, int64_t end);

bool pieces_forward(const Conv2dForward& pass, WinogradPiecesKernel kernel);
bool pieces_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input, WinogradPiecesKernel kernel);
bool pieces_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias,
                        WinogradPiecesKernel kernel);

}  // namespace d2lfast::ops
