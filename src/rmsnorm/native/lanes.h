// Loops over the elements of a row, a vector at a time.
//
// Loops over bfloat16 are paired: they take blocks of two vectors, and of a block first the even elements, then the odd
// ones, because bfloat16 converts fastest that way (simd.h). All operands of a paired loop must be in this order. That
// of bfloat16 arrays is established while they are loaded; gains, biases and sums over rows, which are float32, are
// stored in it (paired_index). The elements after the last whole block stay in their usual order.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace rmsnorm {

// Rounding errors of equal terms do not cancel, and a row's squares, or its deviations from its mean, may be equal (those
// of its zeros). Beside one large term all are even rounded in the same direction: a lane's sum of 16 is then off by up
// to 15 half units in the last place, one of 256 by 255. So a lane adds FEW_TERMS, then adds FEW_SUMS of such sums; those
// are added in float64, so that the error of a statistic does not grow with the length of the row.
constexpr int64_t FEW_TERMS = 8, FEW_SUMS = 4;
// A fused multiply-add takes 4 cycles, and two start in every cycle: 8 independent sums keep both units busy.
constexpr int ACCUMULATORS = 8;

template <class T>
constexpr bool PAIRED = std::is_same_v<T, bf16>;

// The index of a row's element in an array that is stored in the order of paired loops. The row has n elements.
inline int64_t paired_index(int64_t element, int64_t n) {
  constexpr int64_t N = LANES<float>;
  const int64_t block = element / (2 * N) * (2 * N), within = element - block;
  return block + 2 * N > n ? element : block + (within % 2) * N + within / 2;
}

// The elements that a loop's body works on: `count` of them from i on, or the even or odd half of the block at i.
enum class Part { whole, even, odd };
template <class C, Part P>
struct Place {
  static constexpr Part part = P;
  int64_t i;
  int count = LANES<C>;

  template <class T>
  RMSNORM_INLINE Vec<C> load(const T* row) const {
    if constexpr (P == Part::whole)
      return rmsnorm::load_n(row + i, count);
    else if constexpr (std::is_same_v<T, C>)
      return rmsnorm::load(row + i + (P == Part::odd ? LANES<C> : 0));
    else
      return P == Part::odd ? promote_odd(load_pairs(row + i)) : promote_even(load_pairs(row + i));
  }
};

// Stores the results of a body: v[0] for a vector, or v[0] and v[1] for the even and odd elements of a block.
template <bool STREAM = false, class T, class C>
RMSNORM_INLINE void store_at(T* row, const Vec<C>* v, Place<C, Part::whole> at) {
  if (STREAM && at.count == LANES<C>)
    stream(row + at.i, v[0]);
  else
    store_n(row + at.i, v[0], at.count);
}
template <bool STREAM = false, class T, class C>
RMSNORM_INLINE void store_at(T* row, const Vec<C>* v, Place<C, Part::even> at, Place<C, Part::odd>) {
  if constexpr (std::is_same_v<T, C>) {
    store(row + at.i, v[0]);
    store(row + at.i + LANES<C>, v[1]);
  } else {
    const VecU32 pairs = demote_even_odd(v[0], v[1]);
    if (STREAM)
      stream(reinterpret_cast<uint32_t*>(row + at.i), pairs);
    else
      std::memcpy(row + at.i, &pairs, sizeof pairs);
  }
}

// Calls body(place) for each vector of the elements [begin, end), of which the last may be a part. If PAIRS, calls
// body(even, odd) for each whole block first; begin must then be the beginning of a block.
template <class C, bool PAIRS = false, class Body>
RMSNORM_INLINE void for_each_place(int64_t begin, int64_t end, Body body) {
  constexpr int N = LANES<C>;
  int64_t i = begin;
  if constexpr (PAIRS) {
#pragma GCC unroll 2
    for (; i + 2 * N <= end; i += 2 * N) body(Place<C, Part::even>{i}, Place<C, Part::odd>{i});
  }
#pragma GCC unroll 4
  for (; i + N <= end; i += N) body(Place<C, Part::whole>{i});
  if (i < end) body(Place<C, Part::whole>{i, int(end - i)});
}

// The same for a body that streams whole vectors to `out`: the first place may be a part, so that the others begin where
// vectors can be streamed to.
template <class C, bool PAIRS = false, class Y, class Body>
RMSNORM_INLINE void for_each_streamed_place(const Y* out, int64_t begin, int64_t end, Body body) {
  constexpr int64_t N = LANES<C>;
  const int64_t past = int64_t(reinterpret_cast<uintptr_t>(out + begin) % (N * sizeof(Y)) / sizeof(Y));
  if (past && begin < end) {
    const int64_t count = std::min(N - past, end - begin);
    body(Place<C, Part::whole>{begin, int(count)});
    begin += count;
  }
  for_each_place<C, PAIRS>(begin, end, body);
}

// Calls body(i, count) for each vector of the elements [begin, end): `count` elements from i on.
template <class C, class Body>
RMSNORM_INLINE void for_each_vector(int64_t begin, int64_t end, Body body) {
  for_each_place<C>(begin, end, [=](auto at) RMSNORM_INLINE_LAMBDA { body(at.i, at.count); });
}

