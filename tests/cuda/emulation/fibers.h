#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>

namespace emulation {

// A function on a stack of its own. Switches go through _setjmp, which makes no system call.
class Fiber {
 public:
  Fiber() {
    stack_ =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack_ == MAP_FAILED) throw std::runtime_error("no stack for an emulated thread");
  }
  ~Fiber() { munmap(stack_, kStack); }
  Fiber(const Fiber&) = delete;

  void start(const std::function<void()>* body) {
    body_ = body;
    done_ = fresh_ = false;
    error_ = nullptr;
    getcontext(&entry_);
    entry_.uc_stack.ss_sp = stack_;
    entry_.uc_stack.ss_size = kStack;
    entry_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&entry_, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
    fresh_ = true;
  }

  // Runs until the function pauses or ends; an exception of the function comes out here.
  void resume() {
    if (_setjmp(outside_) == 0) {
      if (fresh_) {
        fresh_ = false;
        setcontext(&entry_);
      }
      _longjmp(inside_, 1);
    }
    if (error_) std::rethrow_exception(error_);
  }

  // Called on the fiber's own stack.
  void pause() {
    if (_setjmp(inside_) == 0) _longjmp(outside_, 1);
  }

  bool done() const { return done_; }

 private:
  static constexpr size_t kStack = 256 * 1024;

  static void enter(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
    try {
      (*self->body_)();
    } catch (...) {
      self->error_ = std::current_exception();
    }
    self->done_ = true;
    _longjmp(self->outside_, 1);
  }

  void* stack_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t entry_;
  jmp_buf inside_, outside_;
  std::exception_ptr error_;
  bool done_ = true, fresh_ = false;
};

}  // namespace emulation
