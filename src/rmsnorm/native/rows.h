// What is done to one row: the reductions, and the element-wise passes that follow them.
//
// A row is swept twice: once for its statistic, which brings it into the first cache levels, and once to write.
// The order of every sum depends on the row's length alone, never on its address or its neighbours.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "simd.h"

namespace rmsnorm {

// float32 partial sums span at most this many elements (16 a lane with AVX-512) and are then added up in float64,
// so that the error of a statistic does not grow with the length of the row.
constexpr int64_t BLOCK = 2048;
constexpr int ACCUMULATORS = 8;  // a fused multiply-add takes 4 cycles and two start in each: 8 keep both units busy

// Calls body(i, sums, count) for whole vectors (count == LANES) and one tail, sums being M vectors to add to;
// returns the M totals over all lanes.
template <class C, int M = 1, class Body>
RMSNORM_INLINE std::array<double, M> reduce(int64_t n, Body body) {
  constexpr int N = LANES<C>, A = std::max(2, ACCUMULATORS / M);
  std::array<double, M> total = {};
  if (n < A * N) {  // a short row has no work for so many: two keep their sum short
    Vec<C> sum[2][M] = {};
    int64_t i = 0;
    for (; i + 2 * N <= n; i += 2 * N) body(i, sum[0], N), body(i + N, sum[1], N);
    if (i + N <= n) body(i, sum[0], N), i += N;
    if (i < n) body(i, sum[1], int(n - i));
    for (int m = 0; m < M; ++m) total[m] = double(lanes_sum<C>(sum[0][m] + sum[1][m]));
    return total;
  }
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    Vec<C> sum[A][M] = {};
    int64_t i = begin;
    for (; i + A * N <= end; i += A * N)
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) body(i + a * N, sum[a], N);
    for (; i + N <= end; i += N) body(i, sum[0], N);
    if (i < end) body(i, sum[1], int(end - i));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
      for (int half = A / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int a = 0; a < half; ++a) sum[a][m] += sum[a + half][m];
      total[m] += double(lanes_sum<C>(sum[0][m]));
    }
  }
  return total;
}

// Calls body(i, count) for whole vectors and one tail of the elements [begin, end).
template <class C, class Body>
RMSNORM_INLINE void sweep(int64_t begin, int64_t end, Body body) {
  constexpr int N = LANES<C>;
  int64_t i = begin;
#pragma GCC unroll 4
  for (; i + N <= end; i += N) body(i, N);
  if (i < end) body(i, int(end - i));
}

template <class T>
RMSNORM_INLINE Vec<compute_t<T>> get(const T* p, int count) {
  return count == LANES<compute_t<T>> ? load(p) : load_first(p, count);
}
template <class T>
RMSNORM_INLINE void put(T* p, Vec<compute_t<T>> v, int count) {
  if (count == LANES<compute_t<T>>)
    store(p, v);
  else
    store_first(p, v, count);
}

// The input row, multiplied by a power of two: 1 but for the rare row whose sum of squares leaves the normal range.
template <class T>
struct Row {
  using C = compute_t<T>;
  const T* data;
  C scale;

  template <bool SCALED>
  RMSNORM_INLINE Vec<C> get(int64_t i, int count) const {
    const Vec<C> v = rmsnorm::get(data + i, count);
    return SCALED ? v * scale : v;
  }
};

template <bool SCALED, class T>
RMSNORM_INLINE double sum_of_squares(Row<T> x, int64_t k) {
  using C = compute_t<T>;
  return reduce<C>(k, [=](int64_t i, Vec<C>* sum, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = x.template get<SCALED>(i, count);
    sum[0] += v * v;
  })[0];
}

template <class T>
compute_t<T> largest_magnitude(const T* x, int64_t k) {  // NaN if there is one
  compute_t<T> largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto v = std::abs(widen(x[i]));
    if (!(v <= largest)) largest = v;
    if (v != v) break;
  }
  return largest;
}

// The limits within which a sum of k squares of type C has lost nothing to overflow or underflow.
template <class C>
struct range {
  static constexpr double smallest_square = sizeof(C) == 4 ? 0x1p-100 : 0x1p-960;
  // With an eps of at least this, what smaller squares lose is far below eps's last place.
  static constexpr double enough_eps = sizeof(C) == 4 ? 0x1p-70 : 0x1p-900;
};

