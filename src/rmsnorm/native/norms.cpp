// rms_norm, layer_norm and add_rms_norm, forward and backward: from views that were read to the kernels of their dtypes.

#include "norms.h"

#include "operations.h"

namespace rmsnorm {
namespace {

template <class Norm, class T, class Y>
void run_forward(const Call& call, const View& y, const View* residual, const View* sum) {
  if (call.problem.fresh) {
    prepare_fresh(y);
    if (sum) prepare_fresh(*sum);
  }
  MaybeReleased released(call.problem.rows * call.problem.n);
  Parameters<compute_t<T>> parameters(call, PAIRED<T> && PAIRED<Y>);
  Forward<T, Y> f;
  f.x = call.tensor<const T>(call.x);
  f.y = call.tensor<Y>(y);
  if (residual) {
    f.residual = call.tensor<const T>(*residual);
    f.sum = call.tensor<T>(*sum);
  }
  f.affine = parameters.affine;
  forward<Norm>(call.problem, f);
}

bool sums_are_served(const Call& call, const View& y, const View& residual, const View& sum) {
  for (const View* v : {&residual, &sum})
    if (!call.is_like_x(*v) || v->dtype != call.x.dtype) return false;
  if (call.flags & FRESH) return true;
  // sum may be residual itself, but no other memory that is still to be read.
  if (!sum.contiguous(0) && !sum.writable()) return false;
  if (sum.overlaps(residual) && !sum.is_same_memory(residual)) return false;
  if (sum.overlaps(call.x) || sum.overlaps(y) || residual.overlaps(y)) return false;
  return !(call.weight && sum.overlaps(*call.weight)) && !(call.bias && sum.overlaps(*call.bias));
}

template <class Norm>
bool any_forward(const Call& call, const View& y, const View* residual, const View* sum) {
  if (!call.is_like_x(y) || !residual != !sum) return false;
  if (residual && !sums_are_served(call, y, *residual, *sum)) return false;
  DType expected = call.x.dtype;
  if (call.flags & ROUND_FIRST) {
    if (call.weight) expected = promote(expected, call.weight->dtype);
    const DType product = expected;
    if (call.bias) expected = promote(expected, call.bias->dtype);
    // One rounding between product and sum is made, to y's dtype; and products in float64 are for float64 rows.
    if (call.weight && product != expected) return false;
    if (expected == DType::float64 && call.x.dtype != DType::float64) return false;
  }
  if (y.dtype != expected) return false;
  if (call.problem.rows == 0 || call.problem.n == 0) return true;
  // A row is read before it is written, so that y may be x itself; but no other memory that is still to be read.
  if (!y.contiguous(0) && !y.writable()) return false;
  if (y.overlaps(call.x) && !y.is_same_memory(call.x)) return false;
  if ((call.weight && y.overlaps(*call.weight)) || (call.bias && y.overlaps(*call.bias))) return false;
  const bool widened = expected != call.x.dtype;
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      if (widened) return run_forward<Norm, T, float>(call, y, residual, sum);
    }
    run_forward<Norm, T, T>(call, y, residual, sum);
  });
  return true;
}

template <class Norm, class T, class D>
void run_backward(const Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                  const View* dbias) {
  const int64_t columns = call.problem.heads * call.problem.n;
  if (dx) prepare_fresh(*dx);
  MaybeReleased released(call.problem.rows * call.problem.n);
  constexpr bool paired = PAIRED<T> && PAIRED<D>;
  Parameters<compute_t<T>> parameters(call, paired);
  const auto sums = allocate<double>(2 * columns);
  Backward<T, D> b{};
  b.dy = call.tensor<const D>(dy);
  b.x = call.tensor<const T>(call.x);
  if (dx) b.dx = call.tensor<T>(*dx);
  if (plus) b.plus = call.tensor<const T>(*plus);
  b.affine = parameters.affine;
  b.affine.b = nullptr;
  b.dweight = dweight ? sums.get() : nullptr;
  b.dbias = dbias ? sums.get() + columns : nullptr;
  backward<Norm>(call.problem, b);
  if (dweight) write_sums(*dweight, b.dweight, call.problem.n, paired);
  if (dbias) write_sums(*dbias, b.dbias, call.problem.n, paired);
}

template <class Norm>
bool any_backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                  const View* dbias) {
  if (!call.is_like_x(dy)) return false;
  for (const View* v : {dx, plus})
    if (v && (!call.is_like_x(*v) || v->dtype != call.x.dtype)) return false;
  for (const View* v : {dweight, dbias})
    if (v && !call.takes(*v)) return false;
  const bool half = call.x.dtype == DType::bfloat16 || call.x.dtype == DType::float16;
  const bool widened = half && dy.dtype == DType::float32;
  if (dy.dtype != call.x.dtype && !widened) return false;
  if (call.problem.n == 0) return true;
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto d) {
      run_backward<Norm, T, decltype(d)>(call, dy, dx, plus, dweight, dbias);
    };
    if constexpr (sizeof(T) == 2) {
      if (widened) return run(float{});
    }
    run(T{});
  });
  return true;
}

}  // namespace

bool forward(const Call& call, const View& y, const View* residual, const View* sum) {
  if (call.norm == NormKind::layer) return !residual && !sum && any_forward<Layer>(call, y, nullptr, nullptr);
  return any_forward<RMS>(call, y, residual, sum);
}

bool backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight, const View* dbias) {
  return call.norm == NormKind::layer ? any_backward<Layer>(call, dy, dx, plus, dweight, dbias)
                                   : any_backward<RMS>(call, dy, dx, plus, dweight, dbias);
}

}  // namespace rmsnorm
