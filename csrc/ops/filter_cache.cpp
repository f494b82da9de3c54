#include "filter_cache.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/UndefinedTensorImpl.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace d2lfast::ops {

namespace {

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

std::atomic<bool> enabled{false};
thread_local bool inference = false;

struct Kept {
  // Weak references: neither address is given to another object while they are held.
  WeakTensor tensor;
  WeakStorage storage;
  const void* data;
  uint32_t version;
  std::vector<int64_t> sizes, strides;
  at::ScalarType dtype;
  const void* kind;
  at::Tensor filters;
  uint64_t used;

  bool is_of(const at::Tensor& weight, const void* of_kind) const {
    return kind == of_kind && tensor._unsafe_get_target() == weight.unsafeGetTensorImpl() &&
           storage._unsafe_get_target() == weight.storage().unsafeGetStorageImpl();
  }
  bool is_current(const at::Tensor& weight) const {
    return data == weight.const_data_ptr() && version == weight._version() && dtype == weight.scalar_type() &&
           weight.sizes() == at::IntArrayRef(sizes) && weight.strides() == at::IntArrayRef(strides);
  }
};

std::mutex mutex;
uint64_t uses = 0;

std::vector<Kept>& all() {
  // Never destroyed: threads may outlive the statics.
  static auto* kept = new std::vector<Kept>;
  return *kept;
}

void drop_dead() {
  auto& kept = all();
  kept.erase(std::remove_if(kept.begin(), kept.end(), [](const Kept& k) { return k.tensor.expired(); }),
             kept.end());
}

int64_t kept_bytes() {
  int64_t bytes = 0;
  for (const Kept& k : all()) bytes += static_cast<int64_t>(k.filters.nbytes());
  return bytes;
}

}  // namespace

bool filters_are_kept() { return enabled; }

void keep_filters_of_inference(bool keep) {
  enabled = keep;
  const std::lock_guard lock(mutex);
  if (!keep) all().clear();
}

InferenceGuard::InferenceGuard(bool value) : before_(inference) { inference = value; }
InferenceGuard::~InferenceGuard() { inference = before_; }

bool keeps_filters(const at::Tensor& weight) {
  return enabled.load(std::memory_order_relaxed) && (inference || c10::InferenceMode::is_enabled()) &&
         !weight.is_inference() && weight.has_storage() && weight.use_count() > 1;
}

at::Tensor kept_filters(const at::Tensor& weight, const void* kind, int64_t size) {
  const std::lock_guard lock(mutex);
  drop_dead();
  for (Kept& k : all()) {
    if (!k.is_of(weight, kind) || !k.is_current(weight) || k.filters.numel() != size) continue;
    k.used = ++uses;
    return k.filters;
  }
  return {};
}

void keep_filters(const at::Tensor& weight, const void* kind, const at::Tensor& filters) {
  const auto bytes = static_cast<int64_t>(filters.nbytes());
  if (bytes > kMostKeptBytes) return;
  const std::lock_guard lock(mutex);
  if (!enabled) return;
  auto& kept = all();
  // Those of the weight before it was written to, and those that another thread has added.
  kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Kept& k) { return k.is_of(weight, kind); }),
             kept.end());
  while (kept_bytes() + bytes > kMostKeptBytes) {
    kept.erase(std::min_element(kept.begin(), kept.end(),
                                [](const Kept& a, const Kept& b) { return a.used < b.used; }));
  }
  kept.push_back({WeakTensor(weight.getIntrusivePtr()), weight.storage().getWeakStorageImpl(),
                  weight.const_data_ptr(), static_cast<uint32_t>(weight._version()), weight.sizes().vec(),
                  weight.strides().vec(), weight.scalar_type(), kind, filters, ++uses});
}

}  // namespace d2lfast::ops
