#pragma once

#include "device.cuh"
#include "recurrent_layer.h"

// How the units and sequences of a layer are shared out to clusters, and what their blocks keep in shared
// memory.
namespace d2lfast::cuda {

constexpr int kLaneUnits = 32;

// `lanes`: 1, 2, 4 or 8, for up to 32 units each; `blocks` of a cluster have all units, for `rows` sequences.
struct ClusterShare {
  int32_t lanes, blocks, rows;
  bool by_fours;  // the weight is read by four elements

  // Sequences that the threads of a cluster have at a time, one each.
  D2LFAST_HOST_DEVICE int32_t at_once() const { return 8 * blocks / lanes; }
};

// Floats of a block's shared memory: `pitch` for what a sequence exchanges, of which there are a multiple of
// `group`, and `sums` for parts of products.
struct ClusterMemory {
  int32_t pitch, group, sums;

  D2LFAST_HOST_DEVICE int32_t rows(const ClusterShare& share) const {
    return (share.rows + group - 1) / group * group;
  }
  D2LFAST_HOST_DEVICE int32_t exchanged(const ClusterShare& share) const { return rows(share) * pitch; }
  // That a thread has.
  D2LFAST_HOST_DEVICE int32_t items(const ClusterShare& share) const {
    return (rows(share) + share.at_once() - 1) / share.at_once();
  }
};

// What the kernels need: blocks of a cluster, and shared memory.
int32_t exact_blocks(int32_t lanes);
ClusterMemory exact_memory(int32_t gates, int32_t lanes, bool backward);
int32_t tensor_core_blocks(int32_t lanes);
// Of the products of a gate: units that there is room for, with 16 at least for each warp that shares them.
D2LFAST_HOST_DEVICE constexpr int32_t tensor_core_depth(int32_t lanes) {
  return lanes == 1 ? 64 : lanes * kLaneUnits;
}
ClusterMemory tensor_core_memory(int32_t gates, int32_t lanes, bool backward);

// Of float32, on the ordinary units (recurrent_cluster_exact.cu).
cudaError_t launch_exact(const RecurrentLayerParams& params, const ClusterShare& share, bool backward,
                         const LaunchShape& shape, cudaStream_t stream);
// Of numbers of TF32 (recurrent_cluster_tensor_core.cu).
cudaError_t launch_on_tensor_cores(const RecurrentLayerParams& params, const ClusterShare& share,
                                   bool backward, DType dtype, const LaunchShape& shape, cudaStream_t stream);

}  // namespace d2lfast::cuda
