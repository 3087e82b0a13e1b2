// RMSNorm with a SiLU gate, forward and backward. Between the gate and the norm a row is kept in a buffer of the
// computation dtype, which fits the first-level cache, so the passes of the plain norm serve here too.
#pragma once

#include "batch.h"
#include "row_passes.h"
#include "transcendental.h"

namespace rmsnorm {

// σ(z) = 1 / (1 + e^−z) and 1 − σ(z) = σ(−z), both without cancellation or overflow. e^−|z| is computed as the square
// of e^(−|z|/2), to 2.9 units in the last place, so that it reaches subnormal numbers and 0: the norm may scale rows of
// such numbers back to 1. σ and 1 − σ have errors of at most 4.5 units in the last place.
template <class C>
struct Logistic {
  Vec<C> sigma, one_minus_sigma;
  RMSNORM_INLINE explicit Logistic(Vec<C> z) {
    const Vec<C> root = exponential<C>((z < C(0) ? z : -z) * C(0.5)), t = root * root;
    const Vec<C> large = C(1) / (C(1) + t), small = t * large;
    sigma = z < C(0) ? small : large;
    one_minus_sigma = z < C(0) ? large : small;
  }
};

// norm_first: y = (x̂ ⊙ gain) ⊙ silu(z).  Else y = ĥ ⊙ gain with h = x ⊙ silu(z), which is not rounded to T.
template <class T>
struct GatedForwardTensors {
  Tensor<const T> x, z;
  Tensor<T> y;
  Affine<compute_t<T>> affine;  // in the order of paired loops if norm_first and T is bfloat16
  bool norm_first;
};

template <class T, class C>
RMSNORM_NOINLINE void gate_row(const T* x, const T* z, C* h, int64_t n) {
  for_each_vector<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = load_n(z + i, count);
    store_n(h + i, load_n(x + i, count) * (gate * Logistic<C>(gate).sigma), count);
  });
}

template <class T, class C>
RMSNORM_NOINLINE void norm_then_gate(ScaledRow<T> x, const T* z, T* y, int64_t n, const Statistics<C>& s,
                                     const C* gain) {
  const auto value = [=, &s](auto at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = at.load(z);
    Vec<C> v = RMS::normalize(x.template load<true>(at), s);
    if (gain) v *= at.load(gain);
    return v * (gate * Logistic<C>(gate).sigma);
  };
  for_each_place<C, PAIRED<T>>(0, n, [=](auto... at) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v[] = {value(at)...};
    store_at(y, v, at...);
  });
}

template <class T>
void gated_forward_tensor(const Problem& problem, const GatedForwardTensors<T>& tensors) {
  using C = compute_t<T>;
  const int64_t n = problem.spec.n;
  parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    auto x = tensors.x.from(begin), z = tensors.z.from(begin);
    auto y = tensors.y.from(begin);
    Head head(problem, begin);
    const auto h = allocate<C>(tensors.norm_first ? 0 : n);
    for (int64_t row = begin; row < end; ++row, ++x, ++z, ++y, ++head) {
      const auto affine = tensors.affine.from(*head * n);
      if (tensors.norm_first) {
        const auto s = RMS::statistics(*x, problem.spec);
        norm_then_gate(ScaledRow<T>{*x, s.scale}, *z, *y, n, s, affine.gain);
      } else {
        gate_row(*x, *z, h.get(), n);
        const auto s = RMS::statistics(h.get(), problem.spec);
        normalize_row_generic<RMS>(ScaledRow<C>{h.get(), s.scale}, *y, n, s, affine);
      }
    }
  });
}

template <class T>
struct GatedBackwardTensors {
  Tensor<const T> dy, x, z;
  Tensor<T> dx, dz;
  Affine<compute_t<T>> affine;
  bool norm_first;
  double* dweight;  // heads·n sums; null: not wanted
};