// A power of two that brings the larger of the row's largest magnitude and sqrt(eps) to about 1.
template <class T>
compute_t<T> rescaling(const T* x, int64_t k, double eps) {
  using C = compute_t<T>;
  const double largest = std::max(double(largest_magnitude(x, k)), std::sqrt(eps));
  if (!(largest > 0) || !std::isfinite(largest)) return 1;  // NaN and infinity take their course
  constexpr int most = std::numeric_limits<C>::max_exponent - 2;
  return C(std::ldexp(1.0, std::clamp(-std::ilogb(largest), -most, most)));
}

// The statistics that a row is normalised with: x̂ = (x·scale − mean)·rstd + shift.
template <class C>
struct Statistics {
  C scale = 1, mean = 0, rstd = 0, shift = 0;
};

inline double reciprocal_root(double mean_square, double eps, double scale) {
  // In units of the scaled row eps is eps·scale², which need not be representable: hypot takes the root first.
  return scale == 1 ? 1 / std::sqrt(mean_square + eps) : 1 / std::hypot(std::sqrt(mean_square), std::sqrt(eps) * scale);
}

template <class C>
RMSNORM_INLINE bool left_the_range(double square_sum, int64_t k, double eps) {
  return !std::isfinite(square_sum) ||
         (eps < range<C>::enough_eps && square_sum < range<C>::smallest_square * double(k));
}

struct RMS {
  // rstd = 1 / sqrt(1/k Σ_{i<k} x_i² + eps)
  template <class T>
  static RMSNORM_NOINLINE Statistics<compute_t<T>> statistics(const T* x, int64_t, int64_t k, double eps) {
    using C = compute_t<T>;
    Statistics<C> s;
    double squares = sum_of_squares<false>(Row<T>{x, 1}, k);
    if (__builtin_expect(left_the_range<C>(squares, k, eps), 0)) {
      s.scale = rescaling(x, k, eps);
      squares = sum_of_squares<true>(Row<T>{x, s.scale}, k);
    }
    s.rstd = C(reciprocal_root(squares / double(k), eps, s.scale));
    return s;
  }
  template <class C>
  static RMSNORM_INLINE Vec<C> normalize(Vec<C> x, const Statistics<C>& s) {
    return x * s.rstd;
  }
  static constexpr bool centred = false;
};

struct Layer {
  // Corrected two-pass: mean first, then Σ(x − mean) and Σ(x − mean)², the former of which mends the mean's rounding.
  // Returns n times the variance.
  template <bool SCALED, class T>
  static RMSNORM_INLINE double moments(Row<T> x, int64_t n, Statistics<compute_t<T>>& s, double& correction) {
    using C = compute_t<T>;
    const auto [sum] = reduce<C>(n, [=](int64_t i, Vec<C>* total, int count) RMSNORM_INLINE_LAMBDA {
      total[0] += x.template get<SCALED>(i, count);
    });
    const C mean = s.mean = C(sum / double(n));
    const auto [first, second] = reduce<C, 2>(n, [=](int64_t i, Vec<C>* total, int count) RMSNORM_INLINE_LAMBDA {
      const Vec<C> d = keep_first<C>(x.template get<SCALED>(i, count) - mean, count);
      total[0] += d;
      total[1] += d * d;
    });
    correction = first / double(n);
    return second - first * correction;
  }

  template <class T>
  static RMSNORM_NOINLINE Statistics<compute_t<T>> statistics(const T* x, int64_t n, int64_t, double eps) {
    using C = compute_t<T>;
    Statistics<C> s;
    double correction;
    double squares = moments<false>(Row<T>{x, 1}, n, s, correction);
    if (__builtin_expect(left_the_range<C>(squares, n, eps), 0)) {
      s.scale = rescaling(x, n, eps);
      squares = moments<true>(Row<T>{x, s.scale}, n, s, correction);
    }
    const double rstd = reciprocal_root(std::max(squares, 0.0) / double(n), eps, s.scale);
    s.rstd = C(rstd);
    s.shift = C(-correction * rstd);
    return s;
  }
  template <class C>
  static RMSNORM_INLINE Vec<C> normalize(Vec<C> x, const Statistics<C>& s) {
    return (x - s.mean) * s.rstd + s.shift;
  }
  static constexpr bool centred = true;
};

}  // namespace rmsnorm
