// Vectors as wide as the instruction set's registers. Arithmetic uses the compiler's vector extension, which is plain
// C++ on every target; intrinsics are used only where it has no equivalent (half precision, masks, streaming stores).
//
// Functions have the names of Google Highway's operations where they do the same, in lower case:
//
//   set                          Set                       all lanes equal
//   load, store                  LoadU, StoreU             no alignment needed; 16-bit numbers are converted
//   load_n, store_n              LoadN, StoreN             the first n lanes, 0 < n <= LANES; load_n reads others as 0
//   stream, stream_fence         Stream, FlushStream
//   promote, demote_to           PromoteTo, DemoteTo       16 bits to float32, and back; float64 to float32
//   promote_even, promote_odd    PromoteEvenTo, PromoteOddTo
//   demote_even_odd              (demotes both and interleaves them: the inverse of the two above)
//   concat_even, concat_odd      ConcatEven, ConcatOdd
//   reduce_sum                   ReduceSum
//   max, truncate_to_u8          Max, TruncateTo           a > b ? a : b; the lowest byte of each lane
#pragma once

#include "dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define RMSNORM_AVX512 1
#define RMSNORM_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define RMSNORM_AVX2 1
#define RMSNORM_VECTOR_BYTES 32
#else
#define RMSNORM_VECTOR_BYTES 16
#endif

#define RMSNORM_INLINE inline __attribute__((always_inline))
#define RMSNORM_INLINE_LAMBDA __attribute__((always_inline))
#define RMSNORM_NOINLINE __attribute__((noinline))

