#pragma once

#include <c10/util/FunctionRef.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "conv2d_algorithm.h"

namespace d2lfast::ops {

// Measured choices of the CPU's algorithms: switched on, the first call of a key times the algorithms that
// compute it on its own tensors, and later calls take the fastest. Without autotuning, or within a parallel
// region, the table decides.

// pass, dtype, channels_last, threads, winograd_allowed, then the shape as Conv2dShape lists it.
constexpr int kTuningFields = 19;
using TuningKey = std::array<int64_t, kTuningFields>;

bool tuning_enabled();
void enable_tuning(bool enabled);

// The measured algorithm; none where autotuning is off or the key is unknown.
std::optional<Conv2dAlgorithm> tuned_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass);

// choose_conv2d_algorithm, after measuring where that is due. `run` computes the pass and throws the result
// away; it returns false where the algorithm declined.
Conv2dAlgorithm measure_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                         std::string_view requested,
                                         c10::function_ref<bool(Conv2dAlgorithm)> run);

// Findings from elsewhere, the only entries of a key that has none yet. False: no algorithm has that name.
bool add_tuning(const TuningKey& key, const std::string& algorithm);
void clear_tuning();

// Called with every new finding, in the thread that measured it and without a lock.
using TuningListener = std::function<void(const TuningKey& key, const std::string& algorithm)>;
void on_tuning(TuningListener listener);

}  // namespace d2lfast::ops
