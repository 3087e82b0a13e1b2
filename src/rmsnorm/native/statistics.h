// The statistics of one row: RMSNorm's (RMS) and LayerNorm's (Layer), and how an element is normalised with them.
//
// The order of every sum depends on the row's length alone, not on its address or on other rows.
#pragma once

#include <cmath>

#include "lanes.h"
#include "norm_spec.h"

namespace rmsnorm {

// A row and the power of two it is multiplied by, which is 1 unless its sum of squares left the normal range.
template <class T>
struct ScaledRow {
  using C = compute_t<T>;
  const T* data;
  C scale;

  template <bool SCALED>
  RMSNORM_INLINE Vec<C> load(int64_t i, int count) const {
    const Vec<C> v = rmsnorm::load_n(data + i, count);
    return SCALED ? v * scale : v;
  }
  template <bool SCALED, Part P>
  RMSNORM_INLINE Vec<C> load(Place<C, P> at) const {
    const Vec<C> v = at.load(data);
    return SCALED ? v * scale : v;
  }
};

template <bool SCALED, class T>
RMSNORM_INLINE double sum_of_squares(ScaledRow<T> x, int64_t k) {
  using C = compute_t<T>;
  return accumulate<C, 1, PAIRED<T>>(k, [=](auto at, Vec<C>* sum) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = x.template load<SCALED>(at);
    sum[0] += v * v;
  })[0];
}

// NaN if an element is NaN.
template <class T>
compute_t<T> largest_magnitude(const T* x, int64_t k) {
  compute_t<T> largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto v = std::abs(widen(x[i]));
    if (!(v <= largest)) largest = v;
    if (v != v) break;
  }
  return largest;
}

// A sum of k squares in C is accurate if it is finite and at least k times smallest_square, below which underflow takes
// bits away, or if eps is at least dominant_eps, beside which the lost bits do not count.
template <class C>
struct NormalRange {
  static constexpr double smallest_square = sizeof(C) == 4 ? 0x1p-100 : 0x1p-960;
  static constexpr double dominant_eps = sizeof(C) == 4 ? 0x1p-70 : 0x1p-900;
};

template <class C>
RMSNORM_INLINE bool left_normal_range(double square_sum, int64_t k, double eps) {
  return !std::isfinite(square_sum) ||
         (eps < NormalRange<C>::dominant_eps && square_sum < NormalRange<C>::smallest_square * double(k));
}

// The power of two that brings max(largest magnitude of the first k elements, sqrt(eps)) to about 1. If that maximum is
// below 1, it is brought to between 1/4 and 1/2: 1/RMS is then above 1, so an element after the first k overflows only
// if its result does.
template <class T>
compute_t<T> power_of_two_scale(const T* x, int64_t k, double eps) {
  using C = compute_t<T>;
  const double largest = std::max(double(largest_magnitude(x, k)), std::sqrt(eps));
  if (!(largest > 0) || !std::isfinite(largest)) return 1;  // NaN and infinity propagate by themselves
  constexpr int limit = std::numeric_limits<C>::max_exponent - 2;
  const int exponent = -std::ilogb(largest);
  return C(std::ldexp(1.0, std::clamp(exponent > 0 ? exponent - 2 : exponent, -limit, limit)));
}

// False if an element is NaN.
template <class T>
bool is_constant(const T* x, int64_t n) {
  for (int64_t i = 1; i < n; ++i)
    if (widen(x[i]) != widen(x[0])) return false;
  return widen(x[0]) == widen(x[0]);
}

// x̂ = (x·scale − mean)·rstd + shift
template <class C>
struct Statistics {
  C scale = 1, mean = 0, rstd = 0, shift = 0;
};

// √(a² + b²) for a, b ≥ 0, without overflow. Not std::hypot: its symbol needs glibc 2.35, and nothing else does.
inline double length(double a, double b) {
  const double large = a > b ? a : b, ratio = (a > b ? b : a) / large;
  return ratio > 0 ? large * std::sqrt(1 + ratio * ratio) : a + b;  // also of zeros, infinities and NaN
}

// Of a scaled row: 1 / sqrt(mean_square + eps·scale²). eps·scale² may overflow, so the root of eps comes first.
inline double reciprocal_rms(double mean_square, double eps, double scale) {
  return scale == 1 ? 1 / std::sqrt(mean_square + eps) : 1 / length(std::sqrt(mean_square), std::sqrt(eps) * scale);
}

// Short rows run in batches of at most MAX_BATCH. The square roots and divisions of GROUP rows run as vectors and cost
// as much as those of one row, a fifth of the time of a row of 64 elements.
constexpr int64_t MAX_BATCH = 32, GROUP = 8;

