// What the operations on a tensor's rows share: the problem, working buffers, and sums over rows (dweight, dbias).
#pragma once

#include <cstdio>
#include <memory>
#include <new>

#include "layout.h"
#include "norm_spec.h"
#include "parallel.h"
#include "simd.h"

namespace rmsnorm {

// Built for `make asan`: what large tensors meet begins at small sizes, because its cases are small.
#ifdef RMSNORM_SANITIZED
constexpr bool SANITIZED = true;
#else
constexpr bool SANITIZED = false;
#endif

// Below this many elements a second thread costs more than it saves.
constexpr int64_t GRAIN = SANITIZED ? 256 : 32768;
// Sums over rows are taken in float32 over at most this many rows (of each head), and these sums are added in float64.
constexpr int64_t LEAF_ROWS = 32;
// At most MAX_TASKS tasks add up rows; where a second thread pays, four of at least FEWEST_ROWS rows, or as many as there
// are rows for. (Backward pass of 64 x 1024 and 64 x 4096, four tasks against one: 0.73 and 0.61 of the time on two
// threads, 1.07 and 1.00 on one, because each task has sums of its own. Tasks of eight rows never paid.)
constexpr int64_t MAX_TASKS = 64, FEWEST_ROWS = 16;

struct Problem {
  NormSpec spec;
  int64_t rows;
  int64_t heads = 1;  // row r has the gain and bias of head r % heads

  Threads threads() const { return spec.flags & OWN_THREADS ? Threads::own : Threads::torch; }
  bool fresh() const { return spec.flags & FRESH; }
  // Rows of one piece of work.
  int64_t grain() const { return std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, spec.n)); }
};

struct Free {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <class C>
using Buffer = std::unique_ptr<C[], Free>;
// Python sees a MemoryError.
struct NoMemory : std::bad_alloc {
  explicit NoMemory(size_t bytes) {
    std::snprintf(text, sizeof text, "rmsnorm found no memory for a working buffer of %zu bytes", bytes);
  }
  const char* what() const noexcept override { return text; }
  char text[80];
};
template <class C>
Buffer<C> allocate(int64_t count) {
  const size_t bytes = size_t(std::max<int64_t>(1, count)) * sizeof(C);
  void* const memory = ::operator new[](bytes, std::align_val_t(64), std::nothrow);
  if (!memory) throw NoMemory(bytes);
  return Buffer<C>(static_cast<C*>(memory));
}

template <class T>
struct Tensor {  // null: absent
  T* data = nullptr;
  Rows rows;
  Cursor<T> from(int64_t row) const { return {data, rows, row}; }
};

// Counts r % heads from row to row without divisions.
class Head {
 public:
  Head(const Problem& problem, int64_t row) : heads_(problem.heads), head_(heads_ == 1 ? 0 : row % heads_) {}
  int64_t operator*() const { return head_; }
  void operator++() {
    if (++head_ == heads_) head_ = 0;
  }

 private:
  int64_t heads_, head_;
};

// The rows (of each head) that a task adds up. They depend on the tensor's size alone, so the number of threads does not
// change the result.
inline int64_t rows_per_task(int64_t rows, int64_t columns) {
  const auto share = [=](int64_t tasks) { return std::max<int64_t>(1, (rows + tasks - 1) / tasks); };
  const int64_t tasks = rows * columns < 2 * GRAIN ? 1 : std::clamp<int64_t>(rows / FEWEST_ROWS, 1, 4);
  const int64_t chosen = std::max(std::min(share(tasks), 2 * LEAF_ROWS), share(MAX_TASKS));
  return chosen <= LEAF_ROWS ? chosen : (chosen + LEAF_ROWS - 1) / LEAF_ROWS * LEAF_ROWS;
}

// Computes `sums` sums over all rows, of heads·n elements each, into totals[0] to totals[sums - 1].
// add_rows_to(begin, end, leaf) must add what the rows [begin, end) contribute; the sums lie one after the other in
// leaf.
template <class C, class AddRows>
void sum_over_rows(const Problem& problem, int sums, double* const* totals, AddRows add_rows_to) {
  const int64_t columns = problem.heads * problem.spec.n, leaf_rows = problem.heads * LEAF_ROWS;
  const int64_t task_rows = problem.heads * rows_per_task((problem.rows + problem.heads - 1) / problem.heads, columns);
  const int64_t tasks = std::max<int64_t>(1, (problem.rows + task_rows - 1) / task_rows);
  const auto leaves = allocate<C>(tasks * sums * columns);
  const auto partial = tasks > 1 ? allocate<double>(tasks * sums * columns) : nullptr;
  const auto sum_of = [&](int64_t task, int s) {
    return partial ? partial.get() + (task * sums + s) * columns : totals[s];
  };
  parallel_for(problem.threads(), 0, tasks, std::max<int64_t>(1, problem.grain() / task_rows),
               [&](int64_t first, int64_t last) {
                 for (int64_t task = first; task < last; ++task) {
                   C* leaf = leaves.get() + task * sums * columns;
                   const int64_t end = std::min(problem.rows, (task + 1) * task_rows);
                   for (int s = 0; s < sums; ++s) std::fill_n(sum_of(task, s), columns, 0.0);
                   for (int64_t row = task * task_rows; row < end; row += leaf_rows) {
                     std::fill_n(leaf, sums * columns, C(0));
                     add_rows_to(row, std::min(end, row + leaf_rows), leaf);
                     for (int s = 0; s < sums; ++s) {
                       double* to = sum_of(task, s);
                       for (int64_t i = 0; i < columns; ++i) to[i] += double(leaf[s * columns + i]);
                     }
                   }
                 }
               });
  if (!partial) return;
  // Each thread sums whole columns, in the order of the tasks.
  for (int s = 0; s < sums; ++s)
    parallel_for(problem.threads(), 0, columns, std::max<int64_t>(64, GRAIN / tasks), [&](int64_t begin, int64_t end) {
      std::fill(totals[s] + begin, totals[s] + end, 0.0);
      for (int64_t task = 0; task < tasks; ++task) {
        const double* from = sum_of(task, s);
        for (int64_t i = begin; i < end; ++i) totals[s][i] += from[i];
      }
    });
}

}  // namespace rmsnorm
