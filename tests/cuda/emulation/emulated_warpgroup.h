#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "emulated_device.h"

// The asynchronous products of csrc/kernels/cuda/warpgroup.cuh on a CPU. Sums are NaN from a product's
// beginning to the wait for it. Until all threads of the warpgroup have waited, a write to its factors is an
// error; so is a factor whose writer made no fence between its write and the barrier.
namespace d2lfast::cuda {

// Of a device whose compute capability D2LFAST_EMULATED_CAPABILITY gives, as 90.
inline bool device_has_products() { return emulated_limit("D2LFAST_EMULATED_CAPABILITY", 80) == 90; }

namespace detail {

constexpr uint64_t kFactorMemory = 3 * kFactorAlign;  // the address of a block's memory

struct Product {
  uint64_t left, right;
  std::vector<float> a, b;                   // 32 bytes along k of each row
  std::vector<std::function<void()>> reads;  // by elements: the end of each
  int waiting = 128;                         // threads
};

struct Fence {
  int64_t time = -1, epoch = -1, time_before = -1;  // the last, and the last of an earlier epoch
};

struct ProductThread {
  Fence fence;
  bool sums_fenced = false;
  int64_t begun = 0;
  std::map<float*, std::vector<float>> sums;  // in flight
  // By groups, the open one last.
  std::vector<std::vector<std::pair<float*, std::shared_ptr<Product>>>> groups{{}};
};

struct Warpgroup {
  int arrived = 0;
  int64_t epoch = 0;
  std::map<int64_t, std::shared_ptr<Product>> products;  // that not all threads have begun
};

// Of the block that runs.
struct ProductState {
  int64_t block = -1, time = 0;
  std::vector<int64_t> written;  // times, by elements of shared memory
  std::vector<int> reads;        // products under way
  int64_t all_reads = 0;
  std::map<int, ProductThread> threads;
  std::map<int, Warpgroup> groups;
};

inline ProductState& product_state() {
  static ProductState state;
  static int64_t blocks = 0;
  auto& mark = Grid::get().current->block->shared[{"products", 0, typeid(int64_t)}].bytes;
  if (mark.empty()) {
    mark.resize(sizeof(int64_t));
    ++blocks;
    std::memcpy(mark.data(), &blocks, sizeof(blocks));
    state = {};
    state.block = blocks;
    state.written.resize(Grid::get().shape.shared_bytes);
    state.reads.resize(state.written.size());
  }
  if (std::memcmp(mark.data(), &state.block, sizeof(state.block)) != 0) {
    Grid::get().fail("products of several blocks at once, which are not emulated");
  }
  return state;
}

}  // namespace detail

// Shared memory that products read.
template <typename T>
class FactorPointer {
 public:
  FactorPointer(SharedPointer<T> start) : start_(start) {}
  FactorPointer operator+(int64_t i) const { return start_ + i; }
  int64_t offset() const { return start_.offset(); }
  SharedPointer<T> plain() const { return start_; }
  void write(int64_t i, const T& value) const {
    check_write(i);
    start_[i] = value;
    note_write(i);
  }
  void begin_copy(int64_t i) const {
    check_write(i);
    start_[i].begin_copy();
  }
  void end_copy(int64_t i, const T& value) const {
    start_[i].end_copy(value);
    note_write(i);
  }