// Calls body(place, sums) for all places of the elements [0, n); the body adds to M vectors, sums[0] to sums[M - 1].
// Returns the M totals over all lanes.
template <class C, int M = 1, bool PAIRS = false, class Body>
RMSNORM_INLINE std::array<double, M> accumulate(int64_t n, Body body) {
  constexpr int N = LANES<C>, A = std::max(2, ACCUMULATORS / M);
  constexpr auto whole = [](int64_t i, int count) { return Place<C, Part::whole>{i, count}; };
  const auto two_vectors = [=](int64_t i, Vec<C>(*sum)[M]) RMSNORM_INLINE_LAMBDA {
    if constexpr (PAIRS)
      body(Place<C, Part::even>{i}, sum[0]), body(Place<C, Part::odd>{i}, sum[1]);
    else
      body(whole(i, N), sum[0]), body(whole(i + N, N), sum[1]);
  };
  std::array<double, M> total = {};
  if (n <= 2 * A * N) {  // a short row does not keep more than two sums busy (n = 128: 28 -> 19 ns)
    Vec<C> sum[2][M] = {};
    int64_t i = 0;
    for (; i + 2 * N <= n; i += 2 * N) two_vectors(i, sum);
    if (i + N <= n) body(whole(i, N), sum[0]), i += N;
    if (i < n) body(whole(i, int(n - i)), sum[1]);
    for (int m = 0; m < M; ++m) total[m] = double(reduce_sum<C>(sum[0][m] + sum[1][m]));
    return total;
  }
  constexpr int64_t SHORT = FEW_TERMS * A * N, LONG = FEW_SUMS * SHORT;
  std::array<double, M> rounded_off = {};  // by the additions to the totals, which float32 sums do not fill
  for (int64_t begin = 0; begin < n; begin += LONG) {
    const int64_t end = std::min(n, begin + LONG);
    Vec<C> sum[A][M] = {}, earlier[M] = {};
    int64_t i = begin;
    const auto add_until = [&](int64_t stop) RMSNORM_INLINE_LAMBDA {
      for (; i + A * N <= stop; i += A * N)
#pragma GCC unroll 4
        for (int a = 0; a < A; a += 2) two_vectors(i + a * N, sum + a);
    };
    const auto gather = [&]() RMSNORM_INLINE_LAMBDA {  // in sum[0]
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 3
        for (int half = A / 2; half > 0; half /= 2)
#pragma GCC unroll 4
          for (int a = 0; a < half; ++a) sum[a][m] += sum[a + half][m];
    };
    while (i + SHORT < end) {
      add_until(i + SHORT);
      gather();
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        earlier[m] += sum[0][m];
#pragma GCC unroll 8
        for (int a = 0; a < A; ++a) sum[a][m] = Vec<C>{};
      }
    }
    add_until(end);
    for (; i + 2 * N <= end; i += 2 * N) two_vectors(i, sum);
    if (i + N <= end) body(whole(i, N), sum[0]), i += N;
    if (i < end) body(whole(i, int(end - i)), sum[1]);
    gather();
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      sum[0][m] += earlier[m];
      const double part = double(reduce_sum<C>(sum[0][m])), before = total[m];
      total[m] += part;
      if (sizeof(C) == 8 && begin > 0) {
        const double added = total[m] - before;
        rounded_off[m] += (before - (total[m] - added)) + (part - added);
      }
    }
  }
  if constexpr (sizeof(C) == 8)
    for (int m = 0; m < M; ++m)
      if (std::isfinite(total[m])) total[m] += rounded_off[m];  // NaN beside an infinite total
  return total;
}

// The length of a row: an int64_t, or a constant.
template <int64_t N>
using Constant = std::integral_constant<int64_t, N>;
template <class Length>
constexpr bool IS_CONSTANT = !std::is_same_v<Length, int64_t>;

constexpr int MOST_VECTORS = 8;  // of a row of constant length

// Calls body(n), with n as a constant if the row has 4, 6 or 8 whole vectors. With AVX-512 these are 64, 96 and 128
// elements, the usual sizes of attention heads. The loops are then unrolled, and have no tails.
template <class C, class Body>
RMSNORM_INLINE void with_length(int64_t n, Body body) {
  constexpr int64_t N = LANES<C>;
  switch (n) {
    case 4 * N: return body(Constant<4 * N>{});
    case 6 * N: return body(Constant<6 * N>{});
    case MOST_VECTORS* N: return body(Constant<MOST_VECTORS * N>{});
    default: return body(n);
  }
}

// for_each_place for a row of constant length; its places are constants too.
template <class C, bool PAIRS, int64_t LENGTH, class Body>
RMSNORM_INLINE void for_each_place(Constant<LENGTH>, Body body) {
  constexpr int N = LANES<C>, STEP = PAIRS ? 2 * N : N;
  const auto all = [&]<size_t... I>(std::index_sequence<I...>) RMSNORM_INLINE_LAMBDA {
    if constexpr (PAIRS)
      (body(Place<C, Part::even>{int64_t(I) * STEP}, Place<C, Part::odd>{int64_t(I) * STEP}), ...);
    else
      (body(Place<C, Part::whole>{int64_t(I) * STEP}), ...);
  };
  all(std::make_index_sequence<LENGTH / STEP>{});
}

}  // namespace rmsnorm
