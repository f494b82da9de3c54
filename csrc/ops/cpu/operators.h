#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

// The CPU's kernels of the operators, by the operator's name. library.cpp registers them: torch/library.h
// takes longer to compile than most of what they are.

namespace d2lfast::ops {

at::Tensor adaptive_avg_pool2d_cpu(const at::Tensor& input, at::IntArrayRef output_size);
at::Tensor adaptive_avg_pool2d_backward_cpu(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                            bool channels_last);
std::tuple<at::Tensor, at::Tensor> adaptive_max_pool2d_cpu(const at::Tensor& input,
                                                           at::IntArrayRef output_size);
at::Tensor adaptive_max_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& indices,
                                            at::IntArrayRef input_size, bool channels_last);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_act_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const at::Tensor& statistics, const std::optional<at::Tensor>& output,
    const std::optional<at::Tensor>& mask, bool training, std::string_view activation,
    std::array<bool, 4> output_mask);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_inplace_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& output, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const at::Tensor& statistics, bool training,
    std::string_view activation, std::array<bool, 4> output_mask);

at::Tensor batch_norm_act_cpu(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                              const std::optional<at::Tensor>& bias,
                              const std::optional<at::Tensor>& running_mean,
                              const std::optional<at::Tensor>& running_var, bool training, double momentum,
                              double eps, std::string_view activation,
                              const std::optional<at::Tensor>& residual);
void batch_norm_act_inplace_cpu(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias,
                                const std::optional<at::Tensor>& running_mean,
                                const std::optional<at::Tensor>& running_var, bool training, double momentum,
                                double eps, std::string_view activation,
                                const std::optional<at::Tensor>& residual);
at::Tensor batch_norm_inplace_saving_cpu(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                                         const std::optional<at::Tensor>& bias,
                                         const std::optional<at::Tensor>& running_mean,
                                         const std::optional<at::Tensor>& running_var, bool training,
                                         double momentum, double eps, std::string_view activation,
                                         const std::optional<at::Tensor>& residual);
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act_saving_cpu(
    const at::Tensor& input, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    bool training, double momentum, double eps, std::string_view activation,
    const std::optional<at::Tensor>& residual);

at::Tensor conv2d_cpu(const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, int64_t groups, std::string_view activation_name,
                      std::string_view algorithm, const std::optional<at::Tensor>& residual);
std::tuple<at::Tensor, at::Tensor, at::Tensor> conv2d_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
    const std::optional<at::Tensor>& output, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, std::string_view activation_name, std::string_view algorithm,
    std::array<bool, 3> output_mask);

std::tuple<at::Tensor, at::Tensor> cross_entropy_cpu(const at::Tensor& input, const at::Tensor& target,
                                                     int64_t reduction, int64_t ignore_index);
at::Tensor cross_entropy_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& target, const at::Tensor& statistics,
                                      int64_t reduction, int64_t ignore_index);

at::Tensor linear_cpu(const at::Tensor& input, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias);
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_backward_cpu(const at::Tensor& grad_output,
                                                                   const at::Tensor& input,
                                                                   const at::Tensor& weight,
                                                                   std::array<bool, 3> mask);

at::Tensor max_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
std::tuple<at::Tensor, at::Tensor> max_pool2d_with_position_cpu(const at::Tensor& input,
                                                                at::IntArrayRef kernel_size,
                                                                at::IntArrayRef stride,
                                                                at::IntArrayRef padding,
                                                                at::IntArrayRef dilation, bool ceil_mode);
at::Tensor max_pool2d_position_to_index_cpu(const at::Tensor& position, at::IntArrayRef input_size,
                                            at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                            at::IntArrayRef padding, at::IntArrayRef dilation);
at::Tensor max_pool2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& position,
                                   at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                   bool channels_last);
at::Tensor avg_pool2d_cpu(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                          std::optional<int64_t> divisor_override);
at::Tensor avg_pool2d_backward_cpu(const at::Tensor& grad_output, at::IntArrayRef input_size,
                                   at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                   at::IntArrayRef padding, bool count_include_pad,
                                   std::optional<int64_t> divisor_override, bool channels_last);

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> recurrent_layer_backward_cpu(
    const std::optional<at::Tensor>& grad_output, const std::optional<at::Tensor>& grad_h,
    const std::optional<at::Tensor>& grad_c, const at::Tensor& input,
    const std::optional<at::Tensor>& batch_sizes, const at::Tensor& hx, const std::optional<at::Tensor>& cx,
    at::TensorList weights, const at::Tensor& output, const at::Tensor& saved, const at::Tensor& cells,
    std::string_view mode, bool bias, bool projected, bool reverse, std::array<bool, 4> mask);

std::tuple<at::Tensor, at::Tensor, at::Tensor> recurrent_layer_cpu(
    const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes, const at::Tensor& hx,
    const std::optional<at::Tensor>& cx, at::TensorList weights, std::string_view mode, bool bias,
    bool projected, bool reverse);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> recurrent_layer_forward_cpu(
    const at::Tensor& input, const std::optional<at::Tensor>& batch_sizes, const at::Tensor& hx,
    const std::optional<at::Tensor>& cx, at::TensorList weights, std::string_view mode, bool bias,
    bool projected, bool reverse, bool save);

at::Tensor sync_batch_norm_moments_cpu(const at::Tensor& input);
std::tuple<at::Tensor, at::Tensor> sync_batch_norm_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const at::Tensor& statistics, const std::optional<at::Tensor>& output,
    const std::optional<at::Tensor>& mask, std::string_view activation_name, const at::Tensor& means,
    bool wants_residual);

}  // namespace d2lfast::ops