struct RMS {
  // rstd = 1 / sqrt(1/k Σ_{i<k} x_i² + eps)
  template <class T>
  static RMSNORM_NOINLINE Statistics<compute_t<T>> statistics(const T* x, const NormSpec& spec) {
    using C = compute_t<T>;
    const int64_t k = spec.k;
    const double eps = spec.eps;
    Statistics<C> s;
    double squares = sum_of_squares<false>(ScaledRow<T>{x, 1}, k);
    if (__builtin_expect(left_normal_range<C>(squares, k, eps), 0)) {
      s.scale = power_of_two_scale(x, k, eps);
      squares = sum_of_squares<true>(ScaledRow<T>{x, s.scale}, k);
    }
    s.rstd = C(reciprocal_rms(squares / double(k), eps, s.scale));
    return s;
  }
  // The statistics of `count` <= MAX_BATCH rows. k is spec.k, as a constant where it is known.
  template <class Length, class T>
  static RMSNORM_NOINLINE void batch_statistics(const T* const* rows, int64_t count, Length k, const NormSpec& spec,
                                                Statistics<compute_t<T>>* out) {
    using C = compute_t<T>;
    const double eps = spec.eps;
    if (count < GROUP / 2) {  // the work of a whole group costs more than that of a few rows
      for (int64_t i = 0; i < count; ++i) out[i] = statistics(rows[i], spec);
      return;
    }
    for (int64_t begin = 0; begin < count; begin += GROUP) {
      const int64_t in_group = std::min(GROUP, count - begin);
      double squares[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1}, rstd[GROUP];
      for (int64_t i = 0; i < in_group; ++i) squares[i] = sum_of_squares<false>(ScaledRow<T>{rows[begin + i], 1}, k);
      for (int64_t i = 0; i < GROUP; ++i) rstd[i] = 1 / std::sqrt(squares[i] / double(k) + eps);
      for (int64_t i = 0; i < in_group; ++i) {
        out[begin + i].scale = 1, out[begin + i].rstd = C(rstd[i]);
        if (__builtin_expect(left_normal_range<C>(squares[i], k, eps), 0))
          out[begin + i] = statistics(rows[begin + i], spec);
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
  // Corrected two-pass algorithm: the mean first, then Σ(x − mean), which corrects the mean's rounding error, and
  // Σ(x − mean)². Returns n times the variance.
  template <bool SCALED, class T>
  static RMSNORM_INLINE double moments(ScaledRow<T> x, int64_t n, Statistics<compute_t<T>>& s, double& correction) {
    using C = compute_t<T>;
    const auto [sum] = accumulate<C, 1, PAIRED<T>>(
        n, [=](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA { total[0] += x.template load<SCALED>(at); });
    const C mean = s.mean = C(sum / double(n));
    const auto [first, second] = accumulate<C, 2, PAIRED<T>>(n, [=](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
      const Vec<C> d = zero_after<C>(x.template load<SCALED>(at) - mean, at.count);
      total[0] += d;
      total[1] += d * d;
    });
    correction = first / double(n);
    return second - first * correction;
  }

  template <class T>
  static RMSNORM_NOINLINE Statistics<compute_t<T>> statistics(const T* x, const NormSpec& spec) {
    using C = compute_t<T>;
    const int64_t n = spec.n;
    const double eps = spec.eps;
    Statistics<C> s;
    double correction;
    double squares = moments<false>(ScaledRow<T>{x, 1}, n, s, correction);
    const bool left = left_normal_range<C>(squares, n, eps);
    // All elements of a constant row differ from the computed mean by the mean's rounding error, so their squared
    // deviations sum to n·correction². What is left after its subtraction is rounding error, which 1/√eps would
    // magnify.
    const bool same_deviations = squares < 0x1p-20 * double(n) * correction * correction;
    if (__builtin_expect(left || same_deviations, 0)) {
      // A constant row is not scaled: if it were scaled down, its variance and eps would underflow.
      if (is_constant(x, n) && std::isfinite(C(1 / std::sqrt(eps)))) {
        s.mean = widen(x[0]), s.rstd = C(1 / std::sqrt(eps));
        return s;
      }
      if (left) {
        s.scale = power_of_two_scale(x, n, eps);
        squares = moments<true>(ScaledRow<T>{x, s.scale}, n, s, correction);
      }
    }
    const double rstd = reciprocal_rms(std::max(squares, 0.0) / double(n), eps, s.scale);
    s.rstd = C(rstd);
    s.shift = C(-correction * rstd);
    return s;
  }
  template <class T>
  static void batch_statistics(const T* const* rows, int64_t count, int64_t, const NormSpec& spec,
                               Statistics<compute_t<T>>* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = statistics(rows[i], spec);
  }
  template <class C>
  static RMSNORM_INLINE Vec<C> normalize(Vec<C> x, const Statistics<C>& s) {
    return (x - s.mean) * s.rstd + s.shift;
  }
  static constexpr bool centred = true;
};

}  // namespace rmsnorm
