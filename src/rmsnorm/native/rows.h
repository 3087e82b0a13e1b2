// What is done to one row: the reductions, and the element-wise passes that follow them.
//
// A row is swept twice: once for its statistic, which brings it into the first cache levels, and once to write.
// The order of every sum depends on the row's length alone, never on its address or its neighbours.
#pragma once

#include <cmath>

#include "lanes.h"

namespace rmsnorm {

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
  template <bool SCALED, Part P>
  RMSNORM_INLINE Vec<C> get(At<C, P> at) const {
    const Vec<C> v = at.get(data);
    return SCALED ? v * scale : v;
  }
};

template <bool SCALED, class T>
RMSNORM_INLINE double sum_of_squares(Row<T> x, int64_t k) {
  using C = compute_t<T>;
  return reduce<C, 1, PAIRED<T>>(k, [=](auto at, Vec<C>* sum) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = x.template get<SCALED>(at);
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

// A power of two that brings the larger of the row's largest magnitude and sqrt(eps) to about 1; a small one to between
// 1/4 and 1/2, where 1/RMS is above 1, so that what lies beyond the first k overflows only where its result does.
template <class T>
compute_t<T> rescaling(const T* x, int64_t k, double eps) {
  using C = compute_t<T>;
  const double largest = std::max(double(largest_magnitude(x, k)), std::sqrt(eps));
  if (!(largest > 0) || !std::isfinite(largest)) return 1;  // NaN and infinity take their course
  constexpr int most = std::numeric_limits<C>::max_exponent - 2;
  const int exponent = -std::ilogb(largest);
  return C(std::ldexp(1.0, std::clamp(exponent > 0 ? exponent - 2 : exponent, -most, most)));
}

template <class T>
bool is_constant(const T* x, int64_t n) {
  for (int64_t i = 1; i < n; ++i)
    if (widen(x[i]) != widen(x[0])) return false;
  return widen(x[0]) == widen(x[0]);
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

// Short rows are taken so many at a time; and of so many at once roots and quotients, which then take the time of
// one's (of a row of 64 that is a fifth of it all).
constexpr int64_t MAX_BATCH = 32, GROUP = 8;

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
  // Of up to MAX_BATCH rows.
  template <class T>
  static RMSNORM_NOINLINE void of_batch(const T* const* rows, int64_t count, int64_t n, int64_t k, double eps,
                                        Statistics<compute_t<T>>* out) {
    using C = compute_t<T>;
    if (count < GROUP / 2) {  // a group's work for two rows costs more than theirs
      for (int64_t i = 0; i < count; ++i) out[i] = statistics(rows[i], n, k, eps);
      return;
    }
    for (int64_t begin = 0; begin < count; begin += GROUP) {
      const int64_t here = std::min(GROUP, count - begin);
      double squares[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1}, rstd[GROUP];
      for (int64_t i = 0; i < here; ++i) squares[i] = sum_of_squares<false>(Row<T>{rows[begin + i], 1}, k);
      for (int64_t i = 0; i < GROUP; ++i) rstd[i] = 1 / std::sqrt(squares[i] / double(k) + eps);
      for (int64_t i = 0; i < here; ++i) {
        out[begin + i].scale = 1, out[begin + i].rstd = C(rstd[i]);
        if (__builtin_expect(left_the_range<C>(squares[i], k, eps), 0))
          out[begin + i] = statistics(rows[begin + i], n, k, eps);
      }
    }
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
    const auto [sum] = reduce<C, 1, PAIRED<T>>(n, [=](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
      total[0] += x.template get<SCALED>(at);
    });
    const C mean = s.mean = C(sum / double(n));
    const auto [first, second] = reduce<C, 2, PAIRED<T>>(n, [=](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
      const Vec<C> d = keep_first<C>(x.template get<SCALED>(at) - mean, at.count);
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
    const bool left = left_the_range<C>(squares, n, eps);
    // Of a constant row the moments leave the rounding errors of the mean's error, times 1/√eps. Its elements all differ
    // from the mean by that error, which is then the whole of their squares.
    const bool same_deviations = squares < 0x1p-20 * double(n) * correction * correction;
    if (__builtin_expect(left || same_deviations, 0)) {
      // Scaled down, a constant row would leave nothing of its variance and of eps.
      if (is_constant(x, n) && std::isfinite(C(1 / std::sqrt(eps)))) {
        s.mean = widen(x[0]), s.rstd = C(1 / std::sqrt(eps));
        return s;
      }
      if (left) {
        s.scale = rescaling(x, n, eps);
        squares = moments<true>(Row<T>{x, s.scale}, n, s, correction);
      }
    }
    const double rstd = reciprocal_root(std::max(squares, 0.0) / double(n), eps, s.scale);
    s.rstd = C(rstd);
    s.shift = C(-correction * rstd);
    return s;
  }
  template <class T>
  static void of_batch(const T* const* rows, int64_t count, int64_t n, int64_t k, double eps,
                       Statistics<compute_t<T>>* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = statistics(rows[i], n, k, eps);
  }
  template <class C>
  static RMSNORM_INLINE Vec<C> normalize(Vec<C> x, const Statistics<C>& s) {
    return (x - s.mean) * s.rstd + s.shift;
  }
  static constexpr bool centred = true;
};

}  // namespace rmsnorm
