// The Python module of one instruction-set level. Its functions return True if they have done the work, and False if they
// do not serve the arguments. They never raise because an argument is wrong: rmsnorm.spec does that.

#include "bindings.h"
#include "c_api.h"
#include "norms.h"
#include "way.h"

#ifndef RMSNORM_MODULE
#error "RMSNORM_MODULE names the module; CMakeLists.txt sets it"
#endif

namespace rmsnorm {
namespace {

// Tensors and results first, then the specification. None: not given, or not wanted.
bool norm(nb::handle x_, nb::handle residual_, nb::handle w_, nb::handle b_, nb::handle y_, nb::handle sum_, int kind,
          nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& x, const View* residual, const View* w, const View* b, const View& y, const View* sum) {
        Call call(x, w, b);
        return call.accept({NormKind(kind), shape, eps, p, flags}) && run_forward(call, y, residual, sum);
      },
      RequiredArgument(x_), OptionalArgument(residual_), OptionalArgument(w_), OptionalArgument(b_),
      RequiredArgument(y_), OptionalArgument(sum_));
}

bool norm_backward(nb::handle dy_, nb::handle plus_, nb::handle x_, nb::handle w_, nb::handle dx_, nb::handle dweight_,
                   nb::handle dbias_, int kind, nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& dy, const View* plus, const View& x, const View* w, const View* dx, const View* dweight,
          const View* dbias) {
        Call call(x, w, nullptr);
        return call.accept({NormKind(kind), shape, eps, p, flags}) && run_backward(call, dy, dx, plus, dweight, dbias);
      },
      RequiredArgument(dy_), OptionalArgument(plus_), RequiredArgument(x_), OptionalArgument(w_), OptionalArgument(dx_),
      OptionalArgument(dweight_), OptionalArgument(dbias_));
}

// ---- the same for compiled callers ----

using c_api::StridedTensor;

std::optional<View> view_of(const StridedTensor& t) { return View::of(t.data, t.dtype, t.ndim, t.shape, t.strides); }
RequiredArgument required(const StridedTensor& t) { return RequiredArgument(view_of(t)); }
OptionalArgument optional(const StridedTensor* t) { return {t != nullptr, t ? view_of(*t) : std::nullopt}; }

constexpr c_api::Api API = {
    c_api::VERSION,
    [](const StridedTensor& x_, void* shape, void* eps, void* p, NormSpec& spec) {
      const auto handle = [](void* o) { return nb::handle(static_cast<PyObject*>(o)); };
      const SpecArguments arguments{spec.kind, handle(shape), handle(eps), handle(p), spec.flags};
      return call_with_views([&](const View& x) { return read_spec(x, arguments, spec); }, required(x_));
    },
    [](const NormSpec& spec, const StridedTensor& x_, const StridedTensor* weight, const StridedTensor* bias,
       const StridedTensor& y_, const StridedTensor* residual_, const StridedTensor* sum_) {
      return call_with_views(
          [&](const View& x, const View* w, const View* b, const View& y, const View* residual, const View* sum) {
            Call call(x, w, b);
            return call.accept(spec) && run_forward(call, y, residual, sum);
          },
          required(x_), optional(weight), optional(bias), required(y_), optional(residual_), optional(sum_));
    },
    [](const NormSpec& spec, const StridedTensor& dy_, const StridedTensor& x_, const StridedTensor* weight,
       const StridedTensor* dx_, const StridedTensor* plus_, const StridedTensor* dweight_,
       const StridedTensor* dbias_) {
      return call_with_views(
          [&](const View& dy, const View& x, const View* w, const View* dx, const View* plus, const View* dweight,
              const View* dbias) {
            Call call(x, w, nullptr);
            return call.accept(spec) && run_backward(call, dy, dx, plus, dweight, dbias);
          },
          required(dy_), required(x_), optional(weight), optional(dx_), optional(plus_), optional(dweight_),
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
    dlpack_exchange = api;
    return true;
  });
  m.def("set_way", &set_way);
  m.def("way", &way);
  m.def("set_partial_count", [](nb::handle function) { partial_count = function.inc_ref().ptr(); });
  m.def("num_threads", [] { return Pool::instance().threads(); });
  m.def("set_num_threads", [](int threads) { Pool::instance().set_threads(threads); });
}
