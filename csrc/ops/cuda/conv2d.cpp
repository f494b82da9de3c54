#include "../conv2d.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "../activation.h"
#include "../conv2d_gradients.h"
#include "../conv2d_tuning.h"
#include "../dtype.h"
#include "../layout.h"
#include "../optional_tensor.h"
#include "conv2d_epilogue.h"
#include "conv2d_winograd.h"
#include "implicit_gemm.h"
#include "runtime.h"
#include "stopwatch.h"

namespace d2lfast::ops {

namespace {

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }

cuda::Conv2dAxis axis_of(const Conv2dShape& s, int i, bool transposed) {
  const int64_t input = i == 0 ? s.height : s.width;
  const int64_t output = i == 0 ? s.result_height() : s.result_width();
  return {narrow(transposed ? output : input),
          narrow(transposed ? input : output),
          narrow(i == 0 ? s.kernel_h : s.kernel_w),
          narrow(s.stride[i]),
          narrow(s.padding[i]),
          narrow(s.dilation[i])};
}

bool convolution_tf32() { return takes_tf32(at::Float32Op::CONV); }

// The forward convolution, or its data gradient: `source` to `result`, of the layout of `result`.
void run_direct(const Conv2dShape& s, const at::Tensor& input, const at::Tensor& weight,
                const Conv2dEpilogue& epilogue, bool transposed, const at::Tensor& result) {
  const auto format = layout_of(result);
  const bool last = is_channels_last(format);
  const at::Tensor source = input.contiguous(format);
  const int64_t outputs = s.result_channels / s.groups, inputs = s.channels / s.groups;
  at::Tensor packed = weight.reshape({s.groups, outputs, inputs, s.kernel_h * s.kernel_w});  // [G,M,C,taps]
  if (transposed) packed = packed.transpose(1, 2);
  packed = (last ? packed.permute({3, 2, 0, 1}) : packed).contiguous();
  at::Tensor bias, residual;
  const cuda::Conv2dDirectParams params{source.const_data_ptr(),
                                        packed.const_data_ptr(),
                                        operand_pointer(epilogue.bias, at::MemoryFormat::Contiguous, bias),
                                        operand_pointer(epilogue.residual, format, residual),
                                        result.mutable_data_ptr(),
                                        epilogue.activation,
                                        s.batch,
                                        narrow(s.groups),
                                        narrow(transposed ? outputs : inputs),
                                        narrow(transposed ? inputs : outputs),
                                        axis_of(s, 0, transposed),
                                        axis_of(s, 1, transposed),
                                        last,
                                        transposed,
                                        convolution_tf32()};
  C10_CUDA_CHECK(cuda::launch_conv2d_direct(params, s.dtype, current_stream()));
}

at::Tensor pixels_of(const at::Tensor& tensor) { return on_16_bytes(tensor, at::MemoryFormat::ChannelsLast); }

void run_implicit(const Conv2dShape& s, const at::Tensor& input, const at::Tensor& weight,
                  const Conv2dEpilogue& epilogue, bool transposed, const at::Tensor& result) {
  const at::Tensor source = pixels_of(input);
  const at::Tensor packed = pixels_of(transposed ? weight.transpose(0, 1) : weight);
  const at::Tensor added = epilogue.residual != nullptr ? pixels_of(*epilogue.residual) : at::Tensor();
  at::Tensor bias;
  const bool last = is_channels_last(layout_of(result));
  const at::Tensor target =
      last ? result
           : at::empty(result.sizes(), result.options().memory_format(at::MemoryFormat::ChannelsLast));
  const cuda::Conv2dImplicitParams params{source.const_data_ptr(),
                                          packed.const_data_ptr(),
                                          operand_pointer(epilogue.bias, at::MemoryFormat::Contiguous, bias),
                                          added.defined() ? added.const_data_ptr() : nullptr,
                                          target.mutable_data_ptr(),
                                          epilogue.activation,
                                          s.batch,
                                          narrow(transposed ? s.result_channels : s.channels),
                                          narrow(transposed ? s.channels : s.result_channels),
                                          axis_of(s, 0, transposed),
                                          axis_of(s, 1, transposed),
                                          transposed,
                                          convolution_tf32()};
  C10_CUDA_CHECK(cuda::launch_conv2d_implicit(params, s.dtype, current_stream()));
  if (!last) result.copy_(target);
}

auto convolution_of(Conv2dAlgorithm algorithm) {
  switch (algorithm) {
    case Conv2dAlgorithm::kWinograd:
      return run_cuda_winograd;
    case Conv2dAlgorithm::kDirect:
      return run_direct;
    default:
      return run_implicit;
  }
}

at::Tensor implicit_weight_gradient(const Conv2dShape& s, const at::Tensor& gradient, const at::Tensor& input,
                                    const at::Tensor& weight) {
  const at::Tensor grad = pixels_of(gradient), source = pixels_of(input);
  const cuda::Conv2dImplicitWeightParams params{grad.const_data_ptr(),
                                                source.const_data_ptr(),
                                                nullptr,
                                                s.batch,
                                                narrow(s.channels),
                                                narrow(s.result_channels),
                                                axis_of(s, 0, false),
                                                axis_of(s, 1, false),
                                                convolution_tf32(),
                                                1};
  const at::Tensor total = add_parts(implicit_weight_parts(params, weight), weight);  // [KH,KW,C,O]
  at::Tensor result = at::empty_like(weight);
  result.copy_(total.view({s.kernel_h, s.kernel_w, s.channels, s.result_channels}).permute({3, 2, 0, 1}));
  return result;
}

at::Tensor direct_weight_gradient(const Conv2dShape& s, const at::Tensor& gradient, const at::Tensor& input,
                                  const at::Tensor& weight, at::MemoryFormat format) {
  const at::Tensor grad = gradient.contiguous(format), source = input.contiguous(format);
  cuda::Conv2dWeightParams params{grad.const_data_ptr(),
                                  source.const_data_ptr(),
                                  nullptr,
                                  s.batch,
                                  narrow(s.groups),
                                  narrow(s.channels / s.groups),
                                  narrow(s.result_channels / s.groups),
                                  axis_of(s, 0, false),
                                  axis_of(s, 1, false),
                                  is_channels_last(format),
                                  1};
  params.splits = cuda::conv2d_weight_splits(params, s.dtype);
  const at::Tensor partial = at::empty({params.splits, weight.numel()},
                                       weight.options().dtype(accumulator_type(weight.scalar_type())));
  params.partial = partial.mutable_data_ptr();
  C10_CUDA_CHECK(cuda::launch_conv2d_weight(params, s.dtype, current_stream()));
  const at::Tensor total = add_parts(partial, weight).view(weight.sizes());
  if (weight.is_contiguous()) return total;
  at::Tensor result = at::empty_like(weight);
  return result.copy_(total);
}

at::Tensor weight_gradient(Conv2dAlgorithm algorithm, const Conv2dShape& s, const at::Tensor& gradient,
                           const at::Tensor& input, const at::Tensor& weight, at::MemoryFormat format) {
  switch (algorithm) {
    case Conv2dAlgorithm::kWinograd:
      return cuda_winograd_weight_gradient(s, gradient, input, weight, format);
    case Conv2dAlgorithm::kDirect:
      return direct_weight_gradient(s, gradient, input, weight, format);
    default:
      return implicit_weight_gradient(s, gradient, input, weight);
  }
}

// A number that tells models of GPUs apart; 1 where there is none, and where nobody asks for measurements.
int64_t gpu_model() {
  int device = 0;
  if (!tuning_enabled() || cudaGetDevice(&device) != cudaSuccess) return 1;
  int64_t model = 1;
  for (const auto attribute : {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
                               cudaDevAttrMultiProcessorCount, cudaDevAttrGlobalMemoryBusWidth}) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    model = model * 10000 + value;
  }
  return model;
}

