#pragma once

#include "recurrent_layer.h"

// Layers whose recurrent weight is larger than a block's shared memory: the blocks of one cooperative launch
// share it out, each with some units of the layer, and meet at a barrier of the grid after every step.
namespace d2lfast::cuda {

// Elements of accumulator type that forward and backward need as `workspace`; 0 where the weight does not fit
// into the shared memory of the whole device.
int64_t recurrent_grid_workspace(LayerMode mode, int64_t hidden, int64_t batch, DType dtype);

// Whether the step's computed time is below that of two launches which read the weight from the L2 cache:
// few sequences, for which neither the exchange of states nor the arithmetic is longer than the launches.
// training: of forward and backward together.
bool recurrent_grid_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool training);

// As launch_recurrent_layer and launch_recurrent_layer_backward (recurrent_layer.h), with `workspace`,
// aligned to 16 bytes. One launch each.
cudaError_t launch_recurrent_grid(const RecurrentLayerParams& params, void* workspace, DType dtype,
                                  cudaStream_t stream);
cudaError_t launch_recurrent_grid_backward(const RecurrentLayerParams& params, void* workspace, DType dtype,
                                           cudaStream_t stream);

}  // namespace d2lfast::cuda
