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

// With u = g ⊙ dy:  dx = rstd·scale·(u − m ⊙ x̂·⟨u, x̂⟩/k − mean(u)·[centred]),  m the mask of the first k,
//                   dweight += dy ⊙ x̂,  dbias += dy.
template <class Norm, unsigned V, class T, class D, class C>
RMSNORM_INLINE void backward_pass(Row<T> x, const D* dy, int64_t n, int64_t k, const Statistics<C> s,
                                  const Affine<C> affine, const Gradients<T, C> out) {
  const C* g = affine.g;
  const bool with_g = (V & GENERIC) ? g != nullptr : bool(V & GAIN);
  const bool with_dx = (V & GENERIC) ? out.dx != nullptr : bool(V & DX);
  C along = 0, level = 0;  // ⟨u, x̂⟩/k and mean(u)
  if (with_dx) {
    const auto [dot, sum] = reduce<C, 2>(n, [=](int64_t i, Vec<C>* total, int count) RMSNORM_INLINE_LAMBDA {
      Vec<C> u = get(dy + i, count);
      if (with_g) u *= get(g + i, count);
      total[0] += u * normalized<Norm, V>(x, i, count, s, false);
      if (Norm::centred) total[1] += u;
    });
    along = C(dot / double(k));
    level = C(sum / double(n));
  }
  const C rstd = (V & GENERIC) ? s.rstd * s.scale : s.rstd;
  const bool round_first = affine.round_first;
  const auto elements = [=](C along) RMSNORM_INLINE_LAMBDA {
    return [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
      const Vec<C> d = get(dy + i, count);
      const Vec<C> xhat = normalized<Norm, V>(x, i, count, s, false);
      if ((V & GENERIC) ? out.dweight != nullptr : bool(V & DWEIGHT)) {
        const Vec<C> seen = (V & GENERIC) && round_first ? round_to<T>(xhat) : xhat;
        put(out.dweight + i, get(out.dweight + i, count) + d * seen, count);
      }
      if ((V & GENERIC) ? out.dbias != nullptr : bool(V & DBIAS))
        put(out.dbias + i, get(out.dbias + i, count) + d, count);
      if (!with_dx) return;
      Vec<C> u = with_g ? d * get(g + i, count) : d;
      u -= xhat * along;
      if (Norm::centred) u -= level;
      u *= rstd;
      if ((V & GENERIC) && out.plus) u += get(out.plus + i, count);
      put(out.dx + i, u, count);
    };
  };
  sweep<C>(0, k, elements(along));
  if (k < n) sweep<C>(k, n, elements(0));
}

template <class Norm, class T, class D, class C>
RMSNORM_NOINLINE void generic_backward_pass(Row<T> x, const D* dy, int64_t n, int64_t k, const Statistics<C>& s,
                                            const Affine<C>& affine, const Gradients<T, C>& out) {
  backward_pass<Norm, GENERIC>(x, dy, n, k, s, affine, out);
}

}  // namespace rmsnorm
