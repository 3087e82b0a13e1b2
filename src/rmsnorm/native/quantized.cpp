// The module's function for the quantised norm, with and without a residual.

#include "quantized.h"

#include "bindings.h"
#include "python_spec.h"

namespace rmsnorm {
namespace {

// q: int8 or float8_e4m3fn, of x's shape; scale: float32, one for each row. Both are contiguous. sum: x + residual, if
// there is one. All three are fresh.
bool quantized(nb::handle x_, nb::handle residual_, nb::handle w_, nb::handle q_, nb::handle scale_, nb::handle sum_,
               nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& x, const View* residual, const View* w, const View& q, const View& scale, const View* sum) {
        Call call(x, w, nullptr);
        if (!accept(call, {NormKind::rms, shape, eps, p, flags}) || !q.contiguous(0) || !call.is_like_x(q))
          return false;
        if (scale.dtype != DType::float32 || !scale.contiguous(0) || scale.size(0, scale.ndim) != call.problem.rows)
          return false;
        if (!residual != !sum) return false;
        for (const View* v : {residual, sum})
          if (v && (!call.is_like_x(*v) || v->dtype != x.dtype)) return false;
        prepare_fresh(q);
        if (sum) prepare_fresh(*sum);
        MaybeReleasedGil released(call.problem.rows * call.problem.spec.n);
        with_type(x.dtype, [&](auto zero) {
          using T = decltype(zero);
          Parameters<compute_t<T>> parameters(call);
          QuantizeTensors<T> tensors;
          tensors.x = call.tensor<const T>(x);
          tensors.q = reinterpret_cast<uint8_t*>(q.data);
          tensors.scale = reinterpret_cast<float*>(scale.data);
          if (residual) {
            tensors.residual = call.tensor<const T>(*residual);
            tensors.sum = call.tensor<T>(*sum);
          }
          tensors.affine = parameters.affine;
          q.dtype == DType::int8 ? quantize_tensor<Int8Code>(call.problem, tensors)
                                 : quantize_tensor<Float8E4M3Code>(call.problem, tensors);
        });
        return true;
      },
      required(x_), optional(residual_), optional(w_), required(q_, true), required(scale_), optional(sum_));
}

}  // namespace

void bind_quantized(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("quantized", &quantized, none, none, none, none, none, none, none, none, none, nb::arg());
}

}  // namespace rmsnorm
