// The gated norm: checks, then the kernels of the tensors' dtypes.

#include "gated.h"

#include "norms.h"

namespace rmsnorm {
namespace {

// x of shape (…, n) is read as (…, groups, n / groups): a group is a row, and has the gain of a head.
struct GatedCall : Call {
  GatedCall(const View& x, const View* weight) : Call(x, weight, nullptr) {}
  int64_t groups = 1;

  bool accept(const GatedSpec& gated) {
    NormSpec whole = gated.group;
    whole.n *= gated.groups;
    if (!Call::accept(whole) || parameter_dims > whole.dims || x.ndim == MAX_DIMS) return false;
    groups = gated.groups;
    problem.spec = gated.group, problem.rows *= groups, problem.heads = groups;
    return true;
  }
  template <class... V>
  bool are_like_x(const V&... views) const {
    return ((is_like_x(views) && views.dtype == x.dtype) && ...);
  }
  template <class T>
  Tensor<T> grouped(View v) const {
    v.ndim = x.ndim - problem.spec.dims;
    v.shape[v.ndim] = groups, v.stride[v.ndim++] = problem.spec.n;
    return {reinterpret_cast<T*>(v.data), Rows(v, v.ndim)};
  }
};

}  // namespace

bool run_gated_forward(const GatedSpec& spec, const View& x, const View& z, const View* w, const View& y) {
  GatedCall call(x, w);
  if (!call.accept(spec) || !call.are_like_x(z, y)) return false;
  if (call.problem.rows == 0 || call.problem.spec.n == 0) return true;
  if (call.problem.fresh()) prepare_fresh(y);
  MaybeReleasedGil released(call.problem.rows * call.problem.spec.n);
  with_type(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Parameters<compute_t<T>> parameters(call, spec.norm_first && PAIRED<T>);
    gated_forward_tensor<T>(call.problem, {call.grouped<const T>(x), call.grouped<const T>(z), call.grouped<T>(y),
                                           parameters.affine, spec.norm_first});
  });
  return true;
}

bool run_gated_backward(const GatedSpec& spec, const View& dy, const View& x, const View& z, const View* w,
                        const View& dx, const View& dz, const View* dweight) {
  GatedCall call(x, w);
  if (!call.accept(spec) || !call.are_like_x(z, dy, dx, dz)) return false;
  if (dweight && (!w || !call.accept_parameter(*dweight))) return false;
  const int64_t n = call.problem.spec.n;
  if (n == 0) return true;
  prepare_fresh(dx), prepare_fresh(dz);
  MaybeReleasedGil released(call.problem.rows * n);
  with_type(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Parameters<compute_t<T>> parameters(call);
    const auto sums = dweight ? allocate<double>(call.groups * n) : nullptr;
    gated_backward_tensor<T>(
        call.problem, {call.grouped<const T>(dy), call.grouped<const T>(x), call.grouped<const T>(z),
                       call.grouped<T>(dx), call.grouped<T>(dz), parameters.affine, spec.norm_first, sums.get()});
    if (dweight) write_sums(*dweight, sums.get(), n, false);
  });
  return true;
}

}  // namespace rmsnorm
