// Vectors as wide as the instruction set's registers: arithmetic by the compiler's vector extension, which is
// plain C++ on every target; intrinsics only where it has no word (half precision, masks, streaming stores).
#pragma once

#include "dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
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

template <class C>
RMSNORM_INLINE Vec<C> splat(C value) {
  return value - Vec<C>{};
}

// ---- sixteen-bit vectors to and from float ----

// GCC 12 makes of the general conversions three shuffles where the instruction set has one.
RMSNORM_INLINE Vec<float> unpack(HalfU16 h, bf16) {
#if defined(RMSNORM_AVX512)
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif defined(RMSNORM_AVX2)
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
  return (Vec<float>)(__builtin_convertvector(h, VecU32) << 16);
#endif
}

RMSNORM_INLINE HalfU16 pack(Vec<float> v, bf16) {
  const VecU32 bits = (VecU32)v;
  const VecU32 rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);
  const VecU32 chosen = (v == v ? rounded : (bits | 0x400000u)) >> 16;
#if defined(RMSNORM_AVX512)
  return (HalfU16)_mm512_cvtepi32_epi16((__m512i)chosen);
#elif defined(RMSNORM_AVX2)
  const __m256i halves = _mm256_packus_epi32((__m256i)chosen, (__m256i)chosen);  // within each 128 bits
  return (HalfU16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
  return __builtin_convertvector(chosen, HalfU16);
#endif
}

// Two vectors of bfloat16, taken apart into the even and the odd elements: one instruction each, where a vector of
// neighbours takes two, one of them a shuffle.
RMSNORM_INLINE Vec<float> even_of(const bf16* p) {
  VecU32 both;
  std::memcpy(&both, p, sizeof both);
  return (Vec<float>)(both << 16);
}
RMSNORM_INLINE Vec<float> odd_of(const bf16* p) {
  VecU32 both;
  std::memcpy(&both, p, sizeof both);
  return (Vec<float>)(both & 0xffff0000u);
}
// Of two vectors of neighbours the even and the odd elements.
RMSNORM_INLINE void take_apart(Vec<float> a, Vec<float> b, Vec<float>& even, Vec<float>& odd) {
#if defined(RMSNORM_AVX512)
  const __m512i place = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  even = (Vec<float>)_mm512_permutex2var_ps((__m512)a, place, (__m512)b);
  odd = (Vec<float>)_mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(place, _mm512_set1_epi32(1)), (__m512)b);
#elif defined(RMSNORM_AVX2)
  const auto joined = [](__m256 v) { return (Vec<float>)_mm256_permute4x64_pd((__m256d)v, 0xd8); };  // was by 128 bits
  even = joined(_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88));
  odd = joined(_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd));
#else
  constexpr int N = LANES<float>;
  for (int i = 0; i < N; ++i) {
    even[i] = 2 * i < N ? a[2 * i] : b[2 * i - N];
    odd[i] = 2 * i < N ? a[2 * i + 1] : b[2 * i + 1 - N];
  }
#endif
}
// And back, rounded. A NaN must have the lower half of its bits clear, as those have that come of bfloat16 numbers and
// of arithmetic itself: rounding would carry others into the sign.
RMSNORM_INLINE VecU32 joined(Vec<float> even, Vec<float> odd) {
  const auto rounded = [](VecU32 bits) RMSNORM_INLINE_LAMBDA { return bits + (((bits >> 16) & 1u) + 0x7fffu); };
  return (rounded((VecU32)even) >> 16) | (rounded((VecU32)odd) & 0xffff0000u);
}

