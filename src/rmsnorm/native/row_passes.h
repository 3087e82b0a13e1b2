// The element-wise passes over a row whose statistics are known: forward, and backward with its two dot products.
//
// If all 16-bit operands are bfloat16, the loops are paired (lanes.h); gains, biases and sums over rows then are too.
//
// The variants that training and inference use most are compiled one by one. GENERIC serves all others by branches
// inside the loop, which cost a few per cent.
#pragma once

#include "statistics.h"

namespace rmsnorm {

// STREAM: y or dx goes past the caches.
enum Variant : unsigned { PLAIN = 0, GAIN = 1, BIAS = 2, DX = 4, DWEIGHT = 8, DBIAS = 16, GENERIC = 32, STREAM = 64 };

// Visits the elements [begin, end) of a row. STREAM: the body streams to `out`.
template <unsigned V, class C, bool PAIRS, class Y, class Body>
RMSNORM_INLINE void for_each_place_of(const Y* out, int64_t begin, int64_t end, Body body) {
  if constexpr (V & STREAM)
    for_each_streamed_place<C, PAIRS>(out, begin, end, body);
  else
    for_each_place<C, PAIRS>(begin, end, body);
}

// y = x̂ ⊙ gain + bias, both in the computation dtype; null: none.
template <class C>
struct Affine {
  const C* gain = nullptr;
  const C* bias = nullptr;
  bool round_first = false;  // casting="llama": x̂ is rounded to the input's dtype, then each product and sum to y's

