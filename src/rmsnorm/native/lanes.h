// Loops over the elements of a row: a whole vector at a time, or, of bfloat16, two vectors' even and odd elements.
//
// Every operand of a paired loop is in that order. What lies in memory as bfloat16 is taken apart when it is loaded;
// gains, biases and sums over rows, which lie there in the computation dtype, are kept in it (paired_place): of each
// block of two vectors first the even elements, then the odd ones. The rest of a row that fills no block is straight.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "simd.h"

namespace rmsnorm {

// float32 partial sums span at most this many elements (16 a lane with AVX-512) and are then added up in float64,
// so that the error of a statistic does not grow with the length of the row.
constexpr int64_t BLOCK = 2048;
constexpr int ACCUMULATORS = 8;  // a fused multiply-add takes 4 cycles and two start in each: 8 keep both units busy

template <class T>
constexpr bool PAIRED = std::is_same_v<T, bf16>;

// Where element e of a row of n stands in arrays that are kept in a paired loop's order.
inline int64_t paired_place(int64_t e, int64_t n) {
  constexpr int64_t N = LANES<float>;
  const int64_t block = e / (2 * N) * (2 * N), in = e - block;
  return block + 2 * N > n ? e : block + (in % 2) * N + in / 2;
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

// What a loop's body works on at a time: `count` elements from i on, or half of a block of two vectors that begins at i.
enum class Part { whole, even, odd };
template <class C, Part P>
struct At {
  static constexpr Part part = P;
  int64_t i;
  int count = LANES<C>;

  template <class T>
  RMSNORM_INLINE Vec<C> get(const T* row) const {
    if constexpr (P == Part::whole)
      return rmsnorm::get(row + i, count);
    else if constexpr (std::is_same_v<T, C>)
      return load(row + i + (P == Part::odd ? LANES<C> : 0));
    else
      return P == Part::odd ? odd_of(row + i) : even_of(row + i);
  }
};

// Writes the results of a body, one of each place.
template <bool STREAM = false, class T, class C>
RMSNORM_INLINE void put_at(T* row, const Vec<C>* v, At<C, Part::whole> at) {
  if (STREAM && at.count == LANES<C>)
    stream(row + at.i, v[0]);
  else
    put(row + at.i, v[0], at.count);
}
template <bool STREAM = false, class T, class C>
RMSNORM_INLINE void put_at(T* row, const Vec<C>* v, At<C, Part::even> at, At<C, Part::odd>) {
  if constexpr (std::is_same_v<T, C>) {
    store(row + at.i, v[0]);
    store(row + at.i + LANES<C>, v[1]);
  } else {
    const VecU32 both = joined(v[0], v[1]);
    if (STREAM)
      stream(reinterpret_cast<uint32_t*>(row + at.i), both);
    else
      std::memcpy(row + at.i, &both, sizeof both);
  }
}

// Calls body(at) for whole vectors and one tail of the elements [begin, end); paired: body(even, odd) for whole
// blocks before them, where begin must be the beginning of one.
template <class C, bool PAIRS = false, class Body>
RMSNORM_INLINE void sweep_at(int64_t begin, int64_t end, Body body) {
  constexpr int N = LANES<C>;
  int64_t i = begin;
  if constexpr (PAIRS) {
#pragma GCC unroll 2
    for (; i + 2 * N <= end; i += 2 * N) body(At<C, Part::even>{i}, At<C, Part::odd>{i});
  }
#pragma GCC unroll 4
  for (; i + N <= end; i += N) body(At<C, Part::whole>{i});
  if (i < end) body(At<C, Part::whole>{i, int(end - i)});
}

// The same with body(i, count).
template <class C, class Body>
RMSNORM_INLINE void sweep(int64_t begin, int64_t end, Body body) {
  sweep_at<C>(begin, end, [=](auto at) RMSNORM_INLINE_LAMBDA { body(at.i, at.count); });
}

// Calls body(at, sums) for all parts of the elements [0, n), sums being M vectors to add to; returns the M totals
// over all lanes.
template <class C, int M = 1, bool PAIRS = false, class Body>
RMSNORM_INLINE std::array<double, M> reduce(int64_t n, Body body) {
  constexpr int N = LANES<C>, A = std::max(2, ACCUMULATORS / M);
  constexpr auto whole = [](int64_t i, int count) { return At<C, Part::whole>{i, count}; };
  const auto two = [=](int64_t i, Vec<C>(*sum)[M]) RMSNORM_INLINE_LAMBDA {
    if constexpr (PAIRS)
      body(At<C, Part::even>{i}, sum[0]), body(At<C, Part::odd>{i}, sum[1]);
    else
      body(whole(i, N), sum[0]), body(whole(i + N, N), sum[1]);
  };
  std::array<double, M> total = {};
  if (n <= 2 * A * N) {  // a short row has no work for so many: two keep their sum short (n = 128: 28 -> 19 ns)
    Vec<C> sum[2][M] = {};
    int64_t i = 0;
    for (; i + 2 * N <= n; i += 2 * N) two(i, sum);
    if (i + N <= n) body(whole(i, N), sum[0]), i += N;
    if (i < n) body(whole(i, int(n - i)), sum[1]);
    for (int m = 0; m < M; ++m) total[m] = double(lanes_sum<C>(sum[0][m] + sum[1][m]));
    return total;
  }
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    Vec<C> sum[A][M] = {};
    int64_t i = begin;
    for (; i + A * N <= end; i += A * N)
#pragma GCC unroll 4
      for (int a = 0; a < A; a += 2) two(i + a * N, sum + a);
    for (; i + 2 * N <= end; i += 2 * N) two(i, sum);
    if (i + N <= end) body(whole(i, N), sum[0]), i += N;
    if (i < end) body(whole(i, int(end - i)), sum[1]);
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

}  // namespace rmsnorm
