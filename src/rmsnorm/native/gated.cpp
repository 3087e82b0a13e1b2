// The module's functions for the gated norm.

#include "gated.h"

#include "bindings.h"
#include "call.h"

namespace rmsnorm {
namespace {

// x of shape (…, n) is read as (…, groups, n / groups): a group is a row, and has the gain of a head.
struct GatedCall : Call {
  GatedCall(const View& x, const View* weight) : Call(x, weight, nullptr) {}
  int64_t groups = 1;

  bool accept(const SpecArguments& arguments, nb::handle groups_) {
    NormSpec& spec = problem.spec;
    if (!Call::accept(arguments)) return false;
    if (parameter_dims > spec.dims || x.ndim == MAX_DIMS || !PyLong_CheckExact(groups_.ptr())) return false;
    groups = PyLong_AsLongLong(groups_.ptr());
    if (groups == -1 && PyErr_Occurred()) PyErr_Clear();
    if (groups < 1 || spec.n % groups) return false;
    spec.n /= groups, problem.rows *= groups, problem.heads = groups;
    spec.k = elements_of_statistic(spec.n, arguments.p);
    return spec.k >= 0;
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

bool gated(nb::handle x_, nb::handle z_, nb::handle w_, nb::handle y_, nb::handle shape, nb::handle eps, nb::handle p,
           nb::handle groups, bool norm_first, int flags) {
  return call_with_views(
      [&](const View& x, const View& z, const View* w, const View& y) {
        GatedCall call(x, w);
        if (!call.accept({NormKind::rms, shape, eps, p, flags}, groups) || !call.are_like_x(z, y)) return false;
        if (call.problem.rows == 0 || call.problem.spec.n == 0) return true;
        if (call.problem.fresh()) prepare_fresh(y);
        MaybeReleasedGil released(call.problem.rows * call.problem.spec.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          gated_forward_tensor<T>(call.problem, {call.grouped<const T>(x), call.grouped<const T>(z), call.grouped<T>(y),
                                          parameters.affine, norm_first});
        });
        return true;
      },
      RequiredArgument(x_), RequiredArgument(z_), OptionalArgument(w_), RequiredArgument(y_));
}

bool gated_backward(nb::handle dy_, nb::handle x_, nb::handle z_, nb::handle w_, nb::handle dx_, nb::handle dz_,
                    nb::handle dweight_, nb::handle shape, nb::handle eps, nb::handle p, nb::handle groups,
                    bool norm_first, int flags) {
  return call_with_views(
      [&](const View& dy, const View& x, const View& z, const View* w, const View& dx, const View& dz,
          const View* dweight) {
        GatedCall call(x, w);
        if (!call.accept({NormKind::rms, shape, eps, p, flags}, groups)) return false;
        if (!call.are_like_x(z, dy, dx, dz)) return false;
        if (dweight && (!w || !call.accept_parameter(*dweight))) return false;
        const int64_t n = call.problem.spec.n;
        if (n == 0) return true;
        prepare_fresh(dx), prepare_fresh(dz);
        MaybeReleasedGil released(call.problem.rows * n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          const auto sums = dweight ? allocate<double>(call.groups * n) : nullptr;
          gated_backward_tensor<T>(call.problem,
                            {call.grouped<const T>(dy), call.grouped<const T>(x), call.grouped<const T>(z),
                             call.grouped<T>(dx), call.grouped<T>(dz), parameters.affine, norm_first, sums.get()});
          if (dweight) write_sums(*dweight, sums.get(), n, false);
        });
        return true;
      },
      RequiredArgument(dy_), RequiredArgument(x_), RequiredArgument(z_), OptionalArgument(w_), RequiredArgument(dx_),
      RequiredArgument(dz_), OptionalArgument(dweight_));
}

}  // namespace

void bind_gated(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("gated", &gated, none, none, none, none, none, none, none, none, nb::arg(), nb::arg());
  m.def("gated_backward", &gated_backward, none, none, none, none, none, none, none, none, none, none, none, nb::arg(),
        nb::arg());
}

}  // namespace rmsnorm