namespace rmsnorm {

constexpr int VECTOR_BYTES = RMSNORM_VECTOR_BYTES;

template <class C>
struct vec_of;
template <>
struct vec_of<float> {
  typedef float type __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct vec_of<double> {
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class C>
using Vec = typename vec_of<C>::type;

template <class C>
constexpr int LANES = VECTOR_BYTES / int(sizeof(C));

typedef int32_t VecI32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t VecU32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t HalfU16 __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint8_t QuarterU8 __attribute__((vector_size(VECTOR_BYTES / 4)));

template <class C>
RMSNORM_INLINE Vec<C> set(C value) {
  return value - Vec<C>{};
}

// ---- 16-bit vectors to and from float32 ----

// GCC 12 compiles the generic conversions to three shuffles on x86-64 and lane by lane on AArch64; each of these
// intrinsics is one instruction.
RMSNORM_INLINE Vec<float> promote(HalfU16 h, bf16) {
#if defined(RMSNORM_AVX512)
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif defined(RMSNORM_AVX2)
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#elif defined(__aarch64__)
  return (Vec<float>)((VecU32)vmovl_u16((uint16x4_t)h) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(h, VecU32) << 16);
#endif
}

// bits + 0x7fff + the last bit that is kept: the upper 16 bits are those of the nearest bfloat16, ties to even.
RMSNORM_INLINE VecU32 round_upper_half(VecU32 bits) {
#if defined(RMSNORM_AVX512)
  // m + 1 = −~m with m = (bits >> 16 & 1) | 0x7ffe: three instructions, where GCC 12 takes four.
  constexpr int NOT_A_AND_B_OR_C = 0x15;
  const __m512i one = _mm512_set1_epi32(1), rest = _mm512_set1_epi32(0x7ffe);
  return bits - (VecU32)_mm512_ternarylogic_epi32((__m512i)(bits >> 16), one, rest, NOT_A_AND_B_OR_C);
#else
  return bits + (((bits >> 16) & 1u) + 0x7fffu);
#endif
}

RMSNORM_INLINE HalfU16 demote_to(Vec<float> v, bf16) {
  const VecU32 bits = (VecU32)v;
  const VecU32 chosen = (v == v ? round_upper_half(bits) : (bits | 0x400000u)) >> 16;
#if defined(RMSNORM_AVX512)
  return (HalfU16)_mm512_cvtepi32_epi16((__m512i)chosen);
#elif defined(RMSNORM_AVX2)
  const __m256i halves = _mm256_packus_epi32((__m256i)chosen, (__m256i)chosen);  // packs within each 128 bits
  return (HalfU16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
  return __builtin_convertvector(chosen, HalfU16);
#endif
}

// 2·LANES neighbouring bfloat16 numbers, an even and an odd one in each 32 bits. To promote the even or the odd ones
// takes one instruction a vector; to promote neighbours takes two, one of them a shuffle.
RMSNORM_INLINE VecU32 load_pairs(const bf16* p) {
  VecU32 pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return pairs;
}
RMSNORM_INLINE Vec<float> promote_even(VecU32 pairs) { return (Vec<float>)(pairs << 16); }
RMSNORM_INLINE Vec<float> promote_odd(VecU32 pairs) { return (Vec<float>)(pairs & 0xffff0000u); }
// The inverse, rounded. The lower 16 bits of a NaN must be 0, or rounding could carry into its sign; they are 0 in NaNs
// that come from bfloat16 numbers or from arithmetic.
RMSNORM_INLINE VecU32 demote_even_odd(Vec<float> even, Vec<float> odd) {
  return (round_upper_half((VecU32)even) >> 16) | (round_upper_half((VecU32)odd) & 0xffff0000u);
}

// The even, or the odd, elements of two neighbouring vectors.
template <int ODD>
RMSNORM_INLINE Vec<float> concat_every_second(Vec<float> high, Vec<float> low) {
#if defined(RMSNORM_AVX512)
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i index = ODD ? _mm512_add_epi32(even, _mm512_set1_epi32(1)) : even;
  return (Vec<float>)_mm512_permutex2var_ps((__m512)low, index, (__m512)high);
#elif defined(RMSNORM_AVX2)
  const __m256 within_128_bits = _mm256_shuffle_ps((__m256)low, (__m256)high, ODD ? 0xdd : 0x88);
  return (Vec<float>)_mm256_permute4x64_pd((__m256d)within_128_bits, 0xd8);
#elif defined(__aarch64__)
  return ODD ? (Vec<float>)vuzp2q_f32(low, high) : (Vec<float>)vuzp1q_f32(low, high);
#else
  constexpr int N = LANES<float>;
  Vec<float> v;
  for (int i = 0; i < N; ++i) v[i] = 2 * i < N ? low[2 * i + ODD] : high[2 * i + ODD - N];
  return v;
#endif
}
RMSNORM_INLINE Vec<float> concat_even(Vec<float> high, Vec<float> low) { return concat_every_second<0>(high, low); }
RMSNORM_INLINE Vec<float> concat_odd(Vec<float> high, Vec<float> low) { return concat_every_second<1>(high, low); }

#if defined(RMSNORM_AVX512)
RMSNORM_INLINE Vec<float> promote(HalfU16 h, f16) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
RMSNORM_INLINE HalfU16 demote_to(Vec<float> v, f16) {
  return (HalfU16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(RMSNORM_AVX2)
RMSNORM_INLINE Vec<float> promote(HalfU16 h, f16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
RMSNORM_INLINE HalfU16 demote_to(Vec<float> v, f16) {
  return (HalfU16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
RMSNORM_INLINE Vec<float> promote(HalfU16 h, f16) { return (Vec<float>)vcvt_f32_f16((float16x4_t)h); }
RMSNORM_INLINE HalfU16 demote_to(Vec<float> v, f16) { return (HalfU16)vcvt_f16_f32((float32x4_t)v); }
#else  // Element by element. Not inlined: a copy in every loop would make the module's code ten times as long.
RMSNORM_NOINLINE inline Vec<float> promote(HalfU16 h, f16) {
  Vec<float> v;
  for (int i = 0; i < LANES<float>; ++i) v[i] = widen(f16{h[i]});
  return v;
}
RMSNORM_NOINLINE inline HalfU16 demote_to(Vec<float> v, f16) {
  HalfU16 h;
  for (int i = 0; i < LANES<float>; ++i) h[i] = to_f16(v[i]).bits;
  return h;
}
#endif

// Two vectors of float64 make one.
RMSNORM_INLINE Vec<float> demote_to(Vec<double> low, Vec<double> high, float) {
#if defined(RMSNORM_AVX512)
  const __m512 first = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low));
  return (Vec<float>)_mm512_insertf32x8(first, _mm512_cvtpd_ps((__m512d)high), 1);
#elif defined(RMSNORM_AVX2)
  return (Vec<float>)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)high), _mm256_cvtpd_ps((__m256d)low));
#elif defined(__x86_64__)
  return (Vec<float>)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
#elif defined(__aarch64__)
  return (Vec<float>)vcombine_f32(vcvt_f32_f64(low), vcvt_f32_f64(high));
#else
  Vec<float> v;
  for (int i = 0; i < LANES<double>; ++i) v[i] = float(low[i]), v[i + LANES<double>] = float(high[i]);
  return v;
#endif
}

// ---- whole vectors: T in memory, compute_t<T> in registers ----

template <class T>
RMSNORM_INLINE Vec<compute_t<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    HalfU16 h;
    std::memcpy(&h, p, sizeof h);
    return promote(h, T{});
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
}

template <class T>
RMSNORM_INLINE void store(T* p, Vec<compute_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const HalfU16 h = demote_to(v, T{});
    std::memcpy(p, &h, sizeof h);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

// Whether stream() bypasses the caches: where there is a store of that size that does.
#if defined(RMSNORM_AVX512) || defined(RMSNORM_AVX2)
template <class T>
constexpr bool CAN_STREAM = true;
#elif defined(__x86_64__)
template <class T>
constexpr bool CAN_STREAM = sizeof(T) > 2;
#else
template <class T>
constexpr bool CAN_STREAM = false;
#endif

// A store that bypasses the caches. p must be aligned to the number of bytes written.
template <class T>
RMSNORM_INLINE void stream(T* p, Vec<compute_t<T>> v) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    _mm256_stream_si256((__m256i*)p, (__m256i)demote_to(v, T{}));
  else
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(RMSNORM_AVX2)
  if constexpr (sizeof(T) == 2)
    _mm_stream_si128((__m128i*)p, (__m128i)demote_to(v, T{}));
  else
    _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 2)
    store(p, v);  // 8 bytes: there is no streaming store of that size
  else
    _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  store(p, v);
#endif
}

RMSNORM_INLINE void stream(uint32_t* p, VecU32 v) {
#if defined(RMSNORM_AVX512)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(RMSNORM_AVX2)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  std::memcpy(p, &v, sizeof v);
#endif
}

RMSNORM_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- the first n lanes, 0 < n <= LANES: the end of a row. Other lanes are read as 0, and never written ----

template <class T>
RMSNORM_INLINE Vec<compute_t<T>> load_n(const T* p, int n) {
  if (n == LANES<compute_t<T>>) return load(p);
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    return promote((HalfU16)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1u), p), T{});
  else if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1u), p);
  else
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1u), p);
#else
  T lanes[LANES<compute_t<T>>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

template <class T>
RMSNORM_INLINE void store_n(T* p, Vec<compute_t<T>> v, int n) {
  if (n == LANES<compute_t<T>>) return store(p, v);
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1u), (__m256i)demote_to(v, T{}));
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1u), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1u), (__m512d)v);
#else
  constexpr int LAST = LANES<compute_t<T>> - 1;
  T lanes[LAST + 1];
  store(lanes, v);
  for (int i = 0; i < (n < LAST ? n : LAST); ++i) p[i] = lanes[i];  // GCC 12 warns of more
