// The Python module of one instruction-set level. Its functions return True when they have done the work, and False
// when the arguments are not ones they serve; they never raise for a wrong argument.
// rmsnorm.spec does that, once.

#include "bindings.h"
#include "norms.h"
#include "way.h"

#ifndef RMSNORM_MODULE
#error "RMSNORM_MODULE names the module; CMakeLists.txt sets it"
#endif

namespace rmsnorm {
namespace {

// Tensors, results, then what is asked for; None for what is not given or not wanted.
bool norm(nb::handle x_, nb::handle residual_, nb::handle w_, nb::handle b_, nb::handle y_, nb::handle sum_, int kind,
          nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return served(
      [&](const View& x, const View* residual, const View* w, const View* b, const View& y, const View* sum) {
        Call call(NormKind(kind), x, w, b);
        return call.accept(shape, eps, p, flags) && forward(call, y, residual, sum);
      },
      Needed(x_), Optional(residual_), Optional(w_), Optional(b_), Needed(y_), Optional(sum_));
}

bool norm_backward(nb::handle dy_, nb::handle plus_, nb::handle x_, nb::handle w_, nb::handle dx_, nb::handle dweight_,
                   nb::handle dbias_, int kind, nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return served(
      [&](const View& dy, const View* plus, const View& x, const View* w, const View* dx, const View* dweight,
          const View* dbias) {
        Call call(NormKind(kind), x, w, nullptr);
        return call.accept(shape, eps, p, flags) && backward(call, dy, dx, plus, dweight, dbias);
      },
      Needed(dy_), Optional(plus_), Needed(x_), Optional(w_), Optional(dx_), Optional(dweight_), Optional(dbias_));
}

// ---- the same for compiled callers ----

std::optional<View> read(const c_api::Strided& t) { return View::of(t.data, t.dtype, t.ndim, t.shape, t.strides); }
Needed needed(const c_api::Strided& t) { return Needed(read(t)); }
Optional optional(const c_api::Strided* t) { return {t != nullptr, t ? read(*t) : std::nullopt}; }

constexpr c_api::Api API = {
    c_api::VERSION,
    [](const c_api::Strided& x_, void* shape, void* eps, void* p, c_api::How& how) {
      const auto handle = [](void* o) { return nb::handle(static_cast<PyObject*>(o)); };
      return served([&](const View& x) { return read_how(x, handle(shape), handle(eps), handle(p), how); }, needed(x_));
    },
    [](const c_api::How& how, const c_api::Strided& x_, const c_api::Strided* weight, const c_api::Strided* bias,
       const c_api::Strided& y_, const c_api::Strided* residual_, const c_api::Strided* sum_) {
      return served(
          [&](const View& x, const View* w, const View* b, const View& y, const View* residual, const View* sum) {
            Call call(how.norm, x, w, b);
            return call.accept(how) && forward(call, y, residual, sum);
          },
          needed(x_), optional(weight), optional(bias), needed(y_), optional(residual_), optional(sum_));
    },
    [](const c_api::How& how, const c_api::Strided& dy_, const c_api::Strided& x_, const c_api::Strided* weight,
       const c_api::Strided* dx_, const c_api::Strided* plus_, const c_api::Strided* dweight_,
       const c_api::Strided* dbias_) {
      return served(
          [&](const View& dy, const View& x, const View* w, const View* dx, const View* plus, const View* dweight,
              const View* dbias) {
            Call call(how.norm, x, w, nullptr);
            return call.accept(how) && backward(call, dy, dx, plus, dweight, dbias);
          },
          needed(dy_), needed(x_), optional(weight), optional(dx_), optional(plus_), optional(dweight_),
          optional(dbias_));
    },
};

}  // namespace
}  // namespace rmsnorm

NB_MODULE(RMSNORM_MODULE, m) {
  using namespace rmsnorm;
  const auto none = nb::arg().none();
  m.def("norm", &norm, none, none, none, none, none, none, nb::arg(), none, none, none, nb::arg());
  m.def("norm_backward", &norm_backward, none, none, none, none, none, none, none, nb::arg(), none, none, none,
        nb::arg());
  bind_gated(m);
  bind_quantized(m);
  bind_recurrent(m);
  m.attr("code_definitions") = DEFINITIONS;
  m.attr("c_api") = nb::capsule(&API, c_api::CAPSULE);
  m.def("set_torch_parallel_for", [](uintptr_t address) {
    torch_parallel_for = reinterpret_cast<TorchParallelFor>(address);
  });
  m.def("set_exchange", [](nb::handle capsule) {
    auto* api = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) throw nb::python_error();
    if (api->major != 1 || !api->tensor_from_object) return false;
    exchange = api;
    return true;
  });
  m.def("set_way", &set_way);
  m.def("way", &way);
  m.def("set_partial_count", [](nb::handle function) { partial_count = function.inc_ref().ptr(); });
  m.def("num_threads", [] { return Pool::instance().threads(); });
  m.def("set_num_threads", [](int threads) { Pool::instance().set_threads(threads); });
}
