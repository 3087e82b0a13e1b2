// The norms of whole tensors: which variant of the passes, rows in batches or groups, on several threads.
#pragma once

#include "batch.h"
#include "cache_size.h"
#include "row_passes.h"

namespace rmsnorm {

// Results are streamed past the caches if a call's tensors exceed the last cache. An ordinary store first reads the line
// that it overwrites (32 MiB: 3.1 ms, streamed 2.1 ms). Fresh results are in the caches already, because the system has
// just cleared them (5.1 ms, streamed 7.0 ms). At most 64 MiB: a larger cache is shared by many cores.
inline int64_t stream_bytes() {
  static const int64_t bytes = SANITIZED ? 2048 : std::min<int64_t>(last_cache_bytes(), 64 << 20);
  return bytes;
}
// Shorter rows are not streamed: the stores then lie too close between loads (bfloat16, n = 64, backward: 1.08 of the
// time). Of rows that begin anywhere, the first and last line are written the ordinary way (float32, forward and
// backward, one thread: n = 513 1.03 and 1.22 of the time, n = 1023 0.88 and 0.99).
constexpr int64_t SHORTEST_STREAMED_ROW = SANITIZED ? 0 : 256;
// Longer than any row of constant length: their loops stream every vector, so these rows must be aligned.
constexpr int64_t SHORTEST_UNALIGNED_ROW = SANITIZED ? MOST_VECTORS * VECTOR_BYTES + 1 : 3072;
static_assert(SHORTEST_UNALIGNED_ROW > MOST_VECTORS * VECTOR_BYTES);
// Short rows are read, then written, this many bytes at a time: streaming stores between loads cost 250 ns a row (n =
// 64).
constexpr int64_t BATCH_BYTES = 8192;
template <class T>
int64_t rows_per_batch(int64_t n) {
  return std::clamp<int64_t>(BATCH_BYTES / (n * int64_t(sizeof(T))), 1, MAX_BATCH);
}
// Rows of at most this size are short to the backward pass: a group of them and of their gradients fits the first-level
// cache.
constexpr int64_t SHORT_ROW_BYTES = 1024;

// Whether a result of operands in T and Y is streamed, by a call that reads and writes `tensors` of its size. Pairs are
// stored as whole blocks, which must be aligned.
template <class T, class Y>
bool streamed(const Problem& problem, int tensors, const Tensor<Y>& out) {
  if (!CAN_STREAM<Y>) return false;
  constexpr bool pairs = PAIRED<T> && PAIRED<Y>;
  constexpr int64_t vector = LANES<compute_t<T>> * sizeof(Y) * (pairs ? 2 : 1);
  const int64_t row_bytes = problem.spec.n * int64_t(sizeof(Y));
  if (problem.fresh() || tensors * problem.rows * row_bytes < stream_bytes()) return false;
  const auto address = reinterpret_cast<uintptr_t>(out.data);
  if (address % vector == 0 && out.rows.aligned(sizeof(Y), vector)) return row_bytes >= SHORTEST_STREAMED_ROW;
  return !pairs && address % sizeof(Y) == 0 && row_bytes >= SHORTEST_UNALIGNED_ROW;
}

template <class T, class Y>
struct ForwardTensors {
  Tensor<const T> x;
  Tensor<Y> y;
  // add_rms_norm: x + residual is rounded to T and written to sum, and sum is normalised.
  Tensor<const T> residual;
  Tensor<T> sum;
  Affine<compute_t<T>> affine;
};

template <class T>
RMSNORM_NOINLINE void add_rows(const T* a, const T* b, T* sum, int64_t n) {
  using C = compute_t<T>;
  for_each_place<C, PAIRED<T>>(0, n, [=](auto... at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v[] = {at.load(a) + at.load(b)...};
    store_at(sum, v, at...);
  });
}

template <class Norm, unsigned V, class Length, class T, class Y>
void normalize_rows(const Problem& problem, const ForwardTensors<T, Y>& tensors, Length n, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t batch = rows_per_batch<T>(n);
  auto x = tensors.x.from(begin);
  auto y = tensors.y.from(begin);
  auto residual = tensors.residual.from(begin);
  auto sum = tensors.sum.from(begin);
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
    if (problem.spec.k == n)
      Norm::batch_statistics(input, rows, n, problem.spec, statistics);
    else
      Norm::batch_statistics(input, rows, problem.spec.k, problem.spec, statistics);
    for (int64_t i = 0; i < rows; ++i, ++y, ++head) {
      const auto& s = statistics[i];
      const auto affine = tensors.affine.from(*head * n);
      if (!(V & GENERIC) && __builtin_expect(s.scale == 1, 1))
        normalize_row<Norm, V>(ScaledRow<T>{input[i], 1}, *y, n, s, affine);
      else
        normalize_row_generic<Norm>(ScaledRow<T>{input[i], s.scale}, *y, n, s, affine);
    }
  }
  if (V & STREAM) stream_fence();
}

