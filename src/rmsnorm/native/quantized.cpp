// The module's function for the quantised norm.

#include "quantized.h"

#include "bindings.h"
#include "call.h"

namespace rmsnorm {
namespace {

constexpr int FLOAT8_E4M3 = 1;  // else int8

// q and scale are addresses of fresh memory: DLPack's reader knows no eight-bit types here, nor needs to.
bool forward_call(nb::handle x, nb::handle shape, nb::handle w, uintptr_t q, uintptr_t scale, int code, nb::handle eps,
                  nb::handle p, int flags) {
  Call call;
  if (!call.read_all(x, shape, w, nb::none(), eps, p, flags)) return false;
  MaybeReleased released(call.problem.rows * call.problem.n);
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Parameters<compute_t<T>> parameters(call);
    const Quantized<T> to{call.tensor<const T>(call.x), reinterpret_cast<uint8_t*>(q), reinterpret_cast<float*>(scale),
                          parameters.affine};
    code == FLOAT8_E4M3 ? quantized<e4m3>(call.problem, to) : quantized<i8>(call.problem, to);
  });
  return true;
}

}  // namespace

void bind_quantized(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("rms_norm_quantized", &forward_call, none, none, none, nb::arg(), nb::arg(), nb::arg(), none, none, nb::arg());
}

}  // namespace rmsnorm