#endif
}

// v with 0 in all lanes after the first n.
template <class C>
RMSNORM_INLINE Vec<C> zero_after(Vec<C> v, int n) {
  if (n == LANES<C>) return v;
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_maskz_mov_ps(__mmask16((1u << n) - 1u), (__m512)v);
  else
    return (Vec<C>)_mm512_maskz_mov_pd(__mmask8((1u << n) - 1u), (__m512d)v);
#else
  for (int i = n; i < LANES<C>; ++i) v[i] = 0;
  return v;
#endif
}

// v rounded to T, as if it had been stored as T and loaded again.
template <class T>
RMSNORM_INLINE Vec<compute_t<T>> round_to(Vec<compute_t<T>> v) {
  if constexpr (sizeof(T) == 2)
    return promote(demote_to(v, T{}), T{});
  else
    return v;
}

// v itself, but the compiler cannot fuse the multiplication that made it with an addition that follows.
template <class V>
RMSNORM_INLINE V unfused(V v) {
#if defined(RMSNORM_AVX512)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The compiler makes a comparison and a selection of the general expression. The masks keep GCC 12 from a warning about
// its own unmasked intrinsic.
template <class C>
RMSNORM_INLINE Vec<C> max(Vec<C> a, Vec<C> b) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
  else
    return (Vec<C>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#elif defined(RMSNORM_AVX2)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm256_max_ps((__m256)a, (__m256)b);
  else
    return (Vec<C>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__x86_64__)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm_max_ps((__m128)a, (__m128)b);
  else
    return (Vec<C>)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}

// GCC 12 takes the lanes one by one otherwise (but not on AVX-512 where the lanes were floating point numbers before).
RMSNORM_INLINE QuarterU8 truncate_to_u8(VecU32 v) {
  QuarterU8 bytes;
#if defined(RMSNORM_AVX512)
  bytes = (QuarterU8)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(RMSNORM_AVX2)
  const __m256i low = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));  // of each 128 bits
  const __m256i joined = _mm256_permutevar8x32_epi32(low, _mm256_set_epi32(4, 0, 4, 0, 4, 0, 4, 0));
  std::memcpy(&bytes, &joined, sizeof bytes);
#elif defined(__x86_64__)
  const __m128i halves = _mm_packs_epi32((__m128i)(v & 0xffu), (__m128i)(v & 0xffu));
  const __m128i packed = _mm_packus_epi16(halves, halves);
  std::memcpy(&bytes, &packed, sizeof bytes);
#elif defined(__aarch64__)
  const uint16x4_t halves = vmovn_u32((uint32x4_t)v);
  const uint8x8_t packed = vmovn_u16(vcombine_u16(halves, halves));
  std::memcpy(&bytes, &packed, sizeof bytes);
#else
  bytes = __builtin_convertvector(v, QuarterU8);
#endif
  return bytes;
}

template <class C>
RMSNORM_INLINE C reduce_sum(Vec<C> v) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(C) == 4)
    return _mm512_reduce_add_ps((__m512)v);
  else
    return _mm512_reduce_add_pd((__m512d)v);
#elif defined(__aarch64__)
  if constexpr (sizeof(C) == 4)
    return vaddv_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v)));  // the order of the general case below
  else
    return vaddvq_f64(v);
#else
  C lane[LANES<C>];
  std::memcpy(lane, &v, sizeof v);
  for (int half = LANES<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
#endif
}

}  // namespace rmsnorm