template <class Norm, unsigned V, class T, class Y>
void normalize_all_rows(const Problem& problem, const ForwardTensors<T, Y>& tensors) {
  parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    const auto of_length = [&](auto n) { normalize_rows<Norm, V>(problem, tensors, n, begin, end); };
    if constexpr (V & GENERIC)
      of_length(problem.spec.n);
    else
      with_length<compute_t<T>>(problem.spec.n, of_length);
  });
}

template <class Norm, class T, class Y>
void normalize_tensor(const Problem& problem, const ForwardTensors<T, Y>& tensors) {
  // In place, the lines are in the caches already.
  const bool in_place = static_cast<const void*>(tensors.x.data) == tensors.y.data;
  const bool stream = !in_place && streamed<T, Y>(problem, tensors.residual.data ? 4 : 2, tensors.y);
  const auto& affine = tensors.affine;
  const auto run = [&](auto variant) {
    constexpr unsigned V = decltype(variant)::value;
    stream ? normalize_all_rows<Norm, V | STREAM>(problem, tensors) : normalize_all_rows<Norm, V>(problem, tensors);
  };
  if constexpr (std::is_same_v<T, Y>) {  // Y differs from T only with round_first
    if (!affine.round_first && affine.gain && affine.bias) return run(std::integral_constant<unsigned, GAIN | BIAS>{});
    if (!affine.round_first && affine.gain && !affine.bias) return run(std::integral_constant<unsigned, GAIN>{});
    if (!affine.round_first && !affine.gain && !affine.bias) return run(std::integral_constant<unsigned, PLAIN>{});
  }
  normalize_all_rows<Norm, GENERIC>(problem, tensors);
}

template <class T, class D>
struct BackwardTensors {
  Tensor<const D> dy;
  Tensor<const T> x;
  Tensor<T> dx;
  Tensor<const T> plus;
  Affine<compute_t<T>> affine;
  double *dweight, *dbias;  // heads·n sums each; null: not wanted
};

// What training needs of a norm with a gain, and of LayerNorm with a bias too.
template <class Norm>
constexpr unsigned TRAINING = GAIN | DX | DWEIGHT | (Norm::centred ? DBIAS : PLAIN);

