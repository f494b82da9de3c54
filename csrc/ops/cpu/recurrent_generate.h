#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace d2lfast::ops {

// One time step of a stack of recurrent layers in one direction, without autograd: what generation calls for
// each token. `input` [1,N,I], `hx` (and for an LSTM `cx`) [L,N,H], weights as in torch.nn. Gives the output
// [1,N,H] and the new states, or nothing if the call is not of the kind that this is made for: then the
// operator takes it, or refuses it.
std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> recurrent_generate(
    const at::Tensor& input, const at::Tensor& hx, const at::Tensor* cx,
    const std::vector<at::Tensor>& weights, int64_t mode, bool bias);

}  // namespace d2lfast::ops
