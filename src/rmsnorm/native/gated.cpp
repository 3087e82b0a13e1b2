// The module's functions for the gated norm.

#include "gated.h"

#include "bindings.h"
#include "call.h"

namespace rmsnorm {
namespace {

// A group is a row of its own, and the gain of group j that of head j: x of shape (…, n) is read as
// (…, groups, n / groups).
struct GatedCall : Call {
  GatedCall(const View& x, const View* weight) : Call(NormKind::rms, x, weight, nullptr) {}
  int64_t groups = 1;

  bool accept(nb::handle shape, nb::handle eps, nb::handle p, nb::handle groups_, int flags_) {
    if (!Call::accept(shape, eps, p, flags_)) return false;
    if (parameter_dims > dims || x.ndim == MAX_DIMS || !PyLong_CheckExact(groups_.ptr())) return false;
    groups = PyLong_AsLongLong(groups_.ptr());
    if (groups == -1 && PyErr_Occurred()) PyErr_Clear();
    if (groups < 1 || problem.n % groups) return false;
    problem.n /= groups, problem.rows *= groups, problem.heads = groups;
    problem.k = counted(problem.n, p);
    return problem.k >= 0;
  }
  template <class... V>
  bool serves(const V&... views) const {
    return ((is_like_x(views) && views.dtype == x.dtype) && ...);
  }
  template <class T>
  Tensor<T> grouped(View v) const {
    v.ndim = x.ndim - dims;
    v.shape[v.ndim] = groups, v.stride[v.ndim++] = problem.n;
    return {reinterpret_cast<T*>(v.data), Rows(v, v.ndim)};
  }
};

bool forward_call(nb::handle x_, nb::handle z_, nb::handle w_, nb::handle y_, nb::handle shape, nb::handle eps,
                  nb::handle p, nb::handle groups, bool norm_first, int flags) {
  return served(
      [&](const View& x, const View& z, const View* w, const View& y) {
        GatedCall call(x, w);
        if (!call.accept(shape, eps, p, groups, flags) || !call.serves(z, y)) return false;
        if (call.problem.rows == 0 || call.problem.n == 0) return true;
        if (flags & FRESH) prepare_fresh(y);
        MaybeReleased released(call.problem.rows * call.problem.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          gated_forward<T>(call.problem, {call.grouped<const T>(x), call.grouped<const T>(z), call.grouped<T>(y),
                                          parameters.affine, norm_first});
        });
        return true;
      },
      Needed(x_), Needed(z_), Optional(w_), Needed(y_));
}

bool backward_call(nb::handle dy_, nb::handle x_, nb::handle z_, nb::handle w_, nb::handle dx_, nb::handle dz_,
                   nb::handle dweight_, nb::handle shape, nb::handle eps, nb::handle p, nb::handle groups,
                   bool norm_first, int flags) {
  return served(
      [&](const View& dy, const View& x, const View& z, const View* w, const View& dx, const View& dz,
          const View* dweight) {
        GatedCall call(x, w);
        if (!call.accept(shape, eps, p, groups, flags) || !call.serves(z, dy, dx, dz)) return false;
        if (dweight && (!w || !call.takes(*dweight))) return false;
        if (call.problem.n == 0) return true;
        prepare_fresh(dx), prepare_fresh(dz);
        MaybeReleased released(call.problem.rows * call.problem.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          const auto sums = dweight ? allocate<double>(call.groups * call.problem.n) : nullptr;
          gated_backward<T>(call.problem,
                            {call.grouped<const T>(dy), call.grouped<const T>(x), call.grouped<const T>(z),
                             call.grouped<T>(dx), call.grouped<T>(dz), parameters.affine, norm_first, sums.get()});
          if (dweight) write_sums(*dweight, sums.get(), call.problem.n, false);
        });
        return true;
      },
      Needed(dy_), Needed(x_), Needed(z_), Optional(w_), Needed(dx_), Needed(dz_), Optional(dweight_));
}

}  // namespace

void bind_gated(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("gated", &forward_call, none, none, none, none, none, none, none, none, nb::arg(), nb::arg());
  m.def("gated_backward", &backward_call, none, none, none, none, none, none, none, none, none, none, none, nb::arg(),
        nb::arg());
}

}  // namespace rmsnorm
