// RMSNorm with a SiLU gate, forward and backward. What has to be kept of a row between its passes lies in a buffer of
// the computation dtype, in the first cache level, so that the passes of the plain norm serve here too.
#pragma once

#include "batch.h"
#include "passes.h"
#include "transcendental.h"

namespace rmsnorm {

// σ(z) = 1 / (1 + e^−z) and 1 − σ(z) = σ(−z), both without cancellation and without overflow. e^−|z| is the square of
// e^(−|z|/2), so that it ends in subnormal numbers and 0 (the norm may bring such rows back to 1): 2.9 units in the
// last place. σ and 1 − σ are right to 9 halves of such a unit.
template <class C>
struct Logistic {
  Vec<C> at, rest;
  RMSNORM_INLINE explicit Logistic(Vec<C> z) {
    const Vec<C> root = exponential_of<C>((z < C(0) ? z : -z) * C(0.5)), t = root * root;
    const Vec<C> large = C(1) / (C(1) + t), small = t * large;
    at = z < C(0) ? small : large;
    rest = z < C(0) ? large : small;
  }
};

// norm_first: y = (x̂ ⊙ g) ⊙ silu(z).  Else y = ĥ ⊙ g with h = x ⊙ silu(z), not rounded to T in between.
template <class T>
struct GatedForward {
  Tensor<const T> x, z;
  Tensor<T> y;
  Affine<compute_t<T>> affine;
  bool norm_first;
};

template <class T, class C>
RMSNORM_NOINLINE void gate_row(const T* x, const T* z, C* h, int64_t n) {
  sweep<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = get(z + i, count);
    put(h + i, get(x + i, count) * (gate * Logistic<C>(gate).at), count);
  });
}

template <class T, class C>
RMSNORM_NOINLINE void norm_then_gate(Row<T> x, const T* z, T* y, int64_t n, const Statistics<C>& s, const C* g) {
  sweep<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = get(z + i, count);
    Vec<C> v = RMS::normalize(x.template get<true>(i, count), s);
    if (g) v *= get(g + i, count);
    put(y + i, v * (gate * Logistic<C>(gate).at), count);
  });
}

template <class T>
void gated_forward(const Problem& problem, const GatedForward<T>& call) {
  using C = compute_t<T>;
  const int64_t n = problem.n;
  parallel_for(problem.threads, 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    auto x = call.x.from(begin), z = call.z.from(begin);
    auto y = call.y.from(begin);
    Head head(problem, begin);
    const auto h = allocate<C>(call.norm_first ? 0 : n);
    for (int64_t row = begin; row < end; ++row, ++x, ++z, ++y, ++head) {
      const auto affine = call.affine.from(*head * n);
      if (call.norm_first) {
        const auto s = RMS::statistics(*x, n, problem.k, problem.eps);
        norm_then_gate(Row<T>{*x, s.scale}, *z, *y, n, s, affine.g);
      } else {
        gate_row(*x, *z, h.get(), n);
        const auto s = RMS::statistics(h.get(), n, problem.k, problem.eps);
        generic_forward_pass<RMS>(Row<C>{h.get(), s.scale}, *y, n, s, affine);
      }
    }
  });
}

template <class T>
struct GatedBackward {
  Tensor<const T> dy, x, z;
  Tensor<T> dx, dz;
  Affine<compute_t<T>> affine;
  bool norm_first;
  double* dweight;  // heads·n sums, or null
};

// With dh from the norm's backward pass:  dx = dh ⊙ silu(z),  dz = dh ⊙ x ⊙ silu'(z);  silu'(z) = σ (1 + z (1 − σ)).
template <class T, class C>
RMSNORM_NOINLINE void gate_row_backward(const C* dh, const T* x, const T* z, T* dx, T* dz, int64_t n) {
  sweep<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = get(z + i, count), d = get(dh + i, count);
    const Logistic<C> sigma(gate);
    const Vec<C> slope = d * get(x + i, count) * (sigma.at * (C(1) + gate * sigma.rest));
    put(dx + i, d * (gate * sigma.at), count);
    put(dz + i, slope, count);
  });
}

// The gradient u = dy ⊙ silu(z) that reaches the norm, and dz = dy ⊙ x̂ ⊙ g ⊙ silu'(z).
template <class T, class C>
RMSNORM_NOINLINE void norm_then_gate_backward(const T* dy, Row<T> x, const T* z, C* u, T* dz, int64_t n,
                                              const Statistics<C>& s, const C* g) {
  sweep<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = get(z + i, count), d = get(dy + i, count);
    const Logistic<C> sigma(gate);
    Vec<C> v = RMS::normalize(x.template get<true>(i, count), s);
    if (g) v *= get(g + i, count);
    put(u + i, d * (gate * sigma.at), count);
    put(dz + i, d * v * (sigma.at * (C(1) + gate * sigma.rest)), count);
  });
}

template <class T>
void gated_backward_range(const Problem& problem, const GatedBackward<T>& call, int64_t begin, int64_t end,
                          compute_t<T>* dweight) {
  using C = compute_t<T>;
  const int64_t n = problem.n, k = problem.k;
  auto dy = call.dy.from(begin), x = call.x.from(begin), z = call.z.from(begin);
  auto dx = call.dx.from(begin), dz = call.dz.from(begin);
  Head head(problem, begin);
  const auto buffer = allocate<C>(2 * n);
  C *const h = buffer.get(), *const u = h + n;
  for (int64_t row = begin; row < end; ++row, ++dy, ++x, ++z, ++dx, ++dz, ++head) {
    const auto affine = call.affine.from(*head * n);
    C* const sums = dweight ? dweight + *head * n : nullptr;
    if (call.norm_first) {
      const auto s = RMS::statistics(*x, n, k, problem.eps);
      norm_then_gate_backward(*dy, Row<T>{*x, s.scale}, *z, u, *dz, n, s, affine.g);
      generic_backward_pass<RMS>(Row<T>{*x, s.scale}, u, n, k, s, affine, Gradients<T, C>{*dx, nullptr, sums, nullptr},
                                 *x, u);
    } else {
      gate_row(*x, *z, h, n);
      const auto s = RMS::statistics(h, n, k, problem.eps);
      generic_backward_pass<RMS>(Row<C>{h, s.scale}, *dy, n, k, s, affine, Gradients<C, C>{u, nullptr, sums, nullptr},
                                 h, *dy);
      gate_row_backward(u, *x, *z, *dx, *dz, n);
    }
  }
}

template <class T>
void gated_backward(const Problem& problem, const GatedBackward<T>& call) {
  using C = compute_t<T>;
  if (!call.dweight)
    return parallel_for(problem.threads, 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
      gated_backward_range(problem, call, begin, end, nullptr);
    });
  double* const totals[] = {call.dweight};
  sum_over_rows<C>(problem, 1, totals, [&](int64_t begin, int64_t end, C* leaf) {
    gated_backward_range(problem, call, begin, end, leaf);
  });
}

}  // namespace rmsnorm
