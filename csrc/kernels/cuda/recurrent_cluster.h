#pragma once

#include "recurrent_layer.h"

// Layers of up to 256 units whose recurrent weight stays in registers: the blocks of a cluster have some
// units each, for a few sequences, and exchange states or gate gradients through each other's shared memory.
// Layers of up to 64 units need one block. Products of float32 are exact; of 16 bits, and of float32 with
// `tf32`, they run on tensor cores, and what is exchanged is rounded to TF32.
namespace d2lfast::cuda {

// Whether registers and states fit; clusters of several blocks are for compute capability 9.0 and later.
bool recurrent_cluster_fits(LayerMode mode, int64_t hidden, DType dtype, bool tf32);

// Of a layer that fits, whether the step's computed time is below that of torch's layer; training: of forward
// and backward together.
bool recurrent_cluster_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool tf32,
                            bool training);

// As launch_recurrent_layer and launch_recurrent_layer_backward (recurrent_layer.h). One launch each.
cudaError_t launch_recurrent_cluster(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream);
cudaError_t launch_recurrent_cluster_backward(const RecurrentLayerParams& params, DType dtype,
                                              cudaStream_t stream);

}  // namespace d2lfast::cuda
