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

bool rms_norm(nb::handle x, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_, nb::handle eps, nb::handle p,
              int flags) {
  Call call;
  View y;
  return call.read_all(x, shape, w, b, eps, p, flags) && read(y_, y) && forward(call, y);
}

bool layer_norm(nb::handle x, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_, nb::handle eps, int flags) {
  Call call(c_api::LAYER);
  View y;
  return call.read_all(x, shape, w, b, eps, nb::float_(1.0), flags) && read(y_, y) && forward(call, y);
}

bool add_rms_norm(nb::handle x, nb::handle residual_, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_,
                  nb::handle sum_, nb::handle eps, nb::handle p, int flags) {
  Call call;
  View y, residual, sum;
  return call.read_all(x, shape, w, b, eps, p, flags) && read(y_, y) && read(residual_, residual) && read(sum_, sum) &&
         forward(call, y, &residual, &sum);
}

bool any_backward(Call& call, nb::handle dy_, nb::handle dx_, nb::handle plus_, nb::handle dweight_,
                  nb::handle dbias_) {
  View dy, views[4];
  const View* given[4];
  const nb::handle handles[4] = {dx_, plus_, dweight_, dbias_};
  if (!read(dy_, dy)) return false;
  for (int i = 0; i < 4; ++i) {
    given[i] = handles[i].is_none() ? nullptr : &views[i];
    if (given[i] && !read(handles[i], views[i])) return false;
  }
  return backward(call, dy, given[0], given[1], given[2], given[3]);
}

bool rms_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                       nb::handle dweight, nb::handle dbias, nb::handle eps, nb::handle p, int flags) {
  Call call;
  return call.read_all(x, shape, w, nb::none(), eps, p, flags) && any_backward(call, dy, dx, plus, dweight, dbias);
}

bool layer_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                         nb::handle dweight, nb::handle dbias, nb::handle eps, int flags) {
  Call call(c_api::LAYER);
  return call.read_all(x, shape, w, nb::none(), eps, nb::float_(1.0), flags) &&
         any_backward(call, dy, dx, plus, dweight, dbias);
}

// ---- the same for compiled callers ----

View viewed(const c_api::Strided& t) {
  View v;
  v.data = static_cast<char*>(t.data), v.dtype = DType(t.dtype), v.ndim = t.ndim;
  std::copy_n(t.shape, t.ndim, v.shape);
  std::copy_n(t.strides, t.ndim, v.stride);
  return v;
}

struct Viewed {  // of a tensor that may not be there
  explicit Viewed(const c_api::Strided* t) : given(t) {
    if (t) view = viewed(*t);
  }
  const View* get() const { return given ? &view : nullptr; }
  bool given;
  View view;
};

bool accept(Call& call, const c_api::How& how, const c_api::Strided& x, const c_api::Strided* weight,
            const c_api::Strided* bias) {
  call.x = viewed(x);
  if ((call.has_weight = weight)) call.weight = viewed(*weight);
  if ((call.has_bias = bias)) call.bias = viewed(*bias);
  return call.accept(how);
}

constexpr c_api::Api API = {
    c_api::VERSION,
    [](const c_api::Strided& x, void* shape, void* eps, void* p, c_api::How& how) {
      const auto handle = [](void* o) { return nb::handle(static_cast<PyObject*>(o)); };
      return read_how(viewed(x), handle(shape), handle(eps), handle(p), how);
    },
    [](const c_api::How& how, const c_api::Strided& x, const c_api::Strided* weight, const c_api::Strided* bias,
       const c_api::Strided& y, const c_api::Strided* residual, const c_api::Strided* sum) {
      Call call(how.norm);
      return accept(call, how, x, weight, bias) &&
             forward(call, viewed(y), Viewed(residual).get(), Viewed(sum).get());
    },
    [](const c_api::How& how, const c_api::Strided& dy, const c_api::Strided& x, const c_api::Strided* weight,
       const c_api::Strided* dx, const c_api::Strided* plus, const c_api::Strided* dweight, const c_api::Strided* dbias) {
      Call call(how.norm);
      return accept(call, how, x, weight, nullptr) && backward(call, viewed(dy), Viewed(dx).get(), Viewed(plus).get(),
                                                               Viewed(dweight).get(), Viewed(dbias).get());
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
