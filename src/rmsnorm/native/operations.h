// Whole tensors: rows in batches, statistics, passes, forward and backward.
#pragma once

#include "batch.h"
#include "passes.h"

namespace rmsnorm {

// From this size of a warm output on, stores go past the caches: ordinary ones first read the lines they overwrite
// (32 MiB: 2.1 ms instead of 3.1). Smaller outputs are better left in the caches, and fresh ones are there already,
// since the system has just cleared them (7.0 ms streamed, 5.1 not).
constexpr int64_t STREAM_BYTES = 32 << 20;
// Short rows are read, then written, so many at a time: streaming stores between loads cost 250 ns a row (n = 64).
constexpr int64_t BATCH_BYTES = 8192;
// Rows of so many bytes are short to the backward pass: a group of them and their gradients fit the first cache level.
constexpr int64_t SHORT_BYTES = 1024;

template <class T, class Y>
struct Forward {
  Tensor<const T> x;
  Tensor<Y> y;
  // add_rms_norm: x + residual, rounded to T, is written to sum, and sum is what is normalised.
  Tensor<const T> residual;
  Tensor<T> sum;
  Affine<compute_t<T>> affine;
};

template <class T>
RMSNORM_NOINLINE void add_rows(const T* a, const T* b, T* sum, int64_t n) {
  using C = compute_t<T>;
  sweep_at<C, PAIRED<T>>(0, n, [=](auto... at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v[] = {at.get(a) + at.get(b)...};
    put_at(sum, v, at...);
  });
}

template <class Norm, unsigned V, bool STREAM, class T, class Y>
void forward_rows(const Problem& problem, const Forward<T, Y>& call) {
  using C = compute_t<T>;
  const int64_t n = problem.n;
  const int64_t batch = std::clamp<int64_t>(BATCH_BYTES / (n * int64_t(sizeof(T))), 1, MAX_BATCH);
  parallel_for(problem.threads, 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    auto x = call.x.from(begin);
    auto y = call.y.from(begin);
    auto residual = call.residual.from(begin);
    auto sum = call.sum.from(begin);
    Head head(problem, begin);
    const T* input[MAX_BATCH];
    Statistics<C> statistics[MAX_BATCH];
    for (int64_t row = begin; row < end; row += batch) {
      const int64_t rows = std::min(batch, end - row);
      for (int64_t i = 0; i < rows; ++i, ++x, ++residual, ++sum) {
        input[i] = *x;
        if (*residual) {
          add_rows(*x, *residual, *sum, n);
          input[i] = *sum;
        }
      }
      Norm::of_batch(input, rows, n, problem.k, problem.eps, statistics);
      for (int64_t i = 0; i < rows; ++i, ++y, ++head) {
        const auto& s = statistics[i];
        const auto affine = call.affine.from(*head * n);
        if (!(V & GENERIC) && __builtin_expect(s.scale == 1, 1))
          forward_pass<Norm, V, STREAM>(Row<T>{input[i], 1}, *y, n, s, affine);
        else
          generic_forward_pass<Norm>(Row<T>{input[i], s.scale}, *y, n, s, affine);
      }
    }
    if (STREAM) stream_fence();
  });
}

template <class Norm, class T, class Y>
void forward(const Problem& problem, const Forward<T, Y>& call) {
  constexpr int64_t bytes = LANES<compute_t<T>> * sizeof(Y) * (PAIRED<T> && PAIRED<Y> ? 2 : 1);
  const bool streamed = !problem.fresh && problem.rows * problem.n * int64_t(sizeof(Y)) >= STREAM_BYTES &&
                        reinterpret_cast<uintptr_t>(call.y.data) % bytes == 0 && call.y.rows.aligned(sizeof(Y), bytes);
  const auto& affine = call.affine;
  const auto run = [&](auto variant) {
    constexpr unsigned V = decltype(variant)::value;
    streamed ? forward_rows<Norm, V, true>(problem, call) : forward_rows<Norm, V, false>(problem, call);
  };
  if constexpr (std::is_same_v<T, Y>) {  // another output dtype comes with round_first
    if (!affine.round_first && affine.g && affine.b) return run(std::integral_constant<unsigned, GAIN | BIAS>{});
    if (!affine.round_first && affine.g && !affine.b) return run(std::integral_constant<unsigned, GAIN>{});
    if (!affine.round_first && !affine.g && !affine.b) return run(std::integral_constant<unsigned, PLAIN>{});
  }
  forward_rows<Norm, GENERIC, false>(problem, call);
}

