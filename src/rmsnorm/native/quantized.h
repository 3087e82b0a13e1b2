// RMSNorm quantised to eight bits with one scale a row: y = x̂ ⊙ gain, scale = max|y| / largest code, q = y / scale. With
// a residual, x is the sum of the two, which is written as well.
#pragma once

#include "tensor_passes.h"

namespace rmsnorm {

struct Int8Code {
  static constexpr float largest = 127;
  static RMSNORM_INLINE VecI32 encode(Vec<float> v) {
    return __builtin_convertvector(v + 0x1.8p23f - 0x1.8p23f, VecI32);  // the addition rounds to an integer
  }
};
struct Float8E4M3Code {  // torch.float8_e4m3fn: 4 bits of exponent (bias 7), 3 of significand, no infinities
  static constexpr float largest = 448;
  static RMSNORM_INLINE VecI32 encode(Vec<float> v) {
    const VecU32 bits = (VecU32)v, magnitude = bits & 0x7fffffffu;
    // At least 2^-6: rounds at bit 20, and changes the bias of the exponent from 127 to 7. Below: adding 2^14 aligns
    // the last place of the sum with that of the code, 2^-9, so the addition rounds.
    const VecU32 normal = ((magnitude + (((magnitude >> 20) & 1u) + 0x7ffffu)) >> 20) - (120u << 3);
    const VecU32 subnormal = (VecU32)((Vec<float>)magnitude + 0x1p14f) - 0x46800000u;
    return (VecI32)((magnitude < 0x3c800000u ? subnormal : normal) | (bits >> 24 & 0x80u));
  }
};

template <class T>
struct QuantizeTensors {
  Tensor<const T> x;
  uint8_t* q;  // rows · n codes
  float* scale;  // one for each row
  // add_rms_norm_quantized: x + residual is rounded to T and written to sum, and sum is normalised.
  Tensor<const T> residual;
  Tensor<T> sum;
  Affine<compute_t<T>> affine;
};

// Writes y. Returns the largest |y|, or NaN if an element of y is not finite.
template <class T, class C>
RMSNORM_NOINLINE C normalize_and_find_largest(ScaledRow<T> x, C* y, int64_t n, const Statistics<C>& s, const C* gain) {
  Vec<C> largest = {}, largest_negated = {}, nan_if_not_finite = {};
  for_each_vector<C>(0, n, [&](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> v = RMS::normalize(x.template load<true>(i, count), s);
    if (gain) v *= load_n(gain + i, count);
    store_n(y + i, v, count);
    v = zero_after<C>(v, count);
    nan_if_not_finite += v * C(0);
    largest = max<C>(v, largest), largest_negated = max<C>(-v, largest_negated);
  });
  C row_largest = 0, row_nan = 0;
  largest = max<C>(largest, largest_negated);
  for (int i = 0; i < LANES<C>; ++i) row_largest = std::max(row_largest, largest[i]), row_nan += nan_if_not_finite[i];
  return row_largest + row_nan;
}

RMSNORM_INLINE Vec<float> quotients(const float* y, float scale, int count) { return load_n(y, count) / scale; }
RMSNORM_INLINE Vec<float> quotients(const double* y, float scale, int count) {
  double end[LANES<float>] = {};
  if (count < LANES<float>) y = std::copy_n(y, count, end) - count;
  return demote_to(load(y) / double(scale), load(y + LANES<double>) / double(scale), float{});
}

// A quotient exceeds the largest code only if the scale is subnormal, and so coarsely rounded: CLAMP.
template <class Code, bool CLAMP, class C>
RMSNORM_NOINLINE void encode_row(const C* y, uint8_t* q, int64_t n, float scale) {
  for_each_vector<float>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    Vec<float> v = quotients(y + i, scale, count);
    if (CLAMP) v = v > Code::largest ? set<float>(Code::largest) : v < -Code::largest ? set<float>(-Code::largest) : v;
    const QuarterU8 codes = truncate_to_u8((VecU32)Code::encode(v));
    if (count == LANES<float>)
      std::memcpy(q + i, &codes, sizeof codes);
    else
      std::memcpy(q + i, &codes, size_t(count));
  });
}

template <class Code, class T>
void quantize_tensor(const Problem& problem, const QuantizeTensors<T>& tensors) {
  using C = compute_t<T>;
  const int64_t n = problem.spec.n;
  parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    auto x = tensors.x.from(begin);
    auto residual = tensors.residual.from(begin);
    auto sum = tensors.sum.from(begin);
    Head head(problem, begin);
    const auto y = allocate<C>(n);
    for (int64_t row = begin; row < end; ++row, ++x, ++residual, ++sum, ++head) {
      const T* input = *x;
      if (*residual) {
        add_rows(*x, *residual, *sum, n);
        input = *sum;
      }
      const auto s = RMS::statistics(input, problem.spec);
      const C* gain = tensors.affine.from(*head * n).gain;
      const C largest = normalize_and_find_largest(ScaledRow<T>{input, s.scale}, y.get(), n, s, gain);
      const float scale = float(largest / C(Code::largest));
      tensors.scale[row] = scale;
      uint8_t* const q = tensors.q + row * n;
      if (scale >= std::numeric_limits<float>::min() && std::isfinite(scale))
        encode_row<Code, false>(y.get(), q, n, scale);
      else if (scale > 0 && std::isfinite(scale))
        encode_row<Code, true>(y.get(), q, n, scale);
      else
        std::fill_n(q, n, uint8_t(0));
    }
  });
}

}  // namespace rmsnorm
