#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "../dtype.h"
#include "scratch.h"

namespace d2lfast::ops {

// Calls kernel(params, begin, end, scratch) over ranges of `items`, in threads where the work pays for them.
// `item_cost`: elements that an item touches; `scratch`: accumulators of each thread's scratch.
template <typename Kernel, typename Params>
void parallel_items(Kernel kernel, const Params& params, int64_t items, int64_t item_cost, int64_t scratch,
                    DType dtype) {
  constexpr int64_t kLeastCost = 1 << 15;
  const size_t bytes = static_cast<size_t>(scratch * accumulator_size(dtype));
  const int64_t grain = std::max<int64_t>(1, kLeastCost / std::max<int64_t>(1, item_cost));
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    kernel(params, begin, end, bytes > 0 ? thread_scratch(bytes) : nullptr);
  });
}

}  // namespace d2lfast::ops
