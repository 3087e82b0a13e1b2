// The element-wise passes over a row whose statistics are known: forward, and backward with its two dot products.
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

template <class Norm, unsigned V, class T, class C>
RMSNORM_INLINE Vec<C> normalized(Row<T> x, int64_t i, int count, const Statistics<C>& s, bool round_first) {
  if constexpr (V & GENERIC) {
    const Vec<C> v = Norm::normalize(x.template get<true>(i, count), s);
    return round_first ? round_to<T>(v) : v;
  } else {
    return Norm::normalize(x.template get<false>(i, count), s);
  }
}

// y = x̂ ⊙ g + b
template <class Norm, unsigned V, bool STREAM, class T, class Y, class C>
RMSNORM_INLINE void forward_pass(Row<T> x, Y* y, int64_t n, const Statistics<C> s, const Affine<C> affine) {
  const C *g = affine.g, *b = affine.b;
  const bool round_first = affine.round_first;
  sweep<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> v = normalized<Norm, V>(x, i, count, s, round_first);
    if ((V & GENERIC) ? g != nullptr : bool(V & GAIN)) v *= get(g + i, count);
    if ((V & GENERIC) ? b != nullptr : bool(V & BIAS)) {
      if ((V & GENERIC) && round_first) v = unfused(round_to<Y>(v));
      v += get(b + i, count);
    }
    if (STREAM && count == LANES<C>)
      stream(y + i, v);
    else
      put(y + i, v, count);
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
  const auto [dot, sum] = reduce<C, 2>(n, [=](int64_t i, Vec<C>* total, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> u = get(dy + i, count);
    if (with_g) u *= get(g + i, count);
    total[0] += u * normalized<Norm, V>(x, i, count, s, false);
    if (Norm::centred) total[1] += u;
  });
  return {C(dot / double(k)), C(sum / double(n))};
}

// RMSNorm's statistic and projection in one sweep: x is read once less. false, and nothing said, if a sum leaves the
// normal range.
template <bool WITH_G, class T, class D, class C>
RMSNORM_NOINLINE bool statistic_and_projection(const T* x, const D* dy, const C* g, int64_t n, double eps,
                                               Statistics<C>& s, Projection<C>& projection) {
  const auto [squares, dot] = reduce<C, 2>(n, [=](int64_t i, Vec<C>* total, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = get(x + i, count);
    Vec<C> u = get(dy + i, count);
    if (WITH_G) u *= get(g + i, count);
    total[0] += v * v;
    total[1] += u * v;
  });
  if (left_the_range<C>(squares, n, eps) || !std::isfinite(dot)) return false;
  s = {};
  s.rstd = C(reciprocal_root(squares / double(n), eps, 1));
  projection.along = C(dot * double(s.rstd) / double(n));
  return true;
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
  const auto elements = [=](C along) RMSNORM_INLINE_LAMBDA {
    return [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
      __builtin_prefetch(next_x + i, 0, 2);
      __builtin_prefetch(next_dy + i, 0, 2);
      // All loads come before the stores: rows of 4 KiB lie at one offset of their pages, and a load behind a store
      // to the same offset of another page waits for it.
      const bool with_dweight = (V & GENERIC) ? out.dweight != nullptr : bool(V & DWEIGHT);
      const bool with_dbias = (V & GENERIC) ? out.dbias != nullptr : bool(V & DBIAS);
      const Vec<C> d = get(dy + i, count);
      const Vec<C> xhat = normalized<Norm, V>(x, i, count, s, false);
      Vec<C> dweight = {}, dbias = {}, dx = {};
      if (with_dweight) {
        const Vec<C> seen = (V & GENERIC) && round_first ? round_to<T>(xhat) : xhat;
        dweight = get(out.dweight + i, count) + d * seen;
      }
      if (with_dbias) dbias = get(out.dbias + i, count) + d;
      if (with_dx) {
        dx = (with_g ? d * get(g + i, count) : d) - xhat * along;
        if (Norm::centred) dx -= level;
        dx *= rstd;
        if ((V & GENERIC) && out.plus) dx += get(out.plus + i, count);
        put(out.dx + i, dx, count);
      }
      if (with_dweight) put(out.dweight + i, dweight, count);
      if (with_dbias) put(out.dbias + i, dbias, count);
    };
  };
  sweep<C>(0, k, elements(projection.along));
  if (k < n) sweep<C>(k, n, elements(0));
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
