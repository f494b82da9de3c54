#include <torch/library.h>

#include "operators.h"

namespace d2lfast::ops {

TORCH_LIBRARY_IMPL(d2lfast, CPU, m) {
  m.impl("adaptive_avg_pool2d", adaptive_avg_pool2d_cpu);
  m.impl("_adaptive_avg_pool2d_backward", adaptive_avg_pool2d_backward_cpu);
  m.impl("adaptive_max_pool2d", adaptive_max_pool2d_cpu);
  m.impl("_adaptive_max_pool2d_backward", adaptive_max_pool2d_backward_cpu);
  m.impl("_batch_norm_act_backward", batch_norm_act_backward_cpu);
  m.impl("_batch_norm_inplace_backward", batch_norm_inplace_backward_cpu);
  m.impl("batch_norm_act", batch_norm_act_cpu);
  m.impl("batch_norm_act_", batch_norm_act_inplace_cpu);
  m.impl("_batch_norm_inplace_saving", batch_norm_inplace_saving_cpu);
  m.impl("_batch_norm_act_saving", batch_norm_act_saving_cpu);
  m.impl("conv2d", conv2d_cpu);
  m.impl("_conv2d_backward", conv2d_backward_cpu);
  m.impl("_cross_entropy", cross_entropy_cpu);
  m.impl("_cross_entropy_backward", cross_entropy_backward_cpu);
  m.impl("_linear", linear_cpu);
  m.impl("_linear_backward", linear_backward_cpu);
  m.impl("max_pool2d", max_pool2d_cpu);
  m.impl("_max_pool2d_with_position", max_pool2d_with_position_cpu);
  m.impl("_max_pool2d_position_to_index", max_pool2d_position_to_index_cpu);
  m.impl("_max_pool2d_backward", max_pool2d_backward_cpu);
  m.impl("avg_pool2d", avg_pool2d_cpu);
  m.impl("_avg_pool2d_backward", avg_pool2d_backward_cpu);
  m.impl("_recurrent_layer_backward", recurrent_layer_backward_cpu);
  m.impl("_recurrent_layer", recurrent_layer_cpu);
  m.impl("_recurrent_layer_forward", recurrent_layer_forward_cpu);
  m.impl("_sync_batch_norm_moments", sync_batch_norm_moments_cpu);
  m.impl("_sync_batch_norm_backward", sync_batch_norm_backward_cpu);
}

}  // namespace d2lfast::ops
