#pragma once

#include <c10/util/FunctionRef.h>

#include <limits>

#include "runtime.h"

namespace d2lfast::ops {

// A point in the work of a stream, whose time is taken.
class TimedEvent {
 public:
  TimedEvent() { C10_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~TimedEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;

  void record() { C10_CUDA_CHECK(cudaEventRecord(event_, current_stream())); }
  double seconds_since(const TimedEvent& start) const {
    float milliseconds = 0;
    C10_CUDA_CHECK(cudaEventSynchronize(event_));
    C10_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
    return 1e-3 * milliseconds;
  }

 private:
  cudaEvent_t event_{};
};

// Of a call on the current stream, which is waited for; infinity where the device has too little memory.
inline double device_seconds(c10::function_ref<void()> call) {
  constexpr int kCalls = 4;  // launches of one overlap the kernels of the one before
  TimedEvent start, end;
  try {
    start.record();
    for (int i = 0; i < kCalls; ++i) call();
    end.record();
  } catch (const c10::OutOfMemoryError&) {
    return std::numeric_limits<double>::infinity();
  }
  return end.seconds_since(start) / kCalls;
}

// Whether the current stream is being captured into a graph, and so can be waited for no more.
inline bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(current_stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace d2lfast::ops