#if defined(RMSNORM_AVX512)
RMSNORM_INLINE Vec<float> unpack(HalfU16 h, f16) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
RMSNORM_INLINE HalfU16 pack(Vec<float> v, f16) {
  return (HalfU16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(RMSNORM_AVX2)
RMSNORM_INLINE Vec<float> unpack(HalfU16 h, f16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
RMSNORM_INLINE HalfU16 pack(Vec<float> v, f16) { return (HalfU16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else  // element by element; as a call, since a copy in every loop would make the module's code ten times as long
RMSNORM_NOINLINE inline Vec<float> unpack(HalfU16 h, f16) {
  Vec<float> v;
  for (int i = 0; i < LANES<float>; ++i) v[i] = widen(f16{h[i]});
  return v;
}
RMSNORM_NOINLINE inline HalfU16 pack(Vec<float> v, f16) {
  HalfU16 h;
  for (int i = 0; i < LANES<float>; ++i) h[i] = to_f16(v[i]).bits;
  return h;
}
#endif

// ---- whole vectors: T in memory, compute_t<T> in registers ----

template <class T>
RMSNORM_INLINE Vec<compute_t<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    HalfU16 h;
    std::memcpy(&h, p, sizeof h);
    return unpack(h, T{});
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
}

template <class T>
RMSNORM_INLINE void store(T* p, Vec<compute_t<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const HalfU16 h = pack(v, T{});
    std::memcpy(p, &h, sizeof h);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

// Past the caches; p must be aligned to the bytes written.
template <class T>
RMSNORM_INLINE void stream(T* p, Vec<compute_t<T>> v) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    _mm256_stream_si256((__m256i*)p, (__m256i)pack(v, T{}));
  else
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(RMSNORM_AVX2)
  if constexpr (sizeof(T) == 2)
    _mm_stream_si128((__m128i*)p, (__m128i)pack(v, T{}));
  else
    _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 2)
    store(p, v);  // eight bytes: no vector store that streams
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

// ---- the first m lanes, 0 < m < LANES: a row's tail; lanes beyond are read as zero and never written ----

template <class T>
RMSNORM_INLINE Vec<compute_t<T>> load_first(const T* p, int m) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    return unpack((HalfU16)_mm256_maskz_loadu_epi16(__mmask16((1u << m) - 1u), p), T{});
  else if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << m) - 1u), p);
  else
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << m) - 1u), p);
#else
  T row[LANES<compute_t<T>>] = {};
  for (int i = 0; i < m; ++i) row[i] = p[i];
  return load(row);
#endif
}

template <class T>
RMSNORM_INLINE void store_first(T* p, Vec<compute_t<T>> v, int m) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(p, __mmask16((1u << m) - 1u), (__m256i)pack(v, T{}));
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << m) - 1u), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << m) - 1u), (__m512d)v);
#else
  T row[LANES<compute_t<T>>];
  store(row, v);
  for (int i = 0; i < m; ++i) p[i] = row[i];
#endif
}

// v with zeros beyond the first count lanes.
template <class C>
RMSNORM_INLINE Vec<C> keep_first(Vec<C> v, int count) {
  if (count == LANES<C>) return v;
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_maskz_mov_ps(__mmask16((1u << count) - 1u), (__m512)v);
  else
    return (Vec<C>)_mm512_maskz_mov_pd(__mmask8((1u << count) - 1u), (__m512d)v);
#else
  for (int i = count; i < LANES<C>; ++i) v[i] = 0;
  return v;
#endif
}

// v as it would be after a trip through T in memory.
template <class T>
RMSNORM_INLINE Vec<compute_t<T>> round_to(Vec<compute_t<T>> v) {
  if constexpr (sizeof(T) == 2)
    return unpack(pack(v, T{}), T{});
  else
    return v;
}

// v as a finished product: what is added to it next is not fused with the multiplication before.
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

template <class C>
RMSNORM_INLINE C lanes_sum(Vec<C> v) {
#if defined(RMSNORM_AVX512)
  if constexpr (sizeof(C) == 4)
    return _mm512_reduce_add_ps((__m512)v);
  else
    return _mm512_reduce_add_pd((__m512d)v);
#else
  C lane[LANES<C>];
  std::memcpy(lane, &v, sizeof v);
  for (int half = LANES<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
#endif
}

}  // namespace rmsnorm
