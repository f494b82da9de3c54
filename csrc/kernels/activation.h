#pragma once

namespace d2lfast {

// Epilogues of convolution and batch norm. Each derivative is a function of the output alone, so that
// backward needs the output and never the pre-activation.
enum class Activation : int { kNone = 0, kReLU = 1, kSigmoid = 2, kTanh = 3 };

}  // namespace d2lfast
