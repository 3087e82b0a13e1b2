// Threads. Kernels call parallel_for, which uses torch's pool (a C function of libtorch_cpu, set by address), or a
// small pool of our own for NumPy and older torch. No OpenMP runtime is linked.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace rmsnorm {

// Must not throw: it is called by threads that are not ours, and by threads where nothing catches. parallel_for makes
// it so.
using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
// libtorch's torch_parallel_for; 0 means success.
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction f, void* context);

// Set when torch is imported, which may be while other threads normalise.
inline std::atomic<TorchParallelFor> torch_parallel_for{nullptr};

inline int default_threads() {
  // The processors that this process may use, which may be fewer than the machine has.
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// Workers start on first use and sleep between jobs. One job runs at a time: a caller that finds the pool busy, or that
// is a worker itself, does its job alone. After fork() the child starts a pool of its own.
class Pool {
 public:
  static Pool& instance() {
    static std::atomic<Pool*> pool{nullptr};
    static std::once_flag registered;
    std::call_once(registered, [] {
      // The child has the pool's memory but not its threads. The few hundred bytes are not freed.
      pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    });
    Pool* current = pool.load();
    if (!current) {
      Pool* fresh = new Pool;  // never destroyed: workers may outlive static destructors
      if (pool.compare_exchange_strong(current, fresh))
        current = fresh;
      else
        delete fresh;
    }
    return *current;
  }

  int threads() {
    std::lock_guard<std::mutex> guard(state_);
    return threads_;
  }

  void set_threads(int threads) {  // surplus workers stay, and take no pieces
    std::lock_guard<std::mutex> job(job_), guard(state_);
    threads_ = std::max(1, threads);
  }

  void run(int64_t begin, int64_t end, int64_t grain, RangeFunction f, void* context) {
    std::unique_lock<std::mutex> job(job_, std::try_to_lock);
    if (!job.owns_lock() || threads_ == 1 || end - begin <= grain) return f(begin, end, context);
    {
      std::lock_guard<std::mutex> guard(state_);
      // Four pieces for each thread, taken dynamically, so that a thread that is slowed down does not hold up the
      // others.
      piece_ = std::max(grain, (end - begin + 4 * threads_ - 1) / (4 * threads_));
      end_ = end, f_ = f, context_ = context;
      next_.store(begin);
      if (!start_workers()) return f(begin, end, context);
      active_ = int(workers_);
      ++generation_;
    }
    wake_.notify_all();
    take_pieces();
    std::unique_lock<std::mutex> guard(state_);
    wait(done_, guard, [this] { return active_ == 0; });
  }

 private:
  // Not condition_variable::wait: its symbol is GCC 12's, newer than manylinux_2_34. wait_for is a template.
  template <class Predicate>
  static void wait(std::condition_variable& condition, std::unique_lock<std::mutex>& guard, Predicate predicate) {
    while (!condition.wait_for(guard, std::chrono::hours(1), predicate)) {
    }
  }

  bool start_workers() {
    while (workers_ + 1 < threads_) {
      try {
        std::thread([this, index = workers_, seen = generation_] { work(index, seen); }).detach();
      } catch (const std::system_error&) {  // no more threads are available: use those that there are
        return workers_ > 0;
      }
      ++workers_;
    }
    return true;
  }

  void work(int index, uint64_t seen) {
    for (;;) {
      bool wanted;
      {
        std::unique_lock<std::mutex> guard(state_);
        wait(wake_, guard, [&] { return generation_ != seen; });
        seen = generation_;
        wanted = index + 1 < threads_;
      }
      if (wanted) take_pieces();
      std::lock_guard<std::mutex> guard(state_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  void take_pieces() {
    for (;;) {
      const int64_t begin = next_.fetch_add(piece_);
      if (begin >= end_) return;
      f_(begin, std::min(end_, begin + piece_), context_);
    }
  }

  std::mutex job_, state_;
  std::condition_variable wake_, done_;
  int threads_ = configured_threads();
  int workers_ = 0, active_ = 0;
  uint64_t generation_ = 0;
  std::atomic<int64_t> next_{0};
  int64_t end_ = 0, piece_ = 1;
  RangeFunction f_ = nullptr;
  void* context_ = nullptr;

  static int configured_threads() {
    if (const char* text = std::getenv("RMSNORM_NUM_THREADS")) {  // Python has checked it
      const int threads = std::atoi(text);
      if (threads >= 1) return threads;
    }
    return default_threads();
  }
};

enum class Threads : int { own = 0, torch = 1 };

// Calls f(begin, end) for pieces of a range on several threads. If pieces throw, the first exception is rethrown to the
// caller, and pieces that have not begun are skipped.
template <class F>
void parallel_for(Threads threads, int64_t begin, int64_t end, int64_t grain, F f) {
  if (end - begin <= grain) return f(begin, end);
  struct Job {
    F& f;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
  } job{f};
  const RangeFunction piece = [](int64_t b, int64_t e, void* context) noexcept {
    Job& job = *static_cast<Job*>(context);
    if (job.failed.load(std::memory_order_relaxed)) return;
    try {
      job.f(b, e);
    } catch (...) {
      if (!job.failed.exchange(true)) job.error = std::current_exception();
    }
  };
  const TorchParallelFor torch = threads == Threads::torch ? torch_parallel_for.load() : nullptr;
  if (torch) {
    if (torch(begin, end, grain, piece, &job) != 0 && !job.error)
      throw std::runtime_error("torch's threads failed, and the result was not computed; torch has said why on stderr");
  } else {
    Pool::instance().run(begin, end, grain, piece, &job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace rmsnorm
