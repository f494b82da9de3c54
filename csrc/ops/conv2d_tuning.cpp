#include "conv2d_tuning.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

namespace d2lfast::ops {

namespace {

constexpr double kRoundSeconds = 0.015;  // for each algorithm
constexpr int kFewestRounds = 5, kMostRounds = 50;
constexpr double kHopeless = 3.0;      // times the fastest: not measured any further
constexpr double kWorthwhile = 0.97;   // of the time of the table's choice
constexpr double kSlowSeconds = 0.05;  // no second try beyond

struct Findings {
  std::shared_mutex mutex;
  std::map<TuningKey, Conv2dAlgorithm> algorithms;
  std::shared_ptr<const TuningListener> listener;
};

// Never destroyed: the listener may be Python's, whose interpreter ends first.
Findings& findings() {
  static Findings& all = *new Findings;
  return all;
}

std::atomic<bool> enabled{false};

TuningKey key_of(const Conv2dShape& s, Conv2dPass pass) {
  return {static_cast<int64_t>(pass),
          static_cast<int64_t>(s.dtype),
          s.channels_last,
          s.cuda != 0 ? 1 : at::get_num_threads(),
          winograd_allowed(),
          s.batch,
          s.channels,
          s.height,
          s.width,
          s.result_channels,
          s.kernel_h,
          s.kernel_w,
          s.stride[0],
          s.stride[1],
          s.padding[0],
          s.padding[1],
          s.dilation[0],
          s.dilation[1],
          s.groups,
          s.cuda,
          s.tf32};
}

struct Contender {
  Conv2dAlgorithm algorithm;
  double seconds;  // least of all runs
};

// The fastest, or the table's choice where nothing is clearly faster.
Conv2dAlgorithm fastest(const Conv2dShape& shape, Conv2dPass pass, Conv2dAlgorithm usual,
                        c10::function_ref<double(Conv2dAlgorithm)> seconds) {
  std::vector<Contender> contenders;
  double least = std::numeric_limits<double>::infinity();
  // The table's choice first: what it takes tells early which of the others are hopeless.
  contenders.push_back({usual, 0});
  for (const auto algorithm : conv2d_candidates(shape, pass)) {
    if (algorithm != usual) contenders.push_back({algorithm, 0});
  }
  for (Contender& c : contenders) {
    c.seconds = seconds(c.algorithm);
    // The first run of a shape may prepare what later runs find in a cache.
    if (c.seconds < kSlowSeconds || c.seconds < kHopeless * least) c.seconds = seconds(c.algorithm);
    least = std::min(least, c.seconds);
  }
  contenders.erase(std::remove_if(contenders.begin(), contenders.end(),
                                  [&](const Contender& c) { return !(c.seconds < kHopeless * least); }),
                   contenders.end());
  if (contenders.size() > 1) {
    const auto rounds = static_cast<int>(std::min<double>(kMostRounds, kRoundSeconds / least));
    for (int i = 0; i < std::max(rounds, kFewestRounds); ++i) {
      for (Contender& c : contenders) c.seconds = std::min(c.seconds, seconds(c.algorithm));
    }
  }
  const Contender* best = nullptr;
  for (const Contender& c : contenders) {
    const double handicap = c.algorithm == usual ? kWorthwhile : 1.0;
    const double best_handicap = best != nullptr && best->algorithm == usual ? kWorthwhile : 1.0;
    if (best == nullptr || c.seconds * handicap < best->seconds * best_handicap) best = &c;
  }
  return best != nullptr ? best->algorithm : usual;
}

}  // namespace

bool tuning_enabled() { return enabled.load(std::memory_order_relaxed); }
void enable_tuning(bool value) { enabled = value; }

double wall_seconds(c10::function_ref<bool()> call) {
  const auto start = std::chrono::steady_clock::now();
  const bool done = call();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  return done ? time.count() : std::numeric_limits<double>::infinity();
}

std::optional<Conv2dAlgorithm> tuned_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass) {
  if (!tuning_enabled()) return std::nullopt;
  Findings& all = findings();
  const std::shared_lock lock(all.mutex);
  const auto found = all.algorithms.find(key_of(shape, pass));
  if (found == all.algorithms.end()) return std::nullopt;
  // A file may say anything.
  if (!conv2d_is_candidate(found->second, shape, pass)) return std::nullopt;
  return found->second;
}

Conv2dAlgorithm measure_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                         std::string_view requested,
                                         c10::function_ref<double(Conv2dAlgorithm)> seconds) {
  const bool elements = shape.batch * shape.channels * shape.height * shape.width * shape.result_channels > 0;
  const bool tunes = tuning_enabled() && elements && requested_conv2d_algorithm(requested, pass) == "auto" &&
                     !at::in_parallel_region();
  if (!tunes) return choose_conv2d_algorithm(shape, pass, requested);
  if (const auto known = tuned_conv2d_algorithm(shape, pass)) return *known;
  // Two measurements at a time would disturb each other.
  static std::mutex measuring;
  Findings& all = findings();
  const TuningKey key = key_of(shape, pass);
  std::shared_ptr<const TuningListener> listener;
  Conv2dAlgorithm algorithm;
  {
    const std::lock_guard one(measuring);
    if (const auto known = tuned_conv2d_algorithm(shape, pass)) return *known;
    algorithm = fastest(shape, pass, choose_conv2d_algorithm(shape, pass, "auto"), seconds);
    const std::lock_guard lock(all.mutex);
    all.algorithms[key] = algorithm;
    listener = all.listener;
  }
  if (listener) (*listener)(key, conv2d_algorithm_name(algorithm));
  return algorithm;
}

bool add_tuning(const TuningKey& key, const std::string& name) {
  const auto algorithm = conv2d_algorithm_named(name);
  if (!algorithm) return false;
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  all.algorithms.try_emplace(key, *algorithm);
  return true;
}

void clear_tuning() {
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  all.algorithms.clear();
}

void on_tuning(TuningListener listener) {
  auto shared = std::make_shared<const TuningListener>(std::move(listener));
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  all.listener.swap(shared);
}

}  // namespace d2lfast::ops
