#include "recurrent_cluster.h"

#include <algorithm>
#include <cstdint>

#include "device_limits.h"
#include "recurrent_cluster_plan.h"
#include "recurrent_step_time.h"

namespace d2lfast::cuda {
namespace {

struct ClusterPlan {
  ClusterShare share;  // no rows: it does not fit
  ClusterMemory memory;
  int64_t clusters, waves, shared_bytes;
};

// How the products of a layer are computed.
bool on_tensor_cores(DType dtype, bool tf32) { return tf32 || dtype != DType::kFloat32; }

ClusterPlan plan_of(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool tf32, bool backward) {
  constexpr int64_t kRegisters = 65536;  // of a block: up to 255 a thread
  const DeviceLimits limits = device_limits();
  ClusterPlan plan{};
  ClusterShare& share = plan.share;
  share.lanes = 1;
  while (share.lanes < 8 && share.lanes * kLaneUnits < hidden) share.lanes *= 2;
  const bool tensor_cores = on_tensor_cores(dtype, tf32);
  share.blocks = tensor_cores ? tensor_core_blocks(share.lanes) : exact_blocks(share.lanes);
  const bool fits = hidden <= share.lanes * kLaneUnits && dtype != DType::kFloat64 &&
                    limits.registers >= kRegisters && (share.blocks == 1 || limits.clusters);
  if (!fits) return {};
  const auto gates = static_cast<int32_t>(layer_gates(mode));
  plan.memory = tensor_cores ? tensor_core_memory(gates, share.lanes, backward)
                             : exact_memory(gates, share.lanes, backward);
  const auto bytes = [&](int32_t rows) {
    ClusterShare of = share;
    of.rows = rows;
    const int64_t kept = int64_t{mode == LayerMode::kLSTM ? 2 : 1} * plan.memory.items(of) * kThreads;
    return static_cast<int64_t>(sizeof(float)) * (2 * plan.memory.exchanged(of) + plan.memory.sums + kept);
  };
  const int64_t clusters = std::max<int64_t>(1, limits.processors / share.blocks);
  constexpr int64_t kMost = 1024;  // more than fit
  share.rows = static_cast<int32_t>(std::min(divide_up(batch, clusters), kMost));
  while (share.rows > 0 && bytes(share.rows) > limits.shared_bytes) --share.rows;
  if (share.rows == 0) return {};
  plan.clusters = divide_up(batch, share.rows);
  plan.waves = divide_up(plan.clusters * share.blocks, limits.processors);
  plan.shared_bytes = bytes(share.rows);
  return plan;
}

// Cycles of a step's products. On tensor cores: multiplications at 512 a cycle. Exact: instructions of a
// warp, counted in sm_90's disassembly, or wavefronts of shared memory, of which a sequence's products
// read 32.
int64_t cycles_of_products(const ClusterPlan& plan, int64_t gates, bool tensor_cores, bool backward) {
  const int64_t lanes = plan.share.lanes, rows = plan.memory.rows(plan.share);
  if (tensor_cores) {
    const int64_t units = lanes * kLaneUnits / plan.share.blocks;
    return rows * gates * tensor_core_depth(plan.share.lanes) * units / 512;
  }
  const int64_t halvings = lanes == 8 ? 3 : lanes / 2, sums = backward ? 1 : gates;
  const int64_t shared = lanes > 1 ? (backward ? 14 : 20) + 2 * sums * halvings : 0;
  const int64_t issued = 34 * gates + (backward ? 23 : 9) + shared;
  const int64_t read = 32 + sums * halvings;
  return divide_up(rows * lanes, plan.share.at_once()) * std::max(2 * issued, 8 * read);
}

// A thread's sequence takes it some 300 instructions, with parts of sums through shared memory 400; a barrier
// and what each step waits for come on top.
int64_t cycles_of_step(const ClusterPlan& plan, int64_t gates, bool tensor_cores, bool backward) {
  const int64_t products = cycles_of_products(plan, gates, tensor_cores, backward);
  const int64_t cycles = products + plan.memory.items(plan.share) * 2 * (tensor_cores ? 400 : 300);
  return plan.waves * (cycles * 5 / 4 + (plan.share.blocks > 1 ? 1000 : 500));
}

cudaError_t run(const RecurrentLayerParams& p, bool backward, DType dtype, cudaStream_t stream) {
  if (static_cast<int64_t>(p.batch) * p.steps * p.hidden == 0) return cudaSuccess;
  ClusterPlan plan = plan_of(p.mode, p.hidden, p.batch, dtype, p.tf32, backward);
  if (plan.share.rows == 0) return cudaErrorInvalidValue;
  plan.share.by_fours = p.hidden % 4 == 0 && aligned(p.weight, static_cast<size_t>(4 * bytes_of(dtype)));
  LaunchShape shape{static_cast<unsigned>(plan.clusters * plan.share.blocks), kThreads,
                    static_cast<size_t>(plan.shared_bytes)};
  shape.cluster = static_cast<unsigned>(plan.share.blocks);
  return on_tensor_cores(dtype, p.tf32)
             ? launch_on_tensor_cores(p, plan.share, backward, dtype, shape, stream)
             : launch_exact(p, plan.share, backward, shape, stream);
}

}  // namespace

bool recurrent_cluster_fits(LayerMode mode, int64_t hidden, DType dtype, bool tf32) {
  return plan_of(mode, hidden, 1, dtype, tf32, false).share.rows > 0 &&
         plan_of(mode, hidden, 1, dtype, tf32, true).share.rows > 0;
}

bool recurrent_cluster_wins(LayerMode mode, int64_t hidden, int64_t batch, DType dtype, bool tf32,
                            bool training) {
  const auto step = [&](bool backward) {
    const ClusterPlan plan = plan_of(mode, hidden, std::max<int64_t>(1, batch), dtype, tf32, backward);
    const int64_t cycles = cycles_of_step(plan, layer_gates(mode), on_tensor_cores(dtype, tf32), backward);
    return kCycle * static_cast<double>(cycles);
  };
  return step(false) + (training ? step(true) : 0) <
         native_step(mode, hidden, batch, dtype) * (training ? 2 : 1);
}

cudaError_t launch_recurrent_cluster(const RecurrentLayerParams& params, DType dtype, cudaStream_t stream) {
  return run(params, false, dtype, stream);
}

cudaError_t launch_recurrent_cluster_backward(const RecurrentLayerParams& params, DType dtype,
                                              cudaStream_t stream) {
  return run(params, true, dtype, stream);
}

}  // namespace d2lfast::cuda