  Affine from(int64_t element) const {
    return {gain ? gain + element : nullptr, bias ? bias + element : nullptr, round_first};
  }
};

template <class Norm, unsigned V, class T, class C, Part P>
RMSNORM_INLINE Vec<C> normalized(ScaledRow<T> x, Place<C, P> at, const Statistics<C>& s, bool round_first) {
  if constexpr (V & GENERIC) {
    const Vec<C> v = Norm::normalize(x.template load<true>(at), s);
    return round_first ? round_to<T>(v) : v;
  } else {
    return Norm::normalize(x.template load<false>(at), s);
  }
}

template <class Norm, unsigned V, class Length, class T, class Y, class C>
RMSNORM_INLINE void normalize_row(ScaledRow<T> x, Y* y, Length n, const Statistics<C> s, const Affine<C> affine) {
  const C *gain = affine.gain, *bias = affine.bias;
  const bool round_first = affine.round_first;
  const auto value = [=](auto at) RMSNORM_INLINE_LAMBDA {
    Vec<C> v = normalized<Norm, V>(x, at, s, round_first);
    if ((V & GENERIC) ? gain != nullptr : bool(V & GAIN)) v *= at.load(gain);
    if ((V & GENERIC) ? bias != nullptr : bool(V & BIAS)) {
      if ((V & GENERIC) && round_first) v = unfused(round_to<Y>(v));
      v += at.load(bias);
    }
    return v;
  };
  const auto write = [=](auto... at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v[] = {value(at)...};
    store_at<bool(V & STREAM)>(y, v, at...);
  };
  if constexpr (IS_CONSTANT<Length>)
    for_each_place<C, PAIRED<T> && PAIRED<Y>>(n, write);
  else
    for_each_place_of<V, C, PAIRED<T> && PAIRED<Y>>(y, 0, n, write);
}

// Not inlined: it has many callers, and none of them is a hot loop.
template <class Norm, class T, class Y, class C>
RMSNORM_NOINLINE void normalize_row_generic(ScaledRow<T> x, Y* y, int64_t n, const Statistics<C>& s,
                                            const Affine<C>& affine) {
  normalize_row<Norm, GENERIC>(x, y, n, s, affine);
}

// What the backward pass of a row reads, and the next row's addresses, which it prefetches.
template <class T, class D>
struct BackwardInputs {
  ScaledRow<T> x;
  const D* dy;
  const T* next_x;
  const D* next_dy;
};

// Where the gradients of a row go; null: not wanted.
template <class T, class C>
struct Gradients {
  T* dx;
  const T* plus;  // added to dx: the gradient that reaches the row of add_rms_norm through its sum, or null
  C* dweight;     // summed over rows
  C* dbias;       // summed over rows
};

// The projections of u = gain ⊙ dy that the norm removes: along_xhat = ⟨u, x̂⟩/k, and mean = mean(u) if rows are
// centred.
template <class C>
struct Projection {
  C along_xhat = 0, mean = 0;
};

template <class Norm, unsigned V, class T, class D, class C>
RMSNORM_INLINE Projection<C> project(const BackwardInputs<T, D>& in, const NormSpec& spec, const Statistics<C> s,
                                     const C* gain) {
  const bool with_gain = (V & GENERIC) ? gain != nullptr : bool(V & GAIN);
  const auto [dot, sum] = accumulate<C, 2, (PAIRED<T> && PAIRED<D>)>(
      spec.n, [=, x = in.x, dy = in.dy](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
        Vec<C> u = at.load(dy);
        if (with_gain) u *= at.load(gain);
        Vec<C> xhat = normalized<Norm, V>(x, at, s, false);
        // Lanes after the end of the row hold −mean·rstd, which may be infinite.
        if (Norm::centred) xhat = zero_after<C>(xhat, at.count);
        total[0] += u * xhat;
        if (Norm::centred) total[1] += u;
      });
  return {C(dot / double(spec.k)), C(sum / double(spec.n))};
}

// Up to GROUP rows of RMSNorm's backward pass.
template <class T, class D>
struct RowGroup {
  using C = compute_t<T>;
  int64_t count;
  const T* x[GROUP + 1];   // the last: the row after the group, which is prefetched
  const D* dy[GROUP + 1];  // the same
  const C* gain[GROUP];
  int64_t parameter_offset[GROUP];  // where the gain and bias of the row's head begin
  Statistics<C> statistics[GROUP];
  Projection<C> projection[GROUP];
  bool usual[GROUP] = {};  // whether statistics and projection are set
  bool all_usual() const {
    return std::all_of(usual, usual + count, [](bool is) { return is; });
  }
};

// Computes the statistics and projection of each row in one sweep, which saves reading x once more. usual[i] is false,
// and the row's statistics and projection are not usable, if a sum left the normal range.
template <bool WITH_GAIN, class T, class D>
RMSNORM_NOINLINE void statistics_and_projections(RowGroup<T, D>& group, const NormSpec& spec) {
  using C = compute_t<T>;
  const int64_t n = spec.n;
  const double eps = spec.eps;
  double squares[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1}, dots[GROUP] = {}, rstd[GROUP], along_xhat[GROUP];
  for (int64_t row = 0; row < group.count; ++row) {
    const auto sums = accumulate<C, 2, (PAIRED<T> && PAIRED<D>)>(
        n,
        [x = group.x[row], dy = group.dy[row], gain = group.gain[row]](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
          const Vec<C> v = at.load(x);
          Vec<C> u = at.load(dy);
          if (WITH_GAIN) u *= at.load(gain);
          total[0] += v * v;
          total[1] += u * v;
        });
    squares[row] = sums[0], dots[row] = sums[1];
  }
  const auto finish = [&](int64_t row) RMSNORM_INLINE_LAMBDA {
    rstd[row] = double(C(1 / std::sqrt(squares[row] / double(n) + eps)));
    along_xhat[row] = dots[row] * rstd[row] / double(n);
  };
  if (group.count == 1)
    finish(0);
  else  // a fixed number of rows becomes vector instructions
    for (int64_t row = 0; row < GROUP; ++row) finish(row);
  for (int64_t row = 0; row < group.count; ++row) {
    // Products of small x and small dy underflow where those of x̂ would not. Beside a dominant eps they do not count.
    const bool underflowed =
        eps < NormalRange<C>::dominant_eps && std::abs(dots[row]) < NormalRange<C>::smallest_square * double(n);
    group.usual[row] = !left_normal_range<C>(squares[row], n, eps) && std::isfinite(dots[row]) && !underflowed;
    group.statistics[row] = {};
    group.statistics[row].rstd = C(rstd[row]);
    group.projection[row].along_xhat = C(along_xhat[row]);
  }
}

// With u = gain ⊙ dy, and m = 1 for the first k elements and 0 for the others:
//   dx = rstd·scale·(u − m ⊙ x̂·along_xhat − mean(u) [if centred]),  dweight += dy ⊙ x̂,  dbias += dy.
// The next row is prefetched during this pass, which finds its own row in the first-level cache.
template <class Norm, unsigned V, class T, class D, class C>
RMSNORM_INLINE void backward_row(const BackwardInputs<T, D>& in, const NormSpec& spec, const Statistics<C> s,
                                 const Projection<C> projection, const Affine<C> affine, const Gradients<T, C> out) {
  const ScaledRow<T> x = in.x;
  const D *dy = in.dy, *next_dy = in.next_dy;
  const T* next_x = in.next_x;
  const int64_t n = spec.n, k = spec.k;
  const C* gain = affine.gain;
  const bool with_gain = (V & GENERIC) ? gain != nullptr : bool(V & GAIN);
  const bool with_dx = (V & GENERIC) ? out.dx != nullptr : bool(V & DX);
  const C rstd = (V & GENERIC) ? s.rstd * s.scale : s.rstd;
  const C mean = projection.mean;
  const bool round_first = affine.round_first;
  const bool with_dweight = (V & GENERIC) ? out.dweight != nullptr : bool(V & DWEIGHT);
  const bool with_dbias = (V & GENERIC) ? out.dbias != nullptr : bool(V & DBIAS);
  struct Results {
    Vec<C> dx, dweight, dbias;
  };
  // mask(v) is v in the first k elements and 0 in the others. It is applied to x̂, not only to along_xhat, because
  // x̂ · 0 is NaN if x̂ is infinite.
  const auto compute = [=](auto at, Vec<C> along_xhat, auto mask) RMSNORM_INLINE_LAMBDA {
    const Vec<C> d = at.load(dy);
    const Vec<C> xhat = normalized<Norm, V>(x, at, s, false);
    Results results = {};
    if (with_dweight) {
      const Vec<C> rounded = (V & GENERIC) && round_first ? round_to<T>(xhat) : xhat;
      results.dweight = at.load(out.dweight) + d * rounded;
    }
    if (with_dbias) results.dbias = at.load(out.dbias) + d;
    if (with_dx) {
      Vec<C> dx = (with_gain ? d * at.load(gain) : d) - mask(xhat) * along_xhat;
      if (Norm::centred) dx -= mean;
      dx *= rstd;
      if ((V & GENERIC) && out.plus) dx += at.load(out.plus);
      results.dx = dx;
    }
    return results;
  };
  const auto all = [](Vec<C> xhat) RMSNORM_INLINE_LAMBDA { return xhat; };
  const auto none = [](Vec<C>) RMSNORM_INLINE_LAMBDA { return Vec<C>{}; };
  // All loads come before the stores: rows of 4 KiB begin at the same offset of their pages, and a load that follows a
  // store to the same offset of another page waits for it.
  const auto write = [=](const auto& results, auto... at) RMSNORM_INLINE_LAMBDA {
    const auto each = [&](auto member) RMSNORM_INLINE_LAMBDA {
      std::array<Vec<C>, sizeof...(at)> v;
      for (size_t i = 0; i < sizeof...(at); ++i) v[i] = results[i].*member;
      return v;
    };
    if (with_dx) store_at<bool(V & STREAM)>(out.dx, each(&Results::dx).data(), at...);
    if (with_dweight) store_at(out.dweight, each(&Results::dweight).data(), at...);
    if (with_dbias) store_at(out.dbias, each(&Results::dbias).data(), at...);
  };
  const auto elements = [=](C along_xhat, auto mask) RMSNORM_INLINE_LAMBDA {
    return [=](auto first, auto... second) RMSNORM_INLINE_LAMBDA {
      __builtin_prefetch(next_x + first.i, 0, 2);
      __builtin_prefetch(next_dy + first.i, 0, 2);
      const Results results[] = {compute(first, set<C>(along_xhat), mask),
                                 compute(second, set<C>(along_xhat), mask)...};
      write(results, first, second...);
    };
  };
  constexpr bool pairs = PAIRED<T> && PAIRED<D>;
  if constexpr (pairs) {
    constexpr int64_t N = LANES<C>;
    const int64_t block = k / (2 * N) * (2 * N);
    if (k < n && block + 2 * N <= n) {  // this block holds both masked and unmasked elements
      const auto mask_of = [=](int64_t odd) RMSNORM_INLINE_LAMBDA {
        return [=](Vec<C> v) RMSNORM_INLINE_LAMBDA {
          for (int64_t lane = 0; lane < N; ++lane) v[lane] = block + 2 * lane + odd < k ? v[lane] : 0;
          return v;
        };
      };
      for_each_place_of<V, C, true>(out.dx, 0, block, elements(projection.along_xhat, all));
      const Place<C, Part::even> even{block};
      const Place<C, Part::odd> odd{block};
      const auto even_mask = mask_of(0), odd_mask = mask_of(1);
      const Vec<C> along_xhat = set<C>(projection.along_xhat);
      const Results results[] = {compute(even, even_mask(along_xhat), even_mask),
                                 compute(odd, odd_mask(along_xhat), odd_mask)};
      write(results, even, odd);
      for_each_place_of<V, C, true>(out.dx, block + 2 * N, n, elements(0, none));
      return;
    }
  }
  for_each_place_of<V, C, pairs>(out.dx, 0, k, elements(projection.along_xhat, all));
  if (k < n) for_each_place_of<V, C, false>(out.dx, k, n, elements(0, none));
}

// backward_row for a group of usual rows of constant length with one gain: dweight stays in registers.
template <unsigned V, class Length, class T, class D, class C>
RMSNORM_INLINE void backward_group(const RowGroup<T, D>& group, Length n, const C* gain, T* const* dx, C* dweight) {
  constexpr int N = LANES<C>, VECTORS = Length::value / N;
  // Where dx is streamed, x and dy are in no cache either: the next group is prefetched, where it would be if all rows
  // were equally far apart.
  const int64_t next_x = GROUP * (group.x[1] - group.x[0]), next_dy = GROUP * (group.dy[1] - group.dy[0]);
  Vec<C> sums[VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) sums[i] = load(dweight + i * N);
  for (int64_t row = 0; row < group.count; ++row) {
    const T* const x = group.x[row];
    const D* const dy = group.dy[row];
    const C rstd = group.statistics[row].rstd, along_xhat = group.projection[row].along_xhat;
    const auto compute = [&](auto at) RMSNORM_INLINE_LAMBDA {
      const Vec<C> d = at.load(dy), xhat = at.load(x) * rstd;
      sums[at.i / N + (at.part == Part::odd)] += d * xhat;
      return (d * at.load(gain) - xhat * along_xhat) * rstd;
    };
    for_each_place<C, PAIRED<T> && PAIRED<D>>(n, [&](auto first, auto... second) RMSNORM_INLINE_LAMBDA {
      if (V & STREAM) __builtin_prefetch(x + next_x + first.i, 0, 2), __builtin_prefetch(dy + next_dy + first.i, 0, 2);
      const Vec<C> v[] = {compute(first), compute(second)...};
      store_at<bool(V & STREAM)>(dx[row], v, first, second...);
    });
  }
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) store(dweight + i * N, sums[i]);
}

template <class Norm, class T, class D, class C>
RMSNORM_NOINLINE void backward_row_generic(const BackwardInputs<T, D>& in, const NormSpec& spec, const Statistics<C>& s,
                                           const Affine<C>& affine, const Gradients<T, C>& out) {
  Projection<C> projection;
  if (out.dx) projection = project<Norm, GENERIC>(in, spec, s, affine.gain);
  backward_row<Norm, GENERIC>(in, spec, s, projection, affine, out);
}

}  // namespace rmsnorm