// The rows [begin, end). dweight and dbias: heads·n sums each, to which these rows are added; null: not wanted.
template <class Norm, unsigned V, class Length, class T, class D>
void backward_rows(const Problem& problem, const BackwardTensors<T, D>& tensors, Length n, int64_t begin, int64_t end,
                   compute_t<T>* dweight, compute_t<T>* dbias) {
  using C = compute_t<T>;
  auto x = tensors.x.from(begin);
  auto dy = tensors.dy.from(begin);
  auto dx = tensors.dx.from(begin);
  auto plus = tensors.plus.from(begin);
  const NormSpec& spec = problem.spec;
  Head head(problem, begin);
  const bool one_sweep = !Norm::centred && !(V & GENERIC) && spec.k == n;
  const int64_t group_size = one_sweep && n * int64_t(sizeof(T)) <= SHORT_ROW_BYTES ? GROUP : 1;
  for (int64_t row = begin; row < end; row += group_size) {
    RowGroup<T, D> group;
    group.count = std::min(group_size, end - row);
    for (int64_t i = 0; i < group.count; ++i, ++x, ++dy, ++head) {
      group.x[i] = *x, group.dy[i] = *dy, group.parameter_offset[i] = *head * n;
      group.gain[i] = tensors.affine.from(group.parameter_offset[i]).gain;
    }
    group.x[group.count] = *x, group.dy[group.count] = *dy;  // perhaps after the last row: a prefetch does no harm
    if (one_sweep) statistics_and_projections<bool(V & GAIN)>(group, spec);
    if constexpr (IS_CONSTANT<Length>) {
      if (problem.heads == 1 && group.all_usual()) {
        T* to[GROUP];
        for (int64_t i = 0; i < group.count; ++i, ++dx) to[i] = *dx;
        backward_group<V>(group, n, tensors.affine.gain, to, dweight);
        continue;
      }
    }
    for (int64_t i = 0; i < group.count; ++i, ++dx, ++plus) {
      const int64_t offset = group.parameter_offset[i];
      const auto affine = tensors.affine.from(offset);
      const Gradients<T, C> out{*dx, *plus, dweight ? dweight + offset : nullptr, dbias ? dbias + offset : nullptr};
      const bool usual = group.usual[i];
      const Statistics<C> s = usual ? group.statistics[i] : Norm::statistics(group.x[i], spec);
      BackwardInputs<T, D> in{{group.x[i], 1}, group.dy[i], group.x[i + 1], group.dy[i + 1]};
      if ((V & GENERIC) || __builtin_expect(s.scale != 1, 0)) {
        in.x.scale = s.scale;
        backward_row_generic<Norm>(in, spec, s, affine, out);
        continue;
      }
      const Projection<C> projection = usual ? group.projection[i] : project<Norm, V>(in, spec, s, affine.gain);
      backward_row<Norm, V>(in, spec, s, projection, affine, out);
    }
  }
  if (V & STREAM) stream_fence();
}

template <class Norm, unsigned V, class T, class D>
void backward_all_rows(const Problem& problem, const BackwardTensors<T, D>& tensors) {
  using C = compute_t<T>;
  const int sums = (tensors.dweight != nullptr) + (tensors.dbias != nullptr);
  if (!sums) {
    parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
      backward_rows<Norm, V>(problem, tensors, problem.spec.n, begin, end, nullptr, nullptr);
    });
    return;
  }
  double* const totals[] = {tensors.dweight ? tensors.dweight : tensors.dbias, tensors.dbias};
  const int64_t dbias_offset = (sums - 1) * problem.heads * problem.spec.n;
  sum_over_rows<C>(problem, sums, totals, [&](int64_t begin, int64_t end, C* leaf) {
    const auto of_length = [&](auto n) {
      backward_rows<Norm, V>(problem, tensors, n, begin, end, tensors.dweight ? leaf : nullptr,
                             tensors.dbias ? leaf + dbias_offset : nullptr);
    };
    if constexpr ((V & ~STREAM) == TRAINING<RMS>)
      with_length<C>(problem.spec.n, of_length);
    else
      of_length(problem.spec.n);
  });
}

template <class Norm, class T, class D>
void backward_tensor(const Problem& problem, const BackwardTensors<T, D>& tensors) {
  const auto& affine = tensors.affine;
  const bool plain = !affine.round_first && !tensors.plus.data && tensors.dx.data;
  const auto is = [&](bool gain, bool dweight, bool dbias) {
    return plain && gain == bool(affine.gain) && dweight == bool(tensors.dweight) && dbias == bool(tensors.dbias);
  };
  if constexpr (std::is_same_v<T, D>) {
    const auto run = [&](auto variant) {
      constexpr unsigned V = decltype(variant)::value;
      streamed<T, T>(problem, 3, tensors.dx) ? backward_all_rows<Norm, V | STREAM>(problem, tensors)
                                             : backward_all_rows<Norm, V>(problem, tensors);
    };
    if (is(true, true, Norm::centred)) return run(std::integral_constant<unsigned, TRAINING<Norm>>{});
    if (is(false, false, false)) return run(std::integral_constant<unsigned, DX>{});
  }
  backward_all_rows<Norm, GENERIC>(problem, tensors);
}

}  // namespace rmsnorm
