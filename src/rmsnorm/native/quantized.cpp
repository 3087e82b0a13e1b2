// The module's function for the quantised norm.

#include "quantized.h"

#include "bindings.h"
#include "call.h"

namespace rmsnorm {
namespace {

// q: int8 or float8_e4m3fn, of x's shape; scale: float32, one for each row. Both are contiguous and fresh.
bool quantized(nb::handle x_, nb::handle w_, nb::handle q_, nb::handle scale_, nb::handle shape, nb::handle eps,
               nb::handle p, int flags) {
  return call_with_views(
      [&](const View& x, const View* w, const View& q, const View& scale) {
        Call call(x, w, nullptr);
        if (!call.accept({NormKind::rms, shape, eps, p, flags}) || !q.contiguous(0) || !call.is_like_x(q)) return false;
        if (scale.dtype != DType::float32 || !scale.contiguous(0) || scale.size(0, scale.ndim) != call.problem.rows)
          return false;
        MaybeReleasedGil released(call.problem.rows * call.problem.spec.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          const QuantizeTensors<T> tensors{call.tensor<const T>(x), reinterpret_cast<uint8_t*>(q.data),
                                           reinterpret_cast<float*>(scale.data), parameters.affine};
          q.dtype == DType::int8 ? quantize_tensor<Int8Code>(call.problem, tensors)
                                 : quantize_tensor<Float8E4M3Code>(call.problem, tensors);
        });
        return true;
      },
      RequiredArgument(x_), OptionalArgument(w_), RequiredArgument(q_, true), RequiredArgument(scale_));
}

}  // namespace

void bind_quantized(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("quantized", &quantized, none, none, none, none, none, none, none, nb::arg());
}

}  // namespace rmsnorm
