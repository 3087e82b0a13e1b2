// What all operations on the rows of a tensor have in common: the rows, how they are dealt out to threads, and sums
// over them (dweight, dbias).
#pragma once

#include <cstdio>
#include <memory>
#include <new>

#include "layout.h"
#include "parallel.h"
#include "simd.h"

namespace rmsnorm {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t GRAIN = 32768;
// Sums over rows: float32 over this many rows (of each head), which are then added up in float64; tasks of a fixed
// number of rows, so that neither the number of threads nor the number of rows shows in the result.
constexpr int64_t LEAF_ROWS = 32;
constexpr int64_t MAX_TASKS = 64;

struct Problem {
  int64_t rows, n, k;
  int64_t heads = 1;  // row r takes gain and bias of head r % heads
  double eps;
  Threads threads;
  bool fresh;  // the output has not been written before
  int64_t grain() const { return std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, n)); }
};

struct Free {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <class C>
using Buffer = std::unique_ptr<C[], Free>;
// Becomes a MemoryError.
struct NoMemory : std::bad_alloc {
  explicit NoMemory(size_t bytes) { std::snprintf(text, sizeof text, "rmsnorm found no memory for a working buffer of %zu bytes", bytes); }
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
struct Tensor {  // data may be null: absent
  T* data = nullptr;
  Rows rows;
  Cursor<T> from(int64_t row) const { return {data, rows, row}; }
};

// r % heads of row after row, without a division for each.
class Head {
 public:
  Head(const Problem& problem, int64_t row) : heads_(problem.heads), at_(heads_ == 1 ? 0 : row % heads_) {}
  int64_t operator*() const { return at_; }
  void operator++() {
    if (++at_ == heads_) at_ = 0;
  }

 private:
  int64_t heads_, at_;
};

// Sums over all rows. range(begin, end, leaf) adds what the rows [begin, end) contribute to `sums` float32 (or float64)
// arrays of heads·n elements that lie one after the other from leaf on; totals[s] receives the sth in float64.
template <class C, class Range>
void sum_over_rows(const Problem& problem, int sums, double* const* totals, Range range) {
  const int64_t columns = problem.heads * problem.n, leaf_rows = problem.heads * LEAF_ROWS;
  int64_t task_rows = std::max<int64_t>(2 * leaf_rows, (problem.rows + MAX_TASKS - 1) / MAX_TASKS);
  task_rows = (task_rows + leaf_rows - 1) / leaf_rows * leaf_rows;
  const int64_t tasks = std::max<int64_t>(1, (problem.rows + task_rows - 1) / task_rows);
  const auto leaves = allocate<C>(tasks * sums * columns);
  const auto partial = tasks > 1 ? allocate<double>(tasks * sums * columns) : nullptr;
  const auto sum_of = [&](int64_t task, int s) {
    return partial ? partial.get() + (task * sums + s) * columns : totals[s];
  };
  parallel_for(problem.threads, 0, tasks, std::max<int64_t>(1, problem.grain() / task_rows),
               [&](int64_t first, int64_t last) {
                 for (int64_t task = first; task < last; ++task) {
                   C* leaf = leaves.get() + task * sums * columns;
                   const int64_t end = std::min(problem.rows, (task + 1) * task_rows);
                   for (int s = 0; s < sums; ++s) std::fill_n(sum_of(task, s), columns, 0.0);
                   for (int64_t row = task * task_rows; row < end; row += leaf_rows) {
                     std::fill_n(leaf, sums * columns, C(0));
                     range(row, std::min(end, row + leaf_rows), leaf);
                     for (int s = 0; s < sums; ++s) {
                       double* to = sum_of(task, s);
                       for (int64_t i = 0; i < columns; ++i) to[i] += double(leaf[s * columns + i]);
                     }
                   }
                 }
               });
  if (!partial) return;
  // Each thread sums whole columns in the order of the tasks.
  for (int s = 0; s < sums; ++s)
    parallel_for(problem.threads, 0, columns, std::max<int64_t>(64, GRAIN / tasks), [&](int64_t begin, int64_t end) {
      std::fill(totals[s] + begin, totals[s] + end, 0.0);
      for (int64_t task = 0; task < tasks; ++task) {
        const double* from = sum_of(task, s);
        for (int64_t i = begin; i < end; ++i) totals[s][i] += from[i];
      }
    });
}

}  // namespace rmsnorm
