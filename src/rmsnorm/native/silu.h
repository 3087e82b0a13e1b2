// The logistic function and SiLU on vectors.
#pragma once

#include <cmath>

#include "simd.h"

namespace rmsnorm {

typedef int32_t VecI32 __attribute__((vector_size(VECTOR_BYTES)));

// e^x for x ≤ 0 and NaN, subnormal results included: 1.06 ulp off at worst, over all 1.1e9 float32 from -104 to 0.
RMSNORM_INLINE Vec<float> exp_negative(Vec<float> x) {
  x = x < -104.0f ? splat<float>(-104.0f) : x;  // e^-104 is rounded to 0; NaN stays
  const float MAGIC = 0x1.8p23f;                // what is added to it is rounded to an integer, in its last bits
  const Vec<float> shifted = x * 0x1.715476p+0f + MAGIC;
  const Vec<float> n = shifted - MAGIC;
  // r = x − n·ln 2, |r| ≤ 0.35; ln 2 in two parts, the first of 9 bits, so that its product with n is exact.
  const Vec<float> r = (x - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f;
  // The Taylor series to r^7: what is left out is below 2^-27.
  Vec<float> tail = r * (1.0f / 5040) + 1.0f / 720;
  tail = tail * r + 1.0f / 120;
  tail = tail * r + 1.0f / 24;
  tail = tail * r + 1.0f / 6;
  tail = tail * r + 0.5f;
  const Vec<float> y = 1.0f + (r + r * r * tail);
  // 2^n in two factors: n reaches −150, a normal number's exponent −126.
  const VecI32 whole = (VecI32)shifted - 0x4b400000, half = whole >> 1;
  return y * (Vec<float>)((half + 127) << 23) * (Vec<float>)((whole - half + 127) << 23);
}
RMSNORM_NOINLINE inline Vec<double> exp_negative(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// σ(z) = 1 / (1 + e^-z) and 1 − σ(z) = σ(−z), both without cancellation and without overflow.
template <class C>
struct Logistic {
  Vec<C> at, rest;
  RMSNORM_INLINE explicit Logistic(Vec<C> z) {
    const Vec<C> t = exp_negative(z < C(0) ? z : -z), large = C(1) / (C(1) + t), small = t * large;
    at = z < C(0) ? small : large;
    rest = z < C(0) ? large : small;
  }
};

}  // namespace rmsnorm
