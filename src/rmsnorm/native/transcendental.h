// The exponential, the logistic function and tanh, on vectors of float and double.
#pragma once

#include "simd.h"

namespace rmsnorm {

typedef int64_t VecI64 __attribute__((vector_size(VECTOR_BYTES)));

// Constants for e^x = 2^n (1 + em1(r)) with x = n ln 2 + r, |r| <= 0.35. ln 2 is the sum of two parts, the first of
// which has few enough bits for its product with n to be exact. TAIL approximates (e^r − 1 − r)/r²: the polynomial that
// interpolates at Chebyshev's nodes of that interval, highest power first.
template <class C>
struct ExponentialConstants;

template <>
struct ExponentialConstants<float> {
  using Bits = VecI32;
  static constexpr int MANTISSA = 23, BIAS = 127;
  static constexpr float MAGIC = 0x1.8p23f;  // a number added to it is rounded to an integer, which is in the last bits
  static constexpr float LOW = -87.0f, HIGH = 88.0f;
  static constexpr float LOG2_E = 0x1.715476p+0f, LN2_HIGH = 0x1.62e4p-1f, LN2_LOW = 0x1.7f7d1cp-20f;
  static constexpr float TAIL[] = {0x1.a1256cp-13f, 0x1.6d43aep-10f, 0x1.1110e0p-7f,
                                   0x1.5554e8p-5f,  0x1.555556p-3f,  0x1.0p-1f};
};

template <>
struct ExponentialConstants<double> {
  using Bits = VecI64;
  static constexpr int MANTISSA = 52, BIAS = 1023;
  static constexpr double MAGIC = 0x1.8p52;
  static constexpr double LOW = -708.0, HIGH = 709.0;
  static constexpr double LOG2_E = 0x1.71547652b82fep+0, LN2_HIGH = 0x1.62e42feep-1, LN2_LOW = 0x1.a39ef35793c76p-33;
  static constexpr double TAIL[] = {2.09147553258932022e-9,
                                    2.51053127296221018e-8,
                                    2.75572734787185805e-7,
                                    2.75572551700008874e-6,
                                    2.48015873256774619e-5,
                                    1.98412698750022788e-4,
                                    1.38888888888837112e-3,
                                    8.33333333332608312e-3,
                                    4.16666666666666698e-2,
                                    1.66666666666666710e-1,
                                    0.5};
};

// 2^n and em1(r) = e^r − 1. x is clamped to [LOW, HIGH]; NaN stays NaN.
template <class C>
struct Power {
  Vec<C> power, em1;
  RMSNORM_INLINE explicit Power(Vec<C> x) {
    using E = ExponentialConstants<C>;
    x = x < E::LOW ? set<C>(E::LOW) : x;
    x = x > E::HIGH ? set<C>(E::HIGH) : x;
    const Vec<C> shifted = x * E::LOG2_E + E::MAGIC, n = shifted - E::MAGIC;
    const Vec<C> r = (x - n * E::LN2_HIGH) - n * E::LN2_LOW;
    Vec<C> tail = set<C>(E::TAIL[0]);
#pragma GCC unroll 16
    for (size_t i = 1; i < sizeof E::TAIL / sizeof(C); ++i) tail = tail * r + E::TAIL[i];
    em1 = r + r * r * tail;
    // n is in the last bits of MAGIC + n; the shift moves it into the exponent's place, and all other bits out.
    using Bits = typename E::Bits;
    const auto one = decltype(E::MANTISSA + Bits{}[0])(E::BIAS) << E::MANTISSA;
    power = (Vec<C>)(((Bits)shifted << E::MANTISSA) + one);
  }
};

// e^x to 1.2 units in the last place, x clamped to [−87, 88] (double: [−708, 709]).
template <class C>
RMSNORM_INLINE Vec<C> exponential(Vec<C> x) {
  const Power<C> e(x);
  return e.power + e.power * e.em1;
}

// σ(x) = 1 / (1 + e^−x), accurate for large negative x too.
template <class C>
RMSNORM_INLINE Vec<C> sigmoid(Vec<C> x) {
  return C(1) / (C(1) + exponential<C>(-x));
}

// tanh x = −(e^−2|x| − 1) / (e^−2|x| + 1) with x's sign. e^−2|x| − 1 is computed without rounding e^−2|x| first, so
// small x lose no accuracy.
template <class C>
RMSNORM_INLINE Vec<C> hyperbolic_tangent(Vec<C> x) {
  const Vec<C> magnitude = x < C(0) ? -x : x;
  const Power<C> e(C(-2) * magnitude);
  const Vec<C> minus_one = e.power * e.em1 + (e.power - C(1));
  const Vec<C> t = minus_one / (C(-2) - minus_one);
  return x < C(0) ? -t : t;
}

}  // namespace rmsnorm
