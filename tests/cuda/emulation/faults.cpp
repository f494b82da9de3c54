// Kernels with one fault each: the emulation must name it. Prints what it said, a line for each.

#include <cstdio>

#include "../../../csrc/kernels/cuda/device.cuh"

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
void across_blocks(int* out) {
  out[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(blockIdx.x);
  sync_grid();
  const int other = out[(gridDim.x - 1 - blockIdx.x) * 64 + threadIdx.x];
  sync_grid();
  out[blockIdx.x * 64 + threadIdx.x] = other;
}

alignas(16) int memory[64 * 3];

void copy_four(SharedPointer<int> to, const int* from) {
  copy_async_16(to + 4 * threadIdx.x, from + 4 * threadIdx.x, true);
  commit_async();
}
// Two buffers, of which the second is read while its copy is under way.
void missing_wait(int*) {
  D2LFAST_SHARED(int, values, 32);
  if (threadIdx.x >= 4) return;
  copy_four(values, memory);
  copy_four(values + 16, memory);
  wait_async<1>();
  const int last = values[4 * threadIdx.x] + values[16 + 4 * threadIdx.x];
  memory[threadIdx.x] = last;
}
// The copy's own thread has it after the wait, the others only after a barrier.
void missing_barrier(int* out) {
  D2LFAST_SHARED(int, values, 256);
  copy_async_16(values + 4 * threadIdx.x, memory, true);
  commit_async();
  wait_async<0>();
  out[threadIdx.x] = values[4 * (threadIdx.x == 0 ? 0 : threadIdx.x - 1)];
}
// A buffer that others may still read is filled again.
void early_copy(int* out) {
  D2LFAST_SHARED(int, values, 256);
  for (int step = 0; step < 2; ++step) {
    copy_async_16(values + 4 * threadIdx.x, memory, true);
    commit_async();
    wait_async<0>();
    __syncthreads();
    out[threadIdx.x] = values[4 * (63 - threadIdx.x)];
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

int main() {
  expect("race", race, {1, 64});
  expect("overwrite", overwrite, {1, 64});
  expect("uninitialised", uninitialised, {1, 64});
  expect("outside", outside, {1, 64});
  expect("divergent", divergent, {1, 64});
  expect("partial warp", partial_warp, {1, 64});
  expect("missing wait", missing_wait, {1, 64});
  expect("missing barrier", missing_barrier, {1, 64});
  expect("early copy", early_copy, {1, 64});
  expect("too many rows", correct, {{1, 65536}, 64});
  expect("too many threads", correct, {1, 1025});
  expect("no blocks", correct, {0u, 64});
  expect("not cooperative", across_blocks, {3, 64});
  expect("correct", correct, {1, 64});
  bool right = true;
  for (int i = 0; i < 64; ++i) right = right && memory[i] == 63 - i + (i ^ 31);
  expect("cooperative", across_blocks, {3, 64, 0, true});
  for (int i = 0; i < 192; ++i) right = right && memory[i] == 2 - i / 64;
  std::printf("results: %s\n", right ? "right" : "wrong");
  Grid::get().guarded = true;
  expect("no guard", correct, {1, 64});
}
