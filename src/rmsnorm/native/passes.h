// The element-wise passes over a row whose statistics are known: forward, and backward with its two dot products.
//
// Where all that is of 16 bits is bfloat16 the loops are paired (lanes.h), and so are gain, bias and sums over rows.
//
// The variants that training and inference use are compiled for themselves; GENERIC serves all others by branches
// inside the loop, which costs them a few per cent.
#pragma once

#include "rows.h"

namespace rmsnorm {

enum Variant : unsigned { PLAIN = 0, GAIN = 1, BIAS = 2, DX = 4, DWEIGHT = 8, DBIAS = 16, GENERIC = 32 };

// How x̂ becomes y. g and b are in the computation dtype; a null pointer means absent.
template <class C>
struct Affine {
  const C* g = nullptr;
  const C* b = nullptr;
  bool round_first = false;  // casting="llama": x̂ is rounded to the input's dtype, then each product and sum to y's

  Affine from(int64_t element) const {  // where a head's own gain and bias begin
    return {g ? g + element : nullptr, b ? b + element : nullptr, round_first};
  }
};

template <class Norm, unsigned V, class T, class C, Part P>
RMSNORM_INLINE Vec<C> normalized(Row<T> x, At<C, P> at, const Statistics<C>& s, bool round_first) {
  if constexpr (V & GENERIC) {
    const Vec<C> v = Norm::normalize(x.template get<true>(at), s);
    return round_first ? round_to<T>(v) : v;
  } else {
    return Norm::normalize(x.template get<false>(at), s);
  }
}

// y = x̂ ⊙ g + b
template <class Norm, unsigned V, bool STREAM, class T, class Y, class C>
RMSNORM_INLINE void forward_pass(Row<T> x, Y* y, int64_t n, const Statistics<C> s, const Affine<C> affine) {
  const C *g = affine.g, *b = affine.b;
  const bool round_first = affine.round_first;
  const auto value = [=](auto at) RMSNORM_INLINE_LAMBDA {
    Vec<C> v = normalized<Norm, V>(x, at, s, round_first);
    if ((V & GENERIC) ? g != nullptr : bool(V & GAIN)) v *= at.get(g);
    if ((V & GENERIC) ? b != nullptr : bool(V & BIAS)) {
      if ((V & GENERIC) && round_first) v = unfused(round_to<Y>(v));
      v += at.get(b);
    }
    return v;
  };
  sweep_at<C, PAIRED<T> && PAIRED<Y>>(0, n, [=](auto... at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v[] = {value(at)...};
    put_at<STREAM>(y, v, at...);
  });
}

// Compiled once, not into each of its callers: they are many, and this is the rare way.
template <class Norm, class T, class Y, class C>
RMSNORM_NOINLINE void generic_forward_pass(Row<T> x, Y* y, int64_t n, const Statistics<C>& s, const Affine<C>& affine) {
  forward_pass<Norm, GENERIC, false>(x, y, n, s, affine);
}

// Where a row's gradients go; null pointers are not wanted.
template <class T, class C>
struct Gradients {
  T* dx;
  const T* plus;  // the gradient that reaches the row by another way (add_rms_norm's residual), added to dx
  C* dweight;     // accumulated over rows
  C* dbias;
};

// What u = g ⊙ dy and x̂ have in common: along = ⟨u, x̂⟩/k and, where rows are centred, level = mean(u).
template <class C>
struct Projection {
  C along = 0, level = 0;
};

template <class Norm, unsigned V, class T, class D, class C>
RMSNORM_INLINE Projection<C> project(Row<T> x, const D* dy, int64_t n, int64_t k, const Statistics<C> s, const C* g) {
  const bool with_g = (V & GENERIC) ? g != nullptr : bool(V & GAIN);
  const auto [dot, sum] = reduce<C, 2, PAIRED<T> && PAIRED<D>>(n, [=](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
    Vec<C> u = at.get(dy);
    if (with_g) u *= at.get(g);
    Vec<C> xhat = normalized<Norm, V>(x, at, s, false);
    if (Norm::centred) xhat = keep_first<C>(xhat, at.count);  // beyond the row: −mean·rstd, which may be infinite
    total[0] += u * xhat;
    if (Norm::centred) total[1] += u;
  });
  return {C(dot / double(k)), C(sum / double(n))};
}

// RMSNorm's statistics and projections of up to a GROUP of rows, each from one sweep, so that x is read once less. Not
// usual[i], and nothing else said of the row: a sum has left the normal range.
template <bool WITH_G, class T, class D, class C>
RMSNORM_NOINLINE void statistics_and_projections(const T* const* x, const D* const* dy, const C* const* gain,
                                                 int64_t count, int64_t n, double eps, Statistics<C>* s,
                                                 Projection<C>* projection, bool* usual) {
  constexpr bool pairs = PAIRED<T> && PAIRED<D>;
  double squares[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1}, dots[GROUP] = {}, rstd[GROUP], along[GROUP];
  for (int64_t row = 0; row < count; ++row) {
    const auto sums = reduce<C, 2, pairs>(n, [x = x[row], dy = dy[row], g = gain[row]](auto at, Vec<C>* total)
                                                 RMSNORM_INLINE_LAMBDA {
      const Vec<C> v = at.get(x);
      Vec<C> u = at.get(dy);
      if (WITH_G) u *= at.get(g);
      total[0] += v * v;
      total[1] += u * v;
    });
    squares[row] = sums[0], dots[row] = sums[1];
  }
  const auto finish = [&](int64_t row) RMSNORM_INLINE_LAMBDA {
    rstd[row] = double(C(1 / std::sqrt(squares[row] / double(n) + eps)));
    along[row] = dots[row] * rstd[row] / double(n);
  };
  if (count == 1)
    finish(0);
  else  // all, so that it becomes vectors
    for (int64_t row = 0; row < GROUP; ++row) finish(row);
  for (int64_t row = 0; row < count; ++row) {
    // Products of small x and small dy vanish where those of x̂ would not; a large eps makes the dot product count for nothing.
    const bool vanished =
        eps < range<C>::enough_eps && std::abs(dots[row]) < range<C>::smallest_square * double(n);
    usual[row] = !left_the_range<C>(squares[row], n, eps) && std::isfinite(dots[row]) && !vanished;
    s[row] = {};
    s[row].rstd = C(rstd[row]);
    projection[row].along = C(along[row]);
  }
}

// With u = g ⊙ dy:  dx = rstd·scale·(u − m ⊙ x̂·along − level·[centred]),  m the mask of the first k,
//                   dweight += dy ⊙ x̂,  dbias += dy.
// The next row is fetched meanwhile: this pass finds its own row in the first cache level.
template <class Norm, unsigned V, class T, class D, class C>
RMSNORM_INLINE void backward_pass(Row<T> x, const D* dy, int64_t n, int64_t k, const Statistics<C> s,
                                  const Projection<C> projection, const Affine<C> affine, const Gradients<T, C> out,
                                  const T* next_x, const D* next_dy) {
  const C* g = affine.g;
  const bool with_g = (V & GENERIC) ? g != nullptr : bool(V & GAIN);
  const bool with_dx = (V & GENERIC) ? out.dx != nullptr : bool(V & DX);
  const C rstd = (V & GENERIC) ? s.rstd * s.scale : s.rstd;
  const C level = projection.level;
  const bool round_first = affine.round_first;
  const bool with_dweight = (V & GENERIC) ? out.dweight != nullptr : bool(V & DWEIGHT);
  const bool with_dbias = (V & GENERIC) ? out.dbias != nullptr : bool(V & DBIAS);
  struct Parts {
    Vec<C> dx, dweight, dbias;
  };
  // along: of the elements beyond the first k it is 0, and inside(x̂) too, for x̂ · 0 is NaN where x̂ is infinite.
  const auto parts = [=](auto at, Vec<C> along, auto inside) RMSNORM_INLINE_LAMBDA {
    const Vec<C> d = at.get(dy);
    const Vec<C> xhat = normalized<Norm, V>(x, at, s, false);
    Parts found = {};
    if (with_dweight) {
      const Vec<C> seen = (V & GENERIC) && round_first ? round_to<T>(xhat) : xhat;
      found.dweight = at.get(out.dweight) + d * seen;
    }
    if (with_dbias) found.dbias = at.get(out.dbias) + d;
    if (with_dx) {
      Vec<C> dx = (with_g ? d * at.get(g) : d) - inside(xhat) * along;
      if (Norm::centred) dx -= level;
      dx *= rstd;
      if ((V & GENERIC) && out.plus) dx += at.get(out.plus);
      found.dx = dx;
    }
    return found;
  };
  const auto all = [](Vec<C> xhat) RMSNORM_INLINE_LAMBDA { return xhat; };
  const auto none = [](Vec<C>) RMSNORM_INLINE_LAMBDA { return Vec<C>{}; };
  // All loads come before the stores: rows of 4 KiB lie at one offset of their pages, and a load behind a store
  // to the same offset of another page waits for it.
  const auto write = [=](const auto& found, auto... at) RMSNORM_INLINE_LAMBDA {
    const auto each = [&](auto member) RMSNORM_INLINE_LAMBDA {
      std::array<Vec<C>, sizeof...(at)> v;
      for (size_t i = 0; i < sizeof...(at); ++i) v[i] = found[i].*member;
      return v;
    };
    if (with_dx) put_at(out.dx, each(&Parts::dx).data(), at...);
    if (with_dweight) put_at(out.dweight, each(&Parts::dweight).data(), at...);
    if (with_dbias) put_at(out.dbias, each(&Parts::dbias).data(), at...);
  };
  const auto elements = [=](C along, auto inside) RMSNORM_INLINE_LAMBDA {
    return [=](auto first, auto... second) RMSNORM_INLINE_LAMBDA {
      __builtin_prefetch(next_x + first.i, 0, 2);
      __builtin_prefetch(next_dy + first.i, 0, 2);
      const Parts found[] = {parts(first, splat<C>(along), inside), parts(second, splat<C>(along), inside)...};
      write(found, first, second...);
    };
  };
  constexpr bool pairs = PAIRED<T> && PAIRED<D>;
  if constexpr (pairs) {
    constexpr int64_t N = LANES<C>;
    const int64_t block = k / (2 * N) * (2 * N);
    if (k < n && block + 2 * N <= n) {  // the block in which the first k elements end is of both kinds
      const auto masked = [=](int64_t odd) RMSNORM_INLINE_LAMBDA {
        return [=](Vec<C> v) RMSNORM_INLINE_LAMBDA {
          for (int64_t lane = 0; lane < N; ++lane) v[lane] = block + 2 * lane + odd < k ? v[lane] : 0;
          return v;
        };
      };
      sweep_at<C, true>(0, block, elements(projection.along, all));
      const At<C, Part::even> even{block};
      const At<C, Part::odd> odd{block};
      const auto of_even = masked(0), of_odd = masked(1);
      const Vec<C> along = splat<C>(projection.along);
      const Parts found[] = {parts(even, of_even(along), of_even), parts(odd, of_odd(along), of_odd)};
      write(found, even, odd);
      sweep_at<C, true>(block + 2 * N, n, elements(0, none));
      return;
    }
  }
  sweep_at<C, pairs>(0, k, elements(projection.along, all));
  if (k < n) sweep_at<C>(k, n, elements(0, none));
}

template <class Norm, class T, class D, class C>
RMSNORM_NOINLINE void generic_backward_pass(Row<T> x, const D* dy, int64_t n, int64_t k, const Statistics<C>& s,
                                            const Affine<C>& affine, const Gradients<T, C>& out, const T* next_x,
                                            const D* next_dy) {
  Projection<C> projection;
  if (out.dx) projection = project<Norm, GENERIC>(x, dy, n, k, s, affine.g);
  backward_pass<Norm, GENERIC>(x, dy, n, k, s, projection, affine, out, next_x, next_dy);
}

}  // namespace rmsnorm
