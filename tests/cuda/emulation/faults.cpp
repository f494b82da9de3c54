// Kernels with one fault each: the emulation must name it. Prints what it said, a line for each.

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "../../../csrc/kernels/cuda/warpgroup.cuh"

using namespace d2lfast;
using namespace d2lfast::cuda;

void race(int* out) {
  D2LFAST_SHARED(int, values, 64);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}
void overwrite(int* out) {
  D2LFAST_SHARED(int, values, 64);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 64];
  values[threadIdx.x] = 2;
}
void uninitialised(int* out) {
  D2LFAST_SHARED(int, values, 64);
  if (threadIdx.x < 63) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
void outside(int*) {
  D2LFAST_SHARED(int, values, 64);
  values[threadIdx.x + 1] = 1;
}
void divergent(int*) {
  if (threadIdx.x < 40) __syncthreads();
}
void partial_warp(int* out) {
  if (threadIdx.x != 3) out[threadIdx.x] = shuffle_xor(1, 1);
}
void correct(int* out) {
  D2LFAST_SHARED(int, values, 64);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const int other = values[63 - threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = other + shuffle_xor(static_cast<int>(threadIdx.x), 31);
  out[threadIdx.x] = values[threadIdx.x];
}
// Blocks that store into each other's memory.
template <int kBegins, int kEnds, int kBlocks>
void cluster(int* out) {
  const auto values = dynamic_shared<float>();
  const auto block = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
  values[block * 64 + thread] = -1;
  if (kBegins > 0) sync_cluster(kBegins);
  store_in_cluster(values + (block * 64 + thread), kBlocks, static_cast<float>(block));
  if (kEnds > 0) sync_cluster(kEnds);
  out[block * 64 + thread] = static_cast<int>(values[(1 - block) * 64 + thread]);
}
// Of all types dynamic shared memory is the same.
void overlap(int* out) {
  dynamic_shared<int>()[threadIdx.x] = 1;
  __syncthreads();
  dynamic_shared<float>()[threadIdx.x] = 2;
  __syncthreads();
  out[threadIdx.x] = dynamic_shared<int>()[threadIdx.x];
}
void across_blocks(int* out) {
  out[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(blockIdx.x);
  sync_grid();
  const int other = out[(gridDim.x - 1 - blockIdx.x) * 64 + threadIdx.x];
  sync_grid();
  out[blockIdx.x * 64 + threadIdx.x] = other;
}

alignas(16) int memory[64 * 3];
alignas(16) int source[64];

// Each thread's neighbour reads what it writes: in its block, over a barrier, and in another block.
void global_race(int* out) {
  out[threadIdx.x] = 1;
  out[64 + threadIdx.x] = out[(threadIdx.x + 63) % 64];
}
void global_barrier(int* out) {
  out[threadIdx.x] = 1;
  __syncthreads();
  out[64 + threadIdx.x] = out[(threadIdx.x + 63) % 64];
}
void global_blocks(int* out) {
  out[blockIdx.x] = 1;
  __syncthreads();
  out[3 + blockIdx.x] = out[(blockIdx.x + 2) % 3];
}
void global_grid_unsynchronised(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
  sync_grid();
  if (threadIdx.x == 0) out[3 + blockIdx.x] = out[(blockIdx.x + 2) % 3];
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = 2;
}
void global_both_write(int* out) { out[0] = 1; }
void global_bytes(int* out) { reinterpret_cast<unsigned char*>(out)[threadIdx.x] = 1; }
void global_overlap(int* out) {
  if (threadIdx.x == 0) {
    store(out, load<4>(source));
  } else {
    reinterpret_cast<unsigned char*>(out)[14 + threadIdx.x] = 1;
  }
}
void global_readers(int* out) {
  if (threadIdx.x < 2) source[threadIdx.x + 2] = out[3];
  if (threadIdx.x == 2) out[3] = 1;
}

void copy_four(SharedPointer<int> to, const int* from) {
  copy_async_16(to + 4 * threadIdx.x, from + 4 * threadIdx.x, true);
  commit_async();
}
// Two buffers, of which the second is read while its copy is under way.
void missing_wait(int*) {
  D2LFAST_SHARED(int, values, 32);
  if (threadIdx.x >= 4) return;
  copy_four(values, source);
  copy_four(values + 16, source);
  wait_async<1>();
  const int last = values[4 * threadIdx.x] + values[16 + 4 * threadIdx.x];
  memory[threadIdx.x] = last;
}
// The copy's own thread has it after the wait, the others only after a barrier.
void missing_barrier(int* out) {
  D2LFAST_SHARED(int, values, 256);
  copy_async_16(values + 4 * threadIdx.x, source, true);
  commit_async();
  wait_async<0>();
  out[threadIdx.x] = values[4 * (threadIdx.x == 0 ? 0 : threadIdx.x - 1)];
}
// A buffer that others may still read is filled again.
void early_copy(int* out) {
  D2LFAST_SHARED(int, values, 256);
  for (int step = 0; step < 2; ++step) {
    copy_async_16(values + 4 * threadIdx.x, source, true);
    commit_async();
    wait_async<0>();
    __syncthreads();
    out[threadIdx.x] = values[4 * (63 - threadIdx.x)];
  }
}

// The product of two diagonal matrices of 64 rows, over one row of 128 bytes along k.
struct Faults {
  bool swizzle = true, proxy_fence = true, barrier = true, sums_fence = true, wait = true, overwrite = false;
  bool early_sums = false;
  int partner_k = 0, threads = 128;
};
Faults fault;

void product(int* out) {
  constexpr int kPitch = kFactorLine / sizeof(Float16);
  const FactorPointer<Float16> left = factor_memory<Float16>(), right = left + 64 * kPitch;
  const auto fill = [&](FactorPointer<Float16> to, bool swizzle) {
    for (int piece = 0; piece < 8; ++piece) {
      const int row = static_cast<int>(threadIdx.x) % 64, at = swizzle ? swizzled_piece(row, piece) : piece;
      for (int i = 0; i < 8; ++i) {
        to.write(row * kPitch + at * 8 + i, from_compute<Float16>(piece * 8 + i == row ? float(row) : 0.0f));
      }
    }
  };
  if (threadIdx.x >= static_cast<unsigned>(fault.threads)) return;
  fill(threadIdx.x < 64 ? left : right, fault.swizzle || threadIdx.x >= 64);
  if (fault.proxy_fence) fence_factors();
  if (fault.barrier) __syncthreads();
  float sum[32] = {};
  if (fault.sums_fence) fence_sums();
  for (int k = 0; k < 4; ++k) {
    const int other = threadIdx.x / 32 == 3 ? fault.partner_k : 0;
    begin_product<Float16, 64, false>(sum, factor(left) + (k + other) % 4 * kNextProduct<false>,
                                      factor(right) + k * kNextProduct<false>);
  }
  commit_products();
  if (fault.overwrite) left.write(threadIdx.x, {});
  if (fault.wait) wait_products<0>();
  pin_sums(sum);
  if (fault.early_sums) sum_memory<Float16>()[threadIdx.x] = sum[0];
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 32; ++i) {
    const int row = 16 * warp + g + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
    if (sum[i] != (row == column ? float(row * row) : 0.0f)) out[threadIdx.x] = -1;
  }
}

void expect(const char* name, void (*kernel)(int*), const LaunchShape& shape) {
  try {
    launch(kernel, shape, nullptr, memory);
    std::printf("%s: ran\n", name);
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", name, error.what());
  }
}

void expect_product(const char* name, const Faults& with) {
  fault = with;
  std::fill(std::begin(memory), std::end(memory), 0);
  expect(name, product, {1, 128, 2 * 64 * kFactorLine});
  const bool right = std::all_of(std::begin(memory), std::end(memory), [](int n) { return n == 0; });
  std::printf("%s values: %s\n", name, right ? "right" : "wrong");
}

int main() {
  emulation::watch_global(memory, sizeof(memory));
  expect("race", race, {1, 64});
  expect("overwrite", overwrite, {1, 64});
  expect("uninitialised", uninitialised, {1, 64});
  expect("outside", outside, {1, 64});
  expect("divergent", divergent, {1, 64});
  expect("partial warp", partial_warp, {1, 64});
  expect("global race", global_race, {1, 64});
  expect("global barrier", global_barrier, {1, 64});
  expect("global blocks", global_blocks, {3, 1});
  expect("global grid", global_grid_unsynchronised, {3, 2, 0, true});
  expect("global both write", global_both_write, {1, 2});
  expect("global bytes", global_bytes, {1, 64});
  expect("global overlap", global_overlap, {1, 2});
  expect("global readers", global_readers, {1, 3});
  expect("missing wait", missing_wait, {1, 64});
  expect("missing barrier", missing_barrier, {1, 64});
  expect("early copy", early_copy, {1, 64});
  expect("too many rows", correct, {{1, 65536}, 64});
  expect("too many threads", correct, {1, 1025});
  expect("no blocks", correct, {0u, 64});
  expect("too much shared memory", correct, {1, 64, 48 * 1024 - 255});
  expect("not cooperative", across_blocks, {3, 64});
  expect("overlap", overlap, {1, 64, 256});
  std::printf("overlap values: %s\n", memory[63] == 0x40000000 ? "of both types" : "kept apart");
  expect("correct", correct, {1, 64});
  bool right = true;
  for (int i = 0; i < 64; ++i) right = right && memory[i] == 63 - i + (i ^ 31);
  expect("cooperative", across_blocks, {3, 64, 0, true});
  for (int i = 0; i < 192; ++i) right = right && memory[i] == 2 - i / 64;
  std::printf("results: %s\n", right ? "right" : "wrong");
  LaunchShape pair{2, 64, 512};
  pair.cluster = 2;
  expect("cluster", cluster<2, 2, 2>, pair);
  std::printf("cluster values: %s\n", memory[0] == 1 && memory[127] == 0 ? "right" : "wrong");
  expect("cluster, not begun", cluster<0, 2, 2>, pair);
  expect("cluster, no barrier", cluster<2, 0, 2>, pair);
  expect("cluster, barrier of a block", cluster<2, 1, 2>, pair);
  expect("cluster, another block", cluster<2, 2, 4>, pair);
  expect("cluster, odd", cluster<2, 2, 2>, {3, 64, 512, false, 2});
  expect_product("product", {});
  expect_product("product, no swizzle", {.swizzle = false});
  expect_product("product, no proxy fence", {.proxy_fence = false});
  expect_product("product, no barrier", {.barrier = false});
  expect_product("product, no fence of sums", {.sums_fence = false});
  expect_product("product, no wait", {.wait = false});
  expect_product("product, early write", {.overwrite = true});
  expect_product("product, early sums", {.early_sums = true});
  expect_product("product, other factors", {.partner_k = 1});
  expect_product("product, half a warpgroup", {.barrier = false, .threads = 64});
  Grid::get().guarded = true;
  expect("no guard", correct, {1, 64});
}
