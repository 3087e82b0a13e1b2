// The Python module of one instruction-set level. Its functions return True if they have done the work, and False if they
// do not serve the arguments. They never raise because an argument is wrong: rmsnorm.spec does that.

#include "bindings.h"
#include "c_api.h"
#include "norms.h"
#include "python_spec.h"
#include "way.h"

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

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
        return accept(call, {NormKind(kind), shape, eps, p, flags}) && run_forward(call, y, residual, sum);
      },
      required(x_), optional(residual_), optional(w_), optional(b_), required(y_), optional(sum_));
}

bool norm_backward(nb::handle dy_, nb::handle plus_, nb::handle x_, nb::handle w_, nb::handle dx_, nb::handle dweight_,
                   nb::handle dbias_, int kind, nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& dy, const View* plus, const View& x, const View* w, const View* dx, const View* dweight,
          const View* dbias) {
        Call call(x, w, nullptr);
        return accept(call, {NormKind(kind), shape, eps, p, flags}) && run_backward(call, dy, dx, plus, dweight, dbias);
      },
      required(dy_), optional(plus_), required(x_), optional(w_), optional(dx_), optional(dweight_), optional(dbias_));
}

// The specification of a gated call, or nothing.
std::optional<GatedSpec> read_gated_spec(const View& x, nb::handle shape, nb::handle eps, nb::handle p,
                                         nb::handle groups_, bool norm_first, int flags) {
  GatedSpec spec{};
  spec.norm_first = norm_first;
  if (!read_spec(x, {NormKind::rms, shape, eps, p, flags}, spec.group) || !PyLong_CheckExact(groups_.ptr())) return {};
  spec.groups = PyLong_AsLongLong(groups_.ptr());
  if (spec.groups == -1 && PyErr_Occurred()) PyErr_Clear();
  if (spec.groups < 1 || spec.group.n % spec.groups) return {};
  spec.group.n /= spec.groups;
  spec.group.k = elements_of_statistic(spec.group.n, p);
  return spec.group.k < 0 ? std::nullopt : std::optional(spec);
}

bool gated(nb::handle x_, nb::handle z_, nb::handle w_, nb::handle y_, nb::handle shape, nb::handle eps, nb::handle p,
           nb::handle groups, bool norm_first, int flags) {
  return call_with_views(
      [&](const View& x, const View& z, const View* w, const View& y) {
        const auto spec = read_gated_spec(x, shape, eps, p, groups, norm_first, flags);
        return spec && run_gated_forward(*spec, x, z, w, y);
      },
      required(x_), required(z_), optional(w_), required(y_));
}

bool gated_backward(nb::handle dy_, nb::handle x_, nb::handle z_, nb::handle w_, nb::handle dx_, nb::handle dz_,
                    nb::handle dweight_, nb::handle shape, nb::handle eps, nb::handle p, nb::handle groups,
                    bool norm_first, int flags) {
  return call_with_views(
      [&](const View& dy, const View& x, const View& z, const View* w, const View& dx, const View& dz,
          const View* dweight) {
        const auto spec = read_gated_spec(x, shape, eps, p, groups, norm_first, flags);
        return spec && run_gated_backward(*spec, dy, x, z, w, dx, dz, dweight);
      },
      required(dy_), required(x_), required(z_), optional(w_), required(dx_), required(dz_), optional(dweight_));
}

// ---- for compiled callers: the table without Python, and what needs Python ----

bool read_spec_of_objects(const c_api::StridedTensor& x, void* shape, void* eps, void* p, NormSpec& spec) {
  const auto view = View::of(x.data, x.dtype, x.ndim, x.shape, x.strides);
  const auto handle = [](void* o) { return nb::handle(static_cast<PyObject*>(o)); };
  return view && read_spec(*view, {spec.kind, handle(shape), handle(eps), handle(p), spec.flags}, spec);
}

c_api::Api api = *rmsnorm_c_api();

}  // namespace
}  // namespace rmsnorm

// Before 3.14, Python ends a thread that asks for its lock while the interpreter goes down, by unwinding the thread's
// stack. Destructors do not let that pass, and the process would abort. The thread waits for the end instead, as it does
// since 3.14.
static void take_lock(PyThreadState* state) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(state);
  } catch (const abi::__forced_unwind&) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else  // libc++ has no name for such an unwinding
  PyEval_RestoreThread(state);
#endif
}

NB_MODULE(RMSNORM_MODULE, m) {
  using namespace rmsnorm;
  const auto none = nb::arg().none();
  m.def("norm", &norm, none, none, none, none, none, none, nb::arg(), none, none, none, nb::arg());
  m.def("norm_backward", &norm_backward, none, none, none, none, none, none, none, nb::arg(), none, none, none,
        nb::arg());
  m.def("gated", &gated, none, none, none, none, none, none, none, none, nb::arg(), nb::arg());
  m.def("gated_backward", &gated_backward, none, none, none, none, none, none, none, none, none, none, none, nb::arg(),
        nb::arg());
  bind_quantized(m);
  bind_rotary(m);
  bind_recurrent(m);
  m.attr("code_definitions") = DEFINITIONS;
  api.read_spec = read_spec_of_objects;
  m.attr("c_api") = nb::capsule(&api, c_api::CAPSULE);
  interpreter_lock = {[]() -> void* { return PyGILState_Check() ? PyEval_SaveThread() : nullptr; },
                      [](void* state) { take_lock(static_cast<PyThreadState*>(state)); }};
  m.def("set_torch_parallel_for",
        [](uintptr_t address) { torch_parallel_for = reinterpret_cast<TorchParallelFor>(address); });
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
