// The Python module of one instruction-set level. Its functions return True when they have done the work, and False
// when the arguments are not ones they serve, nor anybody elsewhere; they never raise for a wrong argument.
// rmsnorm.spec does that, once.

#include "bindings.h"
#include "gate.h"
#include "norms.h"

#ifndef RMSNORM_MODULE
#error "RMSNORM_MODULE names the module; CMakeLists.txt sets it"
#endif

namespace rmsnorm {
namespace {

bool rms_norm(nb::handle x_, nb::handle shape, nb::handle w_, nb::handle b_, nb::handle y_, nb::handle eps,
              nb::handle p, int flags) {
  return served(
      [&](const View& x, const View* w, const View* b, const View& y) {
        Call call(NormKind::rms, x, w, b);
        return call.accept(shape, eps, p, flags) && forward(call, y);
      },
      Needed(x_), Optional(w_), Optional(b_), Needed(y_));
}

bool layer_norm(nb::handle x_, nb::handle shape, nb::handle w_, nb::handle b_, nb::handle y_, nb::handle eps,
                int flags) {
  return served(
      [&](const View& x, const View* w, const View* b, const View& y) {
        Call call(NormKind::layer, x, w, b);
        return call.accept(shape, eps, nb::float_(1.0), flags) && forward(call, y);
      },
      Needed(x_), Optional(w_), Optional(b_), Needed(y_));
}

bool add_rms_norm(nb::handle x_, nb::handle residual_, nb::handle shape, nb::handle w_, nb::handle b_, nb::handle y_,
                  nb::handle sum_, nb::handle eps, nb::handle p, int flags) {
  return served(
      [&](const View& x, const View& residual, const View* w, const View* b, const View& y, const View& sum) {
        Call call(NormKind::rms, x, w, b);
        return call.accept(shape, eps, p, flags) && forward(call, y, &residual, &sum);
      },
      Needed(x_), Needed(residual_), Optional(w_), Optional(b_), Needed(y_), Needed(sum_));
}

bool any_backward(NormKind norm, nb::handle dy_, nb::handle x_, nb::handle shape, nb::handle w_, nb::handle dx_,
                  nb::handle plus_, nb::handle dweight_, nb::handle dbias_, nb::handle eps, nb::handle p, int flags) {
  return served(
      [&](const View& dy, const View& x, const View* w, const View* dx, const View* plus, const View* dweight,
          const View* dbias) {
        Call call(norm, x, w, nullptr);
        return call.accept(shape, eps, p, flags) && backward(call, dy, dx, plus, dweight, dbias);
      },
      Needed(dy_), Needed(x_), Optional(w_), Optional(dx_), Optional(plus_), Optional(dweight_), Optional(dbias_));
}

bool rms_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                       nb::handle dweight, nb::handle dbias, nb::handle eps, nb::handle p, int flags) {
  return any_backward(NormKind::rms, dy, x, shape, w, dx, plus, dweight, dbias, eps, p, flags);
}

bool layer_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                         nb::handle dweight, nb::handle dbias, nb::handle eps, int flags) {
  return any_backward(NormKind::layer, dy, x, shape, w, dx, plus, dweight, dbias, eps, nb::float_(1.0), flags);
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
  m.def("rms_norm", or_elsewhere("rms_norm", &rms_norm), none, none, none, none, none, none, none, nb::arg());
  m.def("layer_norm", or_elsewhere("layer_norm", &layer_norm), none, none, none, none, none, none, nb::arg());
  m.def("add_rms_norm", or_elsewhere("add_rms_norm", &add_rms_norm), none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("rms_norm_backward", or_elsewhere("rms_norm_backward", &rms_norm_backward), none, none, none, none, none, none,
        none, none, none, none, nb::arg());
  m.def("layer_norm_backward", or_elsewhere("layer_norm_backward", &layer_norm_backward), none, none, none, none, none,
        none, none, none, none, nb::arg());
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
  m.def("set_elsewhere", [](nb::handle function) { elsewhere = function.inc_ref().ptr(); });
  m.def("set_gate", &set_gate);
  m.def("gate", &gate, none, none, none);
  m.def("set_partial_count", [](nb::handle function) { partial_count = function.inc_ref().ptr(); });
  m.def("num_threads", [] { return Pool::instance().threads(); });
  m.def("set_num_threads", [](int threads) { Pool::instance().set_threads(threads); });
}
