#include "conv2d_winograd_pieces.h"

#include <ATen/Parallel.h>

#include <array>
#include <vector>

#include "../activation.h"
#include "../allocate.h"
#include "../layout.h"

namespace d2lfast::ops {

namespace {

// How the axes of a kernel are cut.
struct Cut {
  std::array<std::vector<int64_t>, 2> offset;      // of each piece's first tap
  std::array<std::vector<int64_t>, 2> piece, tap;  // of each kernel position
  bool interleaved;                                // channels (i, j, c) rather than (c, i, j)

  Cut(const Conv2dShape& s, bool channels_last) : interleaved(channels_last) {
    const std::array<int64_t, 2> kernel = {s.kernel_h, s.kernel_w};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t stride = s.stride[axis];
      for (int64_t k = 0; k < kernel[axis]; ++k) {
        const int64_t tap = k / stride % 3;
        if (tap == 0) offset[axis].push_back(k);
        this->tap[axis].push_back(tap);
        piece[axis].push_back(k / (3 * stride) * stride + k % stride);
      }
    }
  }

  int64_t count(int axis) const { return static_cast<int64_t>(offset[axis].size()); }
  int64_t pieces() const { return count(0) * count(1); }

  // Calls body(c, y, x, channel, tap) for the kernel positions of every source channel.
  template <typename Body>
  void each(int64_t channels, Body&& body) const {
    for (size_t y = 0; y < tap[0].size(); ++y) {
      for (size_t x = 0; x < tap[1].size(); ++x) {
        const int64_t at = piece[0][y] * count(1) + piece[1][x], to = tap[0][y] * 3 + tap[1][x];
        for (int64_t c = 0; c < channels; ++c) {
          body(c, static_cast<int64_t>(y), static_cast<int64_t>(x),
               interleaved ? at * channels + c : c * pieces() + at, to);
        }
      }
    }
  }
};

Conv2dShape cut_shape(const Conv2dShape& s, const Cut& cut) {
  Conv2dShape to = s;
  to.channels = s.channels * cut.pieces();
  to.height = s.result_height() + 2;
  to.width = s.result_width() + 2;
  to.kernel_h = to.kernel_w = 3;
  to.stride = {1, 1};
  to.padding = {0, 0};
  return to;
}

at::Tensor cut_source(const at::Tensor& tensor, const Conv2dShape& s, const Conv2dShape& to, const Cut& cut,
                      WinogradPiecesKernel kernel) {
  const at::MemoryFormat format = layout(cut.interleaved);
  const at::Tensor images = tensor.contiguous(format);
  at::Tensor result =
      empty({to.batch, to.channels, to.height, to.width}, images.options().memory_format(format));
  WinogradPieces p{};
  p.images = {images.const_data_ptr(),
              nullptr,
              Activation::kNone,
              cut.interleaved,
              s.batch,
              s.channels,
              s.height,
              s.width,
              0,
              s.channels};
  for (int axis = 0; axis < 2; ++axis) {
    p.stride[axis] = s.stride[axis];
    p.pad[axis] = s.padding[axis];
    p.count[axis] = cut.count(axis);
    p.offset[axis] = cut.offset[axis].data();
  }
  p.result = result.mutable_data_ptr();
  p.height = to.height;
  p.width = to.width;
  at::parallel_for(0, s.batch * (cut.interleaved ? to.height : s.channels), 1,
                   [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return result;
}

// The weight [K,C,KH,KW] as [K,C',3,3]. `flipped`: for the data gradient, as [C,K',3,3] with its taps
// reversed.
template <typename T>
void cut_weight_of(const at::Tensor& weight, const Cut& cut, bool flipped, at::Tensor& result) {
  const T* from = static_cast<const T*>(weight.const_data_ptr());
  T* to = static_cast<T*>(result.mutable_data_ptr());
  const int64_t results = weight.stride(flipped ? 1 : 0), sources = weight.stride(flipped ? 0 : 1);
  const int64_t channels = weight.size(flipped ? 0 : 1), rows = weight.stride(2), cols = weight.stride(3);
  const int64_t last_row = weight.size(2) - 1, last_col = weight.size(3) - 1, size = result.size(1) * 9;
  at::parallel_for(0, result.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      cut.each(channels, [&](int64_t c, int64_t y, int64_t x, int64_t channel, int64_t tap) {
        to[m * size + channel * 9 + tap] =
            from[m * results + c * sources + (flipped ? last_row - y : y) * rows +
                 (flipped ? last_col - x : x) * cols];
      });
    }
  });
}

at::Tensor cut_weight(const at::Tensor& weight, const Cut& cut, bool flipped = false) {
  at::Tensor result = zeros({weight.size(flipped ? 1 : 0), weight.size(flipped ? 0 : 1) * cut.pieces(), 3, 3},
                            weight.options());
  if (weight.element_size() == sizeof(float)) {
    cut_weight_of<float>(weight, cut, flipped, result);
  } else {
    cut_weight_of<uint16_t>(weight, cut, flipped, result);
  }
  return result;
}

template <typename T>
void join_weight(const at::Tensor& gradient, const Cut& cut, at::Tensor& result) {
  const T* from = static_cast<const T*>(gradient.const_data_ptr());
  T* to = static_cast<T*>(result.mutable_data_ptr());
  at::parallel_for(0, result.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      cut.each(result.size(1), [&](int64_t c, int64_t y, int64_t x, int64_t channel, int64_t tap) {
        to[m * result.stride(0) + c * result.stride(1) + y * result.stride(2) + x * result.stride(3)] =
            from[m * gradient.stride(0) + channel * gradient.stride(1) + tap / 3 * gradient.stride(2) +
                 tap % 3 * gradient.stride(3)];
      });
    }
  });
}

}  // namespace

