// RMSNorm whose result is rounded to eight bits with one scale a row: y = x̂ ⊙ g, scale = max|y| / most, q = y / scale.
#pragma once

#include "batch.h"
#include "passes.h"

namespace rmsnorm {

typedef uint8_t VecU8 __attribute__((vector_size(VECTOR_BYTES / 4)));

struct i8 {
  static constexpr float most = 127;
  static RMSNORM_INLINE VecI32 encode(Vec<float> v) { return __builtin_convertvector(v + 0x1.8p23f - 0x1.8p23f, VecI32); }
};
struct e4m3 {  // torch.float8_e4m3fn: 4 bits of exponent (bias 7), 3 of significand, no infinities
  static constexpr float most = 448;
  static RMSNORM_INLINE VecI32 encode(Vec<float> v) {
    const VecU32 bits = (VecU32)v, magnitude = bits & 0x7fffffffu;
    // From 2^-6 on, rounded at the 20th bit, the exponent moved from bias 127 to 7; below, 2^14 aligns the last place.
    const VecU32 normal = ((magnitude + (((magnitude >> 20) & 1u) + 0x7ffffu)) >> 20) - (120u << 3);
    const VecU32 subnormal = (VecU32)((Vec<float>)magnitude + 0x1p14f) - 0x46800000u;
    return (VecI32)((magnitude < 0x3c800000u ? subnormal : normal) | (bits >> 24 & 0x80u));
  }
};

template <class T>
struct Quantized {
  Tensor<const T> x;
  uint8_t* q;    // rows · n codes
  float* scale;  // one a row
  Affine<compute_t<T>> affine;
};

// The largest |y|, NaN if there is one, and y into a buffer.
template <class T, class C>
RMSNORM_NOINLINE C normalized_row(Row<T> x, C* y, int64_t n, const Statistics<C>& s, const C* g) {
  Vec<C> largest = {}, wrong = {};
  sweep<C>(0, n, [&](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> v = RMS::normalize(x.template get<true>(i, count), s);
    if (g) v *= get(g + i, count);
    put(y + i, v, count);
    const Vec<C> magnitude = keep_first<C>(v < C(0) ? -v : v, count);
    wrong += magnitude - magnitude;  // 0, or NaN for NaN and infinities
    largest = magnitude > largest ? magnitude : largest;
  });
  C most = 0, nan = 0;
  for (int i = 0; i < LANES<C>; ++i) most = std::max(most, largest[i]), nan += wrong[i];
  return most + nan;
}

template <class Code, class C>
RMSNORM_NOINLINE void encode_row(const C* y, uint8_t* q, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i += LANES<float>) {
    const int count = int(std::min<int64_t>(LANES<float>, n - i));
    Vec<float> v = {};
    if constexpr (sizeof(C) == 4)
      v = get(y + i, count) / scale;
    else
      for (int j = 0; j < count; ++j) v[j] = float(y[i + j] / double(scale));
    // Beyond `most` only where the scale is so small that it is itself coarsely rounded.
    v = v > Code::most ? splat<float>(Code::most) : v < -Code::most ? splat<float>(-Code::most) : v;
    const VecI32 code = Code::encode(v);
    const VecU8 bytes = __builtin_convertvector(code, VecU8);
    std::memcpy(q + i, &bytes, size_t(count));
  }
}

template <class Code, class T>
void quantized(const Problem& problem, const Quantized<T>& call) {
  using C = compute_t<T>;
  const int64_t n = problem.n;
  parallel_for(problem.threads, 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    auto x = call.x.from(begin);
    Head head(problem, begin);
    const auto y = allocate<C>(n);
    for (int64_t row = begin; row < end; ++row, ++x, ++head) {
      const auto s = RMS::statistics(*x, n, problem.k, problem.eps);
      const C largest = normalized_row(Row<T>{*x, s.scale}, y.get(), n, s, call.affine.from(*head * n).g);
      const float scale = float(largest / C(Code::most));
      call.scale[row] = scale;
      if (scale > 0 && std::isfinite(scale))
        encode_row<Code>(y.get(), call.q + row * n, n, scale);
      else
        std::fill_n(call.q + row * n, n, uint8_t(0));
    }
  });
}

}  // namespace rmsnorm
