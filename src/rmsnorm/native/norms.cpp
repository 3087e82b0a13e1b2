// RMSNorm and LayerNorm: checks, then the kernels of the tensors' dtypes.

#include "norms.h"

#include "tensor_passes.h"

namespace rmsnorm {
namespace {

template <class Norm, class T, class Y>
void normalize_typed(const Call& call, const View& y, const View* residual, const View* sum) {
  Problem problem = call.problem;
  if (problem.fresh()) {
    if (sum) prepare_fresh(*sum);
    if (prepare_fresh(y)) problem.spec.flags &= ~FRESH;
  }
  MaybeReleasedGil released(call.problem.rows * call.problem.spec.n);
  Parameters<compute_t<T>> parameters(call, PAIRED<T> && PAIRED<Y>);
  ForwardTensors<T, Y> tensors;
  tensors.x = call.tensor<const T>(call.x);
  tensors.y = call.tensor<Y>(y);
  if (residual) {
    tensors.residual = call.tensor<const T>(*residual);
    tensors.sum = call.tensor<T>(*sum);
  }
  tensors.affine = parameters.affine;
  normalize_tensor<Norm>(problem, tensors);
}

bool serves_sum(const Call& call, const View& y, const View& residual, const View& sum) {
  for (const View* v : {&residual, &sum})
    if (!call.is_like_x(*v) || v->dtype != call.x.dtype) return false;
  if (call.problem.fresh()) return true;
  // sum may be the residual's memory, but must not overlap other memory that is still to be read.
  if (!sum.contiguous(0) && !sum.writable()) return false;
  if (sum.overlaps(residual) && !sum.is_same_memory(residual)) return false;
  if (sum.overlaps(call.x) || sum.overlaps(y) || residual.overlaps(y)) return false;
  return !(call.weight && sum.overlaps(*call.weight)) && !(call.bias && sum.overlaps(*call.bias));
}

template <class Norm>
bool check_and_normalize(const Call& call, const View& y, const View* residual, const View* sum) {
  if (!call.is_like_x(y) || !residual != !sum) return false;
  if (residual && !serves_sum(call, y, *residual, *sum)) return false;
  DType expected = call.x.dtype;
  if (call.problem.spec.flags & ROUND_FIRST) {
    if (call.weight) expected = promoted_dtype(expected, call.weight->dtype);
    const DType product = expected;
    if (call.bias) expected = promoted_dtype(expected, call.bias->dtype);
    // The kernels round the product to y's dtype, so it must be the product's own; and they compute in float64 only if
    // x is float64.
    if (call.weight && product != expected) return false;
    if (expected == DType::float64 && call.x.dtype != DType::float64) return false;
  }
  if (y.dtype != expected) return false;
  if (call.problem.rows == 0 || call.problem.spec.n == 0) return true;
  // y may be x's memory, because a row is read before it is written, but must not overlap other memory that is still to
  // be read.
  if (!y.contiguous(0) && !y.writable()) return false;
  if (y.overlaps(call.x) && !y.is_same_memory(call.x)) return false;
  if ((call.weight && y.overlaps(*call.weight)) || (call.bias && y.overlaps(*call.bias))) return false;
  const bool widened = expected != call.x.dtype;
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      if (widened) return normalize_typed<Norm, T, float>(call, y, residual, sum);
    }
    normalize_typed<Norm, T, T>(call, y, residual, sum);
  });
  return true;
}

template <class Norm, class T, class D>
void backward_typed(const Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                    const View* dbias) {
  const int64_t n = call.problem.spec.n, columns = call.problem.heads * n;
  Problem problem = call.problem;
  problem.spec.flags |= FRESH;  // dx is made for each call
  if (dx && prepare_fresh(*dx)) problem.spec.flags &= ~FRESH;
  MaybeReleasedGil released(problem.rows * n);
  constexpr bool paired = PAIRED<T> && PAIRED<D>;
  Parameters<compute_t<T>> parameters(call, paired);
  const auto sums = allocate<double>(2 * columns);
  BackwardTensors<T, D> tensors{};
  tensors.dy = call.tensor<const D>(dy);
  tensors.x = call.tensor<const T>(call.x);
  if (dx) tensors.dx = call.tensor<T>(*dx);
  if (plus) tensors.plus = call.tensor<const T>(*plus);
  tensors.affine = parameters.affine;
  tensors.affine.bias = nullptr;
  tensors.dweight = dweight ? sums.get() : nullptr;
  tensors.dbias = dbias ? sums.get() + columns : nullptr;
  backward_tensor<Norm>(problem, tensors);
  if (dweight) write_sums(*dweight, tensors.dweight, n, paired);
  if (dbias) write_sums(*dbias, tensors.dbias, n, paired);
}

template <class Norm>
bool check_and_run_backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                            const View* dbias) {
  if (!call.is_like_x(dy)) return false;
  for (const View* v : {dx, plus})
    if (v && (!call.is_like_x(*v) || v->dtype != call.x.dtype)) return false;
  for (const View* v : {dweight, dbias})
    if (v && !call.accept_parameter(*v)) return false;
  const bool half = call.x.dtype == DType::bfloat16 || call.x.dtype == DType::float16;
  const bool widened = half && dy.dtype == DType::float32;
  if (dy.dtype != call.x.dtype && !widened) return false;
  if (call.problem.spec.n == 0) return true;
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto dy_zero) {
      backward_typed<Norm, T, decltype(dy_zero)>(call, dy, dx, plus, dweight, dbias);
    };
    if constexpr (sizeof(T) == 2) {
      if (widened) return run(float{});
    }
    run(T{});
  });
  return true;
}

}  // namespace

bool run_forward(const Call& call, const View& y, const View* residual, const View* sum) {
  if (call.problem.spec.kind == NormKind::rms) return check_and_normalize<RMS>(call, y, residual, sum);
  return !residual && !sum && check_and_normalize<Layer>(call, y, nullptr, nullptr);
}

bool run_backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                  const View* dbias) {
  return call.problem.spec.kind == NormKind::layer ? check_and_run_backward<Layer>(call, dy, dx, plus, dweight, dbias)
                                                   : check_and_run_backward<RMS>(call, dy, dx, plus, dweight, dbias);
}

}  // namespace rmsnorm
