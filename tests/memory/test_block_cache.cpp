// The block cache alone, over random requests of one and of many threads: `test_block_cache [steps]`. Built
// with sanitizers by run_sanitized.sh; knows neither torch nor Python.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "../../csrc/memory/block_cache.h"

namespace {

using d2lfast::memory::BlockCache;

constexpr size_t kMiB = size_t{1} << 20;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 88172645463325252u) {}
  uint64_t below(uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 2685821657736338717u >> 33) % bound;
  }

 private:
  uint64_t state_;
};

// A block and what was written to its ends and to each page.
struct Owned {
  unsigned char* data;
  size_t size;
  unsigned char mark;
  void fill() const {
    for (size_t i = 0; i < size; i += 4096) data[i] = mark;
    data[size - 1] = mark;
  }
  bool intact() const {
    for (size_t i = 0; i < size; i += 4096) {
      if (data[i] != mark) return false;
    }
    return data[size - 1] == mark;
  }
};

Owned request(BlockCache& cache, Random& random) {
  const size_t limit = size_t{1} << (10 + random.below(16));
  const size_t size = 1 + random.below(limit);
  auto* data = static_cast<unsigned char*>(cache.allocate(size));
  expect(data != nullptr, "no memory");
  expect(reinterpret_cast<uintptr_t>(data) % 4096 == 0, "a block is not aligned");
  const Owned owned{data, size, static_cast<unsigned char>(1 + random.below(255))};
  owned.fill();
  return owned;
}

void test_random(int steps, size_t max_cached) {
  BlockCache cache;
  cache.set_options({max_cached, true});
  Random random(max_cached + 1);
  std::vector<Owned> live;
  for (int step = 0; step < steps; ++step) {
    if (live.size() < 24 && random.below(100) < 55) {
      live.push_back(request(cache, random));
    } else if (!live.empty()) {
      const size_t i = random.below(live.size());
      expect(live[i].intact(), "a live block was overwritten");
      expect(cache.free(live[i].data), "a live block is not known");
      live[i] = live.back();
      live.pop_back();
    }
    const auto stats = cache.stats();
    expect(stats.cached_bytes <= max_cached, "more is cached than allowed");
    size_t requested = 0;
    for (const Owned& owned : live) requested += owned.size;
    expect(stats.allocated_bytes >= requested, "the count of live bytes is too small");
    expect(stats.allocated_bytes <= requested + requested / 8 + live.size() * 8192, "blocks are too large");
    expect(stats.mapped_bytes >= stats.allocated_bytes + stats.cached_bytes, "more is in use than is mapped");
  }
  for (const Owned& owned : live) cache.free(owned.data);
  cache.release_cached();
  const auto stats = cache.stats();
  expect(stats.allocated_bytes == 0 && stats.cached_bytes == 0, "blocks are left");
  expect(stats.mapped_bytes == 0, "free neighbours did not join to whole segments");
}

void test_reuse() {
  BlockCache cache;
  cache.set_options({SIZE_MAX, true});
  void* const first = cache.allocate(51 * kMiB);
  expect(!cache.free(static_cast<char*>(first) + 4096) && !cache.free(&cache) && !cache.free(nullptr),
         "a foreign address was taken for a block");
  static int freed;
  expect(cache.free(first, [](void*) { ++freed; }) && freed == 1, "the block's end was not reported");
  expect(!cache.free(first), "a block was freed twice");
  expect(cache.allocate(50 * kMiB) == first, "the freed block was not used again");
  auto stats = cache.stats();
  expect(stats.requests == 2 && stats.hits == 1, "requests and hits are wrong");
  expect(cache.free(first), "a live block is not known");
  cache.set_options({0, false});
  stats = cache.stats();
  expect(stats.mapped_bytes == 0 && stats.released_bytes >= 50 * kMiB, "the new limit is not obeyed");
}

void test_no_memory() {
  BlockCache cache;
  cache.set_options({SIZE_MAX, true});
  cache.free(cache.allocate(40 * kMiB));
  expect(cache.stats().cached_bytes > 0, "nothing is cached");
  expect(cache.allocate(size_t{1} << 55) == nullptr && cache.allocate(SIZE_MAX) == nullptr,
         "an impossible request was served");
  expect(cache.stats().cached_bytes == 0, "the cache was not given back before giving up");
  void* const block = cache.allocate(kMiB);
  expect(block != nullptr && cache.free(block), "of no use after a failure");
}

void test_threads(int steps) {
  BlockCache cache;
  cache.set_options({64 * kMiB, true});
  // Blocks change hands, so that one thread frees what another allocated.
  std::vector<Owned> shared;
  std::mutex mutex;
  const auto work = [&](uint64_t seed) {
    Random random(seed);
    for (int step = 0; step < steps; ++step) {
      const Owned mine = request(cache, random);
      Owned other{nullptr, 0, 0};
      {
        const std::lock_guard<std::mutex> lock(mutex);
        shared.push_back(mine);
        if (shared.size() > 6) {
          const size_t i = random.below(shared.size());
          other = shared[i];
          shared[i] = shared.back();
          shared.pop_back();
        }
      }
      if (other.data != nullptr) {
        expect(other.intact(), "threads share a block");
        expect(cache.free(other.data), "a live block is not known");
      }
      if (random.below(64) == 0) cache.release_cached();
      if (random.below(16) == 0) (void)cache.stats();
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  for (const Owned& owned : shared) cache.free(owned.data);
  cache.release_cached();
  expect(cache.stats().mapped_bytes == 0, "blocks are left");
}

void test_fork() {
  BlockCache cache;
  cache.set_options({SIZE_MAX, true});
  Random random(7);
  const Owned kept = request(cache, random);
  Owned freed = request(cache, random);
  cache.free(freed.data);
  cache.before_fork();
  const pid_t child = fork();
  if (child == 0) {
    cache.after_fork_in_child();
    bool good = kept.intact() && cache.stats().cached_bytes == 0;
    const Owned own = request(cache, random);
    good = good && own.intact() && cache.free(own.data) && cache.free(kept.data);
    cache.release_cached();
    _exit(good && cache.stats().mapped_bytes == 0 ? 0 : 1);
  }
  cache.after_fork_in_parent();
  int status = 0;
  expect(child > 0 && waitpid(child, &status, 0) == child, "no child");
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's cache is broken");
  expect(kept.intact() && cache.stats().cached_bytes > 0, "the child changed the parent's blocks");
  cache.free(kept.data);
}

}  // namespace

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 2000;
  for (const size_t limit : {size_t{0}, 8 * kMiB, size_t{SIZE_MAX}}) test_random(steps, limit);
  test_reuse();
  test_no_memory();
  test_threads(steps / 8);
  test_fork();
  std::printf("block cache: %d steps: ok\n", steps);
  return 0;
}
