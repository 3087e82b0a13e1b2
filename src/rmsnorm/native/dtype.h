// The storage types, the type that each is computed in, and scalar conversions (round to nearest, ties to even).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "codes.h"

namespace rmsnorm {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline bool is_floating(int dtype) { return dtype >= int(DType::float32) && dtype <= int(DType::float16); }
// The dtypes that rms_norm_quantized writes.
inline bool is_eight_bit(int dtype) { return dtype == int(DType::int8) || dtype == int(DType::float8_e4m3fn); }

// float64 for float64, float32 for all others.
template <class T>
struct compute {
  using type = float;
};
template <>
struct compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename compute<T>::type;

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(bf16 v) { return as_float(uint32_t(v.bits) << 16); }
inline float widen(f16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude < 0x400u)  // subnormal: converted as an integer, since the processor may treat subnormal floats as zero
    bits = as_bits(float(int32_t(magnitude)) * 0x1p-24f);
  else if (magnitude < 0x7c00u)
    bits = (magnitude << 13) + (112u << 23);
  else
    bits = magnitude << 13 | 0x7f800000u;  // inf and NaN
  return as_float(bits | uint32_t(v.bits & 0x8000u) << 16);
}

template <class T>
T narrow(double v);
template <>
inline double narrow<double>(double v) {
  return v;
}
template <>
inline float narrow<float>(double v) {
  return float(v);
}
inline bf16 to_bf16(float v) {
  const uint32_t bits = as_bits(v);
  if (v != v) return {uint16_t(bits >> 16 | 0x40u)};  // a quiet NaN: rounding could make it an infinity
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline f16 to_f16(float v) {
  const uint32_t sign = as_bits(v) >> 16 & 0x8000u, magnitude = as_bits(v) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};  // NaN
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // at least 65520: rounds to infinity
  if (magnitude < 0x38800000u)  // below 2^-14: adding 1/2 aligns the last place with 2^-24, so the addition rounds
    return {uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u))};
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13))};
}
// float64 to float32, rounded to odd: truncated, with the last bit set if the result is inexact. Rounding that to fewer
// bits gives the same as one rounding of v.
inline float to_odd(double v) {
  const float near = float(v);
  const uint32_t bits = as_bits(near);
  if (double(near) == v || v != v || bits & 1) return near;
  return as_float(std::abs(double(near)) > std::abs(v) ? bits - 1 : bits + 1);
}
template <>
inline bf16 narrow<bf16>(double v) {
  return to_bf16(to_odd(v));
}
template <>
inline f16 narrow<f16>(double v) {
  return to_f16(to_odd(v));
}

// f(a zero of the dtype's type).
template <class F>
void with_type(DType t, F f) {
  switch (t) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::bfloat16: return f(bf16{});
    case DType::float16: return f(f16{});
    default: break;  // the kernels compute with no other dtype
  }
}

inline size_t item_size(DType t) {
  switch (t) {
    case DType::float64: return 8;
    case DType::float32: return 4;
    case DType::bfloat16:
    case DType::float16: return 2;
    default: return 1;
  }
}

}  // namespace rmsnorm