// dx = dh ⊙ silu(z) and dz = dh ⊙ x ⊙ silu'(z), dh being the norm's gradient;  silu'(z) = σ (1 + z (1 − σ)).
template <class T, class C>
RMSNORM_NOINLINE void gate_row_backward(const C* dh, const T* x, const T* z, T* dx, T* dz, int64_t n) {
  for_each_vector<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = load_n(z + i, count), d = load_n(dh + i, count);
    const Logistic<C> logistic(gate);
    const Vec<C> dz_here = d * load_n(x + i, count) * (logistic.sigma * (C(1) + gate * logistic.one_minus_sigma));
    store_n(dx + i, d * (gate * logistic.sigma), count);
    store_n(dz + i, dz_here, count);
  });
}

// u = dy ⊙ silu(z), the norm's incoming gradient, and dz = dy ⊙ x̂ ⊙ gain ⊙ silu'(z).
template <class T, class C>
RMSNORM_NOINLINE void norm_then_gate_backward(const T* dy, ScaledRow<T> x, const T* z, C* u, T* dz, int64_t n,
                                              const Statistics<C>& s, const C* gain) {
  for_each_vector<C>(0, n, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> gate = load_n(z + i, count), d = load_n(dy + i, count);
    const Logistic<C> logistic(gate);
    Vec<C> v = RMS::normalize(x.template load<true>(i, count), s);
    if (gain) v *= load_n(gain + i, count);
    store_n(u + i, d * (gate * logistic.sigma), count);
    store_n(dz + i, d * v * (logistic.sigma * (C(1) + gate * logistic.one_minus_sigma)), count);
  });
}

template <class T>
void gated_backward_rows(const Problem& problem, const GatedBackwardTensors<T>& tensors, int64_t begin, int64_t end,
                         compute_t<T>* dweight) {
  using C = compute_t<T>;
  const NormSpec& spec = problem.spec;
  const int64_t n = spec.n;
  auto dy = tensors.dy.from(begin), x = tensors.x.from(begin), z = tensors.z.from(begin);
  auto dx = tensors.dx.from(begin), dz = tensors.dz.from(begin);
  Head head(problem, begin);
  const auto buffer = allocate<C>(2 * n);
  C *const h = buffer.get(), *const u = h + n;
  for (int64_t row = begin; row < end; ++row, ++dy, ++x, ++z, ++dx, ++dz, ++head) {
    const auto affine = tensors.affine.from(*head * n);
    C* const sums = dweight ? dweight + *head * n : nullptr;
    if (tensors.norm_first) {
      const auto s = RMS::statistics(*x, spec);
      norm_then_gate_backward(*dy, ScaledRow<T>{*x, s.scale}, *z, u, *dz, n, s, affine.gain);
      backward_row_generic<RMS>(BackwardInputs<T, C>{{*x, s.scale}, u, *x, u}, spec, s, affine,
                                Gradients<T, C>{*dx, nullptr, sums, nullptr});
    } else {
      gate_row(*x, *z, h, n);
      const auto s = RMS::statistics(h, spec);
      backward_row_generic<RMS>(BackwardInputs<C, T>{{h, s.scale}, *dy, h, *dy}, spec, s, affine,
                                Gradients<C, C>{u, nullptr, sums, nullptr});
      gate_row_backward(u, *x, *z, *dx, *dz, n);
    }
  }
}

template <class T>
void gated_backward_tensor(const Problem& problem, const GatedBackwardTensors<T>& tensors) {
  using C = compute_t<T>;
  if (!tensors.dweight)
    return parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
      gated_backward_rows(problem, tensors, begin, end, nullptr);
    });
  double* const totals[] = {tensors.dweight};
  sum_over_rows<C>(problem, 1, totals, [&](int64_t begin, int64_t end, C* leaf) {
    gated_backward_rows(problem, tensors, begin, end, leaf);
  });
}

}  // namespace rmsnorm
