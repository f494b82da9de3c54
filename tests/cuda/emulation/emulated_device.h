#pragma once

#include <cmath>
#include <type_traits>

#include "../../../csrc/kernels/cuda/vector.cuh"
#include "grid.h"
#include "guards.h"

// The names of csrc/kernels/cuda/device.cuh on a CPU.

#define D2LFAST_ASSERT(condition) \
  ((condition) ? void() : ::emulation::Grid::get().fail("device-side assertion: " #condition))
#define D2LFAST_SHARED(type, name, count) \
  const auto name = ::d2lfast::cuda::shared_array<type>(#name, __LINE__, count)

namespace d2lfast::cuda {

using emulation::Grid;

// An element of shared memory that knows who touched it.
template <typename T>
class SharedElement {
 public:
  SharedElement(T* value, emulation::Shadow* shadow, const emulation::Block* block)
      : value_(value), shadow_(shadow), block_(block) {}
  operator T() const {
    const int64_t now = block_->barrier.epoch;
    if (shadow_->copies > 0) Grid::get().fail("a read of shared memory during an asynchronous copy");
    if (!shadow_->initialised) Grid::get().fail("a read of shared memory that nobody wrote");
    if (shadow_->written_at == now && shadow_->writer != thread()) {
      Grid::get().fail("a read of shared memory that races with a write of thread " +
                       std::to_string(shadow_->writer));
    }
    shadow_->reader = shadow_->read_at == now && shadow_->reader != thread() ? -2 : thread();
    shadow_->read_at = now;
    return *value_;
  }
  const SharedElement& operator=(const T& value) const {
    check_write();
    shadow_->writer = thread();
    shadow_->written_at = block_->barrier.epoch;
    shadow_->initialised = true;
    *value_ = value;
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = static_cast<T>(other); }
  SharedElement(const SharedElement&) = default;
  // An asynchronous copy may write at any time from its beginning to its end.
  void begin_copy() const {
    check_write();
    ++shadow_->copies;
  }
  void end_copy(const T& value) const {
    --shadow_->copies;
    *this = value;
  }

 private:
  // In the cluster, those of the element's block first.
  int thread() const {
    const auto& current = *Grid::get().current;
    if (current.block == block_) return current.linear;
    const unsigned rank = current.block->index.x % Grid::get().shape.cluster;
    return static_cast<int>(1 + rank) * 1024 + current.linear;
  }
  void check_write() const {
    const int64_t now = block_->barrier.epoch;
    if (shadow_->copies > 0) Grid::get().fail("a write of shared memory during an asynchronous copy");
    if (shadow_->written_at == now && shadow_->writer != thread()) {
      Grid::get().fail("a write of shared memory that races with a write of thread " +
                       std::to_string(shadow_->writer));
    }
    if (shadow_->read_at == now && shadow_->reader != thread()) {
      Grid::get().fail("a write of shared memory that races with a read");
    }
  }

  T* value_;
  emulation::Shadow* shadow_;
  const emulation::Block* block_;
};

template <typename T>
class SharedPointer {
 public:
  SharedPointer() = default;
  SharedPointer(emulation::SharedMemory* memory, int64_t offset) : memory_(memory), offset_(offset) {}
  SharedElement<T> operator[](int64_t i) const {
    const int64_t at = offset_ + i;
    if (at < 0 || at >= static_cast<int64_t>(memory_->shadow.size())) {
      Grid::get().fail("an access outside shared memory");
    }
    return {reinterpret_cast<T*>(memory_->data) + at, &memory_->shadow[at], memory_->block};
  }
  SharedPointer operator+(int64_t i) const { return {memory_, offset_ + i}; }
  void begin_copy(int64_t i) const { (*this)[i].begin_copy(); }
  void end_copy(int64_t i, const T& value) const { (*this)[i].end_copy(value); }
  int64_t offset() const { return offset_; }
  // The same place of dynamic memory in another block.
  SharedPointer in(emulation::Block& block) const {
    const auto known = block.shared.find({"", 0, typeid(T)});
    if (known == block.shared.end()) Grid::get().fail("an access to a block that has not begun");
    return {&known->second, offset_};
  }

 private:
  emulation::SharedMemory* memory_ = nullptr;
  int64_t offset_ = 0;
};

template <typename T>
SharedPointer<T> shared_array(const char* name, int line, int64_t count) {
  auto& memory = Grid::get().current->block->shared[{name, line, typeid(T)}];
  if (memory.shadow.empty()) {
    memory.block = Grid::get().current->block;
    memory.bytes.resize(count * sizeof(T), 0xa5);
    memory.data = memory.bytes.data();
    memory.shadow.resize(count);
  }
  return {&memory, 0};
}

template <typename T>
SharedPointer<T> dynamic_shared() {
  emulation::Block& block = *Grid::get().current->block;
  auto& memory = block.shared[{"", 0, typeid(T)}];
  if (memory.data == nullptr) {
    const size_t bytes = Grid::get().shape.shared_bytes;
    if (block.dynamic.empty()) block.dynamic.resize(bytes, 0xa5);
    memory.block = &block;
    memory.data = block.dynamic.data();
    memory.shadow.resize(bytes / sizeof(T));
  }
  return {&memory, 0};
}

template <int V, typename T>
Vector<T, V> load_shared(SharedPointer<T> address) {
  if (address.offset() % V != 0) Grid::get().fail("a misaligned access to shared memory");
  Vector<T, V> value;
  for (int i = 0; i < V; ++i) value.lane[i] = address[i];
  return value;
}

template <int V, typename T>
Vector<T, V> load_shared_at(SharedPointer<T> address, int32_t bytes) {
  if (bytes % sizeof(T) != 0) Grid::get().fail("a misaligned access to shared memory");
  return load_shared<V>(address + bytes / static_cast<int32_t>(sizeof(T)));
}

template <int V, typename T>
void store_shared(SharedPointer<T> address, const Vector<T, V>& value) {
  if (address.offset() % V != 0) Grid::get().fail("a misaligned access to shared memory");
  for (int i = 0; i < V; ++i) address[i] = value.lane[i];
}

template <typename T, int N>
void store_shared_words(SharedPointer<T> address, const Vector<uint32_t, N>& words) {
  Vector<T, 4 * N / sizeof(T)> value;
  std::memcpy(&value, &words, sizeof(value));
  store_shared(address, value);
}

template <typename T>
T shuffle(T value, int lane) {
  T other;
  std::memcpy(&other, Grid::get().exchange(&value, sizeof(T))[lane % emulation::kWarp], sizeof(T));
  return other;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, Grid::get().current->linear % emulation::kWarp ^ mask);
}

inline unsigned ballot(bool predicate) {
  const auto* slots = Grid::get().exchange(&predicate, sizeof(predicate));
  unsigned lanes = 0;
  for (int i = 0; i < emulation::kWarp; ++i) lanes |= static_cast<unsigned>(slots[i][0] != 0) << i;
  return lanes;
}

inline void prefetch(const void*) {}

inline void sync_grid() { Grid::get().sync_grid(); }
inline void sync_cluster(int32_t blocks) { Grid::get().sync_cluster(blocks); }

template <int V>
void store_in_cluster(SharedPointer<float> address, int32_t blocks, const Vector<float, V>& value) {
  for (emulation::Block& block : Grid::get().cluster(blocks)) store_shared(address.in(block), value);
}
inline void store_in_cluster(SharedPointer<float> address, int32_t blocks, float value) {
  store_in_cluster(address, blocks, Vector<float, 1>{{value}});
}

// The copy is made when the thread waits for it, and not before.
template <int kBytes, typename Pointer, typename T>
void copy_async(Pointer to, const T* from, bool valid) {
  constexpr int kCount = kBytes / sizeof(T);
  if (to.offset() % kCount != 0) Grid::get().fail("a misaligned copy to shared memory");
  if (valid && reinterpret_cast<uintptr_t>(from) % kBytes != 0) Grid::get().fail("a misaligned copy");
  for (int i = 0; i < kCount; ++i) to.begin_copy(i);
  if (valid) emulation::read_global(from, kBytes);
  Grid::get().current->copies.back().push_back([=] {
    for (int i = 0; i < kCount; ++i) to.end_copy(i, valid ? from[i] : T{});
  });
}
template <typename T>
void copy_async_element(SharedPointer<T> to, const T* from, bool valid) {
  copy_async<sizeof(T)>(to, from, valid);
}
template <typename T>
void copy_async_8(SharedPointer<T> to, const T* from, bool valid) {
  copy_async<8>(to, from, valid);
}
template <typename T>
void copy_async_16(SharedPointer<T> to, const T* from, bool valid) {
  copy_async<16>(to, from, valid);
}
inline void commit_async() { Grid::get().current->copies.emplace_back(); }
template <int kPending>
void wait_async() {
  auto& copies = Grid::get().current->copies;
  while (copies.size() > kPending + 1) {
    for (const auto& copy : copies.front()) copy();
    copies.erase(copies.begin());
  }
}

using LaunchShape = emulation::Launch;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments... arguments) {
  if (Grid::get().guarded && (emulation::guards == 0 || stream != emulation::current_stream())) {
    Grid::get().fail("a launch outside a device guard and its stream");
  }
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  std::vector<emulation::Argument> pointers;
  std::apply([&](const auto&... value) { (pointers.push_back({&value, sizeof(value)}), ...); }, values);
  Grid::get().run(
      shape, typeid(kernel).name(), [&] { std::apply(kernel, values); },
      reinterpret_cast<const void*>(kernel), pointers);
  return cudaSuccess;
}

}  // namespace d2lfast::cuda

inline void __syncthreads() { ::emulation::Grid::get().sync_block(); }
