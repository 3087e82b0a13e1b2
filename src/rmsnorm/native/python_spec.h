// From Python objects to the specification of a call.
#pragma once

#include "call.h"
#include "python_tensors.h"

namespace rmsnorm {

inline bool read_number(nb::handle h, double& value) {
  if (!PyFloat_Check(h.ptr()) && !PyLong_Check(h.ptr()) && nb::hasattr(h, "requires_grad") &&
      nb::bool_(h.attr("requires_grad")))
    return false;  // no gradient of it is computed
  value = PyFloat_AsDouble(h.ptr());
  if (value != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

// rmsnorm.spec.partial_count, for longer rows. native/__init__.py passes it.
inline PyObject* partial_count = nullptr;

inline int64_t elements_of_statistic(int64_t n, nb::handle p_) {
  double p;
  if (!read_number(p_, p)) return -1;
  if (n <= LONGEST_PARTIAL_ROW || p == 1) return elements_of_statistic(n, p);
  const nb::object k = nb::steal(PyObject_CallFunction(partial_count, "Ld", (long long)n, p));
  if (k.is_valid()) return PyLong_AsLongLong(k.ptr());
  PyErr_Clear();
  return -1;
}

// A call's specification as the user gave it.
struct SpecArguments {
  NormKind kind;
  nb::handle normalized_shape, eps, p;
  int flags;
};

// The specification of a call on x. False: the kernels do not serve it.
inline bool read_spec(const View& x, const SpecArguments& arguments, NormSpec& spec) {
  spec.kind = arguments.kind, spec.flags = arguments.flags;
  if (!read_normalized_shape(arguments.normalized_shape, x, spec.dims, spec.n)) return false;
  double eps = 0;
  if (!arguments.eps.is_none() && !read_number(arguments.eps, eps)) return false;
  spec.eps = checked_eps(x, arguments.eps.is_none() ? nullptr : &eps);
  if (std::isnan(spec.eps)) return false;
  spec.k = elements_of_statistic(spec.n, arguments.p);
  return spec.k >= 0;
}

inline bool accept(Call& call, const SpecArguments& arguments) {
  NormSpec spec;
  return read_spec(call.x, arguments, spec) && call.accept(spec);
}

}  // namespace rmsnorm