Conv2dShape cuda_shape(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, int64_t groups) {
  Conv2dShape shape = check_conv2d(input, weight, bias, stride, padding, dilation, groups);
  shape.cuda = gpu_model();
  shape.tf32 = shape.dtype == DType::kFloat32 && convolution_tf32();
  return shape;
}

// The algorithm of a pass, measured where that is asked for; `run` computes the pass.
template <typename Run>
Conv2dAlgorithm choose(const Conv2dShape& shape, Conv2dPass pass, std::string_view requested, Run&& run) {
  if (!tuning_enabled() || capturing()) return choose_conv2d_algorithm(shape, pass, requested);
  return measure_conv2d_algorithm(shape, pass, requested,
                                  [&](Conv2dAlgorithm each) { return device_seconds([&] { run(each); }); });
}

at::Tensor conv2d_cuda(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, int64_t groups, std::string_view activation_name,
                       std::string_view requested, const std::optional<at::Tensor>& residual) {
  const at::Tensor images = batched(input);
  const DeviceGuard guard(input.device());
  const Conv2dShape shape = cuda_shape(images, weight, bias, stride, padding, dilation, groups);
  const Activation activation = parse_activation(activation_name);
  const auto forward = [&](Conv2dAlgorithm algorithm) {
    if (algorithm == Conv2dAlgorithm::kAten) {
      return conv2d_epilogue(
          input, residual, activation,
          at::convolution(images, weight, bias, stride, padding, dilation, false, {0, 0}, groups));
    }
    const at::Tensor output =
        at::empty({shape.batch, shape.result_channels, shape.result_height(), shape.result_width()},
                  images.options().memory_format(conv2d_layout(images, weight)));
    const at::Tensor added = conv2d_residual(input, residual, output);
    if (output.numel() > 0) {
      const Conv2dEpilogue epilogue{given(bias) ? &*bias : nullptr, added.defined() ? &added : nullptr,
                                    activation};
      convolution_of(algorithm)(shape, images, weight, epilogue, false, output);
    }
    return output;
  };
  return like_batching_of(input, forward(choose(shape, Conv2dPass::kForward, requested, forward)));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& output, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, std::string_view activation_name, std::string_view requested,
    std::array<bool, 3> output_mask) {
  const at::Tensor images = batched(input);
  const DeviceGuard guard(input.device());
  const Conv2dShape shape = cuda_shape(images, weight, std::nullopt, stride, padding, dilation, groups);
  const Activation activation = parse_activation(activation_name);
  const bool activated = activation != Activation::kNone;
  TORCH_CHECK(!activated || (output.has_value() && output->defined()),
              "the gradient through an activation needs the output");
  const auto format = conv2d_layout(images, weight);
  const at::Tensor grad = (activated ? activation_backward(batched(grad_output), batched(*output), activation)
                                     : batched(grad_output))
                              .contiguous(format);
  auto [wants_input, wants_weight, wants_bias] = output_mask;
  at::Tensor grad_input, grad_weight, grad_bias;
  const bool empty = images.numel() == 0 || grad.numel() == 0;
  const auto aten = [&](std::array<bool, 3> mask) {
    return at::convolution_backward(grad, images, weight, at::IntArrayRef{shape.result_channels}, stride,
                                    padding, dilation, false, {0, 0}, groups, mask);
  };
  // Undefined: torch's, together with what else is.
  const auto of_input = [&](Conv2dAlgorithm algorithm) {
    if (algorithm == Conv2dAlgorithm::kAten) return at::Tensor();
    const at::Tensor result = at::empty(images.sizes(), images.options().memory_format(format));
    convolution_of(algorithm)(shape, grad, weight, {}, true, result);
    return result;
  };
  const auto of_weight = [&](Conv2dAlgorithm algorithm) {
    if (algorithm == Conv2dAlgorithm::kAten) return at::Tensor();
    return weight_gradient(algorithm, shape, grad, images, weight, format);
  };
  const auto chosen = [&](Conv2dPass pass, const auto& compute, std::array<bool, 3> mask) {
    return choose(shape, pass, requested, [&](Conv2dAlgorithm algorithm) {
      if (!compute(algorithm).defined()) aten(mask);
    });
  };
  if (wants_input && !empty) {
    grad_input = of_input(chosen(Conv2dPass::kGradInput, of_input, {true, false, false}));
    wants_input = !grad_input.defined();
  }
  if (wants_weight && !empty) {
    grad_weight = of_weight(chosen(Conv2dPass::kGradWeight, of_weight, {false, true, false}));
    wants_weight = !grad_weight.defined();
  }
  // cuDNN's gradient of the bias is a sum too, but where it finds the weight's it comes with it.
  if (wants_bias && !wants_weight && !empty) {
    grad_bias = at::sum(grad, {0, 2, 3});
    wants_bias = false;
  }
  return conv2d_gradients(input, {grad_input, grad_weight, grad_bias},
                          {wants_input, wants_weight, wants_bias}, aten);
}

}  // namespace

// What the measurements of the current GPU are found by.
TORCH_LIBRARY_FRAGMENT(d2lfast, m) { m.def("_cuda_model() -> int", gpu_model); }

TORCH_LIBRARY_IMPL(d2lfast, D2LFAST_CUDA_KEY, m) {
  m.impl("conv2d", conv2d_cuda);
  m.impl("_conv2d_backward", conv2d_backward_cuda);
}

}  // namespace d2lfast::ops