 private:
  void check_write(int64_t i) const {
    start_[i];  // or outside
    if (detail::product_state().reads[offset() + i] > 0) {
      Grid::get().fail("a write of shared memory during a product");
    }
  }
  void note_write(int64_t i) const {
    auto& state = detail::product_state();
    state.written[offset() + i] = ++state.time;
  }
  SharedPointer<T> start_;
};

template <typename T>
FactorPointer<T> factor_memory() {
  return dynamic_shared<T>();
}

template <typename T>
void copy_async_16(FactorPointer<T> to, const T* from, bool valid) {
  copy_async<16>(to, from, valid);
}

template <typename T>
uint64_t factor(FactorPointer<T> start, uint64_t block_bytes = 16) {
  const uint64_t address = detail::kFactorMemory + start.offset() * sizeof(T);
  if (address % kFactorAlign != 0) Grid::get().fail("a factor off its boundary");
  return kFactorLayout | block_bytes / 16 << 16 | (address & 0x3ffff) >> 4;
}

// Sums are kept apart from the factors whose memory they take.
template <typename T>
SharedPointer<float> sum_memory() {
  if (detail::product_state().all_reads > 0) Grid::get().fail("sums in the factors of a product under way");
  return dynamic_shared<float>();
}

template <int kSums>
void pin_sums(float (&)[kSums]) {}

inline void fence_factors() {
  auto& state = detail::product_state();
  auto& fence = state.threads[Grid::get().current->linear].fence;
  const int64_t now = Grid::get().current->block->barrier.epoch;
  if (fence.epoch != now) fence.time_before = fence.time;
  fence.time = ++state.time;
  fence.epoch = now;
}

inline void fence_sums() {
  Grid::get().sync_warp();
  detail::product_state().threads[Grid::get().current->linear].sums_fenced = true;
}

inline void commit_products() {
  Grid::get().sync_warp();
  detail::product_state().threads[Grid::get().current->linear].groups.emplace_back();
}

namespace detail {

// All 128 threads arrive. Warps that do make the progress which the grid watches.
inline void meet(Warpgroup& group) {
  Grid::get().sync_warp();
  const int64_t epoch = group.epoch;
  if (++group.arrived == 128) {
    group.arrived = 0;
    ++group.epoch;
  }
  while (group.epoch == epoch) Grid::get().current->fiber.pause();
}

// The rows of a factor over 32 bytes along k, as its descriptor places them.
template <typename T, bool kLines>
std::vector<float> read_factor(uint64_t descriptor, int rows, Product& product) {
  auto& state = product_state();
  const SharedPointer<T> memory = dynamic_shared<T>();
  const auto& shadow = Grid::get().current->block->shared[{"", 0, typeid(T)}].shadow;
  const int64_t now = Grid::get().current->block->barrier.epoch;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) Grid::get().fail("another swizzle");
  const uint64_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint64_t block = (descriptor >> 16 & 0x3fff) << 4;
  std::vector<float> values;
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < 32 / int{sizeof(T)}; ++k) {
      const uint64_t line = kLines ? k : row, element = kLines ? row % 64 : k;
      const uint64_t address = start + (kLines ? row / 64 * block : 0) + line / 8 * stride +
                               line % 8 * kFactorLine + element * sizeof(T);
      const uint64_t swizzled = address ^ (address >> 7 & 7) << 4;
      const int64_t place = (static_cast<int64_t>(swizzled - kFactorMemory)) / int{sizeof(T)};
      values.push_back(to_compute(static_cast<T>(memory[place])));
      const Fence& fence = state.threads[shadow[place].writer].fence;
      if ((fence.epoch < now ? fence.time : fence.time_before) < state.written[place]) {
        Grid::get().fail("a product of what was written without a fence");
      }
      ++state.reads[place];
      ++state.all_reads;
      product.reads.push_back([=, &state] {
        --state.reads[place];
        --state.all_reads;
        static_cast<void>(static_cast<T>(memory[place]));  // the race check's last read
      });
    }
  }
  return values;
}

}  // namespace detail

template <typename T, int kColumns, bool kLines>
void begin_product(float (&sum)[kColumns / 2], uint64_t left, uint64_t right) {
  auto& state = detail::product_state();
  const int thread = Grid::get().current->linear;
  auto& mine = state.threads[thread];
  auto& group = state.groups[thread / 128];
  if (mine.sums.count(sum) == 0) {
    if (!mine.sums_fenced) Grid::get().fail("a product into sums without a fence");
    mine.sums[sum].assign(sum, sum + kColumns / 2);
    for (float& value : sum) value = std::numeric_limits<float>::quiet_NaN();
  }
  detail::meet(group);
  auto& product = group.products[mine.begun];
  if (product == nullptr) {
    product = std::make_shared<detail::Product>();
    product->left = left;
    product->right = right;
    product->a = detail::read_factor<T, kLines>(left, 64, *product);
    product->b = detail::read_factor<T, kLines>(right, kColumns, *product);
  }
  if (product->left != left || product->right != right) Grid::get().fail("factors that differ by thread");
  mine.groups.back().emplace_back(sum, product);
  group.products.erase(mine.begun - 2);  // every thread has passed it
  ++mine.begun;
}

namespace detail {

inline void finish(ProductThread& mine, float* sum, Product& product) {
  const int lane = Grid::get().current->linear % 32, warp = Grid::get().current->linear % 128 / 32;
  std::vector<float>& sums = mine.sums[sum];
  const size_t length = product.a.size() / 64;
  for (size_t i = 0; i < sums.size(); ++i) {
    const float* a = &product.a[(16 * warp + lane / 4 + i / 2 % 2 * 8) * length];
    const float* b = &product.b[(i / 4 * 8 + lane % 4 * 2 + i % 2) * length];
    for (size_t k = 0; k < length; ++k) sums[i] += a[k] * b[k];
  }
  if (--product.waiting == 0) {
    for (const auto& end : product.reads) end();
  }
}

}  // namespace detail

template <int kPending>
void wait_products() {
  Grid::get().sync_warp();
  auto& mine = detail::product_state().threads[Grid::get().current->linear];
  while (mine.groups.size() > kPending + 1) {
    for (auto& [sum, product] : mine.groups.front()) detail::finish(mine, sum, *product);
    mine.groups.erase(mine.groups.begin());
  }
  for (auto& [sum, values] : std::map(mine.sums)) {
    bool pending = false;
    for (const auto& group : mine.groups) {
      for (const auto& entry : group) pending = pending || entry.first == sum;
    }
    if (pending) continue;
    std::copy(values.begin(), values.end(), sum);
    mine.sums.erase(sum);
  }
  mine.sums_fenced = false;
}

}  // namespace d2lfast::cuda
