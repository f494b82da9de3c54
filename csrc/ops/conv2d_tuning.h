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

// Measured choices: switched on, the first call of a key times the algorithms that compute it on its own
// tensors, and later calls take the fastest. Without autotuning, within a parallel region or while a CUDA
// graph is captured, the table decides.

// pass, dtype, channels_last, threads (1 on a GPU), winograd_allowed, then the shape as Conv2dShape lists it.
constexpr int kTuningFields = 21;
using TuningKey = std::array<int64_t, kTuningFields>;

D2LFAST_VISIBLE bool tuning_enabled();
void enable_tuning(bool enabled);

// The measured algorithm; none where autotuning is off or the key is unknown.
std::optional<Conv2dAlgorithm> tuned_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass);

// choose_conv2d_algorithm, after measuring where that is due. `seconds` computes the pass, throws the result
// away and says how long it took, infinity where the algorithm declined.
D2LFAST_VISIBLE Conv2dAlgorithm measure_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                                         std::string_view requested,
                                                         c10::function_ref<double(Conv2dAlgorithm)> seconds);

// Of a call on the CPU; infinity if it returns false.
double wall_seconds(c10::function_ref<bool()> call);

// Findings from elsewhere, the only entries of a key that has none yet. False: no algorithm has that name.
bool add_tuning(const TuningKey& key, const std::string& algorithm);
void clear_tuning();

// Called with every new finding, in the thread that measured it and without a lock.
using TuningListener = std::function<void(const TuningKey& key, const std::string& algorithm)>;
void on_tuning(TuningListener listener);

}  // namespace d2lfast::ops