bool pieces_forward(const Conv2dForward& pass, WinogradPiecesKernel kernel) {
  const Cut cut(pass.shape, pass.shape.channels_last);
  const Conv2dShape shape = cut_shape(pass.shape, cut);
  const at::Tensor source = cut_source(pass.input, pass.shape, shape, cut, kernel);
  const at::Tensor weight = cut_weight(pass.weight, cut);
  return winograd_forward({shape, source, weight, pass.bias, pass.residual, pass.activation, pass.output});
}

bool pieces_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input, WinogradPiecesKernel kernel) {
  // The forward convolution of the gradients by the reversed kernels.
  const Conv2dShape& s = pass.shape;
  Conv2dShape reversed = s;
  reversed.channels = s.result_channels;
  reversed.result_channels = s.channels;
  reversed.height = s.result_height();
  reversed.width = s.result_width();
  reversed.padding = {s.kernel_h - 1 - s.padding[0], s.kernel_w - 1 - s.padding[1]};
  const Cut cut(reversed, s.channels_last);
  const Conv2dShape shape = cut_shape(reversed, cut);
  const at::Tensor grad = pass.output != nullptr
                              ? activation_backward(pass.grad_output, *pass.output, pass.activation)
                              : pass.grad_output;
  const at::Tensor source = cut_source(grad, reversed, shape, cut, kernel);
  const at::Tensor weight = cut_weight(pass.weight, cut, true);
  return winograd_forward({shape, source, weight, nullptr, nullptr, Activation::kNone, grad_input});
}

bool pieces_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias,
                        WinogradPiecesKernel kernel) {
  if (grad_weight == nullptr || pass.shape.batch == 0 || pass.weight.numel() == 0) return false;
  const Cut cut(pass.shape, pass.shape.channels_last);
  const Conv2dShape shape = cut_shape(pass.shape, cut);
  const at::Tensor source = cut_source(pass.input, pass.shape, shape, cut, kernel);
  // Of the weight only the shape is asked for.
  const at::Tensor weight = empty({shape.result_channels, shape.channels, 3, 3}, pass.weight.options());
  at::Tensor gradient;
  if (!winograd_grad_weight({shape, pass.grad_output, source, weight, pass.output, pass.activation},
                            &gradient, grad_bias)) {
    return false;
  }
  at::Tensor result = empty_like(pass.weight);
  if (pass.weight.element_size() == sizeof(float)) {
    join_weight<float>(gradient, cut, result);
  } else {
    join_weight<uint16_t>(gradient, cut, result);
  }
  *grad_weight = result;
  return true;
}

}  // namespace d2lfast::ops
