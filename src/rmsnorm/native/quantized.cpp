// The module's function for the quantised norm.

#include "quantized.h"

#include "bindings.h"
#include "call.h"

namespace rmsnorm {
namespace {

// q: codes of x's shape; scale: float32, one number a row. Both contiguous and fresh.
bool forward_call(nb::handle x_, nb::handle w_, nb::handle q_, nb::handle scale_, nb::handle shape, nb::handle eps,
                  nb::handle p, int flags) {
  return served(
      [&](const View& x, const View* w, const View& q, const View& scale) {
        Call call(NormKind::rms, x, w, nullptr);
        if (!call.accept(shape, eps, p, flags) || !q.contiguous(0) || !call.is_like_x(q)) return false;
        if (scale.dtype != DType::float32 || !scale.contiguous(0) || scale.size(0, scale.ndim) != call.problem.rows)
          return false;
        MaybeReleased released(call.problem.rows * call.problem.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          const Quantized<T> to{call.tensor<const T>(x), reinterpret_cast<uint8_t*>(q.data),
                                reinterpret_cast<float*>(scale.data), parameters.affine};
          q.dtype == DType::float8_e4m3fn ? quantized<e4m3>(call.problem, to) : quantized<i8>(call.problem, to);
        });
        return true;
      },
      Needed(x_), Optional(w_), Needed(q_, true), Needed(scale_));
}

}  // namespace

void bind_quantized(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("quantized", &forward_call, none, none, none, none, none, none, none, nb::arg());
}

}  // namespace rmsnorm