template <class T, class D>
struct Backward {
  Tensor<const D> dy;
  Tensor<const T> x;
  Tensor<T> dx;
  Tensor<const T> plus;
  Affine<compute_t<T>> affine;
  double *dweight, *dbias;  // heads·n sums each, or null
};

template <class Norm, unsigned V, class T, class D>
void backward_range(const Problem& problem, const Backward<T, D>& call, int64_t begin, int64_t end,
                    compute_t<T>* dweight, compute_t<T>* dbias) {
  using C = compute_t<T>;
  auto x = call.x.from(begin);
  auto dy = call.dy.from(begin);
  auto dx = call.dx.from(begin);
  auto plus = call.plus.from(begin);
  const int64_t n = problem.n, k = problem.k;
  Head head(problem, begin);
  const bool joint = !Norm::centred && !(V & GENERIC) && k == n;
  const int64_t group = joint && n * int64_t(sizeof(T)) <= SHORT_BYTES ? GROUP : 1;
  for (int64_t row = begin; row < end; row += group) {
    const int64_t rows = std::min(group, end - row);
    const T* x_row[GROUP + 1];
    const D* dy_row[GROUP + 1];
    const C* gain[GROUP];
    int64_t own[GROUP];
    for (int64_t i = 0; i < rows; ++i, ++x, ++dy, ++head) {
      x_row[i] = *x, dy_row[i] = *dy, own[i] = *head * n;
      gain[i] = call.affine.from(own[i]).g;
    }
    x_row[rows] = *x, dy_row[rows] = *dy;  // beyond the last one, where prefetching does no harm
    Statistics<C> s[GROUP];
    Projection<C> projection[GROUP];
    bool usual[GROUP] = {};
    if (joint)
      statistics_and_projections<bool(V & GAIN)>(x_row, dy_row, gain, rows, n, problem.eps, s, projection, usual);
    for (int64_t i = 0; i < rows; ++i, ++dx, ++plus) {
      const auto affine = call.affine.from(own[i]);
      const Gradients<T, C> out{*dx, *plus, dweight ? dweight + own[i] : nullptr, dbias ? dbias + own[i] : nullptr};
      if (!usual[i]) s[i] = Norm::statistics(x_row[i], n, k, problem.eps);
      const Row<T> scaled{x_row[i], s[i].scale};
      if ((V & GENERIC) || __builtin_expect(s[i].scale != 1, 0)) {
        generic_backward_pass<Norm>(scaled, dy_row[i], n, k, s[i], affine, out, x_row[i + 1], dy_row[i + 1]);
        continue;
      }
      if (!usual[i]) projection[i] = project<Norm, V>(Row<T>{x_row[i], 1}, dy_row[i], n, k, s[i], affine.g);
      backward_pass<Norm, V>(Row<T>{x_row[i], 1}, dy_row[i], n, k, s[i], projection[i], affine, out, x_row[i + 1],
                             dy_row[i + 1]);
    }
  }
}

template <class Norm, unsigned V, class T, class D>
void backward_rows(const Problem& problem, const Backward<T, D>& call) {
  using C = compute_t<T>;
  const int sums = (call.dweight != nullptr) + (call.dbias != nullptr);
  if (!sums) {  // nothing is summed over rows: they are dealt out as in the forward pass
    parallel_for(problem.threads, 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
      backward_range<Norm, V>(problem, call, begin, end, nullptr, nullptr);
    });
    return;
  }
  double* const totals[] = {call.dweight ? call.dweight : call.dbias, call.dbias};
  const int64_t behind = (sums - 1) * problem.heads * problem.n;
  sum_over_rows<C>(problem, sums, totals, [&](int64_t begin, int64_t end, C* leaf) {
    backward_range<Norm, V>(problem, call, begin, end, call.dweight ? leaf : nullptr,
                            call.dbias ? leaf + behind : nullptr);
  });
}

template <class Norm, class T, class D>
void backward(const Problem& problem, const Backward<T, D>& call) {
  const auto& affine = call.affine;
  const bool plain = !affine.round_first && !call.plus.data && call.dx.data;
  const auto is = [&](bool g, bool dweight, bool dbias) {
    return plain && g == bool(affine.g) && dweight == bool(call.dweight) && dbias == bool(call.dbias);
  };
  if constexpr (std::is_same_v<T, D>) {
    constexpr unsigned TRAINING = GAIN | DX | DWEIGHT | (Norm::centred ? DBIAS : PLAIN);
    if (is(true, true, Norm::centred)) return backward_rows<Norm, TRAINING>(problem, call);
    if (is(false, false, false)) return backward_rows<Norm, DX>(problem, call);
  }
  backward_rows<Norm, GENERIC>(problem, call);
}

}  // namespace rmsnorm
