// Which way a torch call goes, asked of torch's Python objects: in C++, because asking from Python takes 0.5 µs and a
// call of F.layer_norm on 1024 elements takes 2.7.
#pragma once

#include "bindings.h"
#include "codes.h"
#include "tensors.h"

namespace rmsnorm {

namespace nb = nanobind;

// What rmsnorm.torch.kernels hands over, kept for the life of the process.
inline struct {
  PyObject *tensor = nullptr, *parameter = nullptr;  // the two types that are served as they are
  PyObject* forward_ad = nullptr;                    // the module's dictionary, with _current_level
  PyObject *functorch_level = nullptr, *dispatch_modes = nullptr, *tracing_state = nullptr, *grad_enabled = nullptr;
  PyObject *level_name = nullptr, *is_cpu = nullptr, *is_cuda = nullptr, *is_neg = nullptr, *requires_grad = nullptr;
} watch;

inline void set_gate(nb::handle tensor, nb::handle parameter, nb::handle forward_ad, nb::handle functorch_level,
                     nb::handle dispatch_modes, nb::handle tracing_state, nb::handle grad_enabled) {
  const auto keep = [](nb::handle h) { return h.inc_ref().ptr(); };
  watch = {keep(tensor),         keep(parameter),     keep(forward_ad),
           keep(functorch_level), keep(dispatch_modes), keep(tracing_state),
           keep(grad_enabled),   PyUnicode_InternFromString("_current_level"),
           PyUnicode_InternFromString("is_cpu"), PyUnicode_InternFromString("is_cuda"),
           PyUnicode_InternFromString("is_neg"), PyUnicode_InternFromString("requires_grad")};
}

inline bool attribute(PyObject* o, PyObject* name) {
  return nb::steal(PyObject_GetAttr(o, name)).is(nb::handle(Py_True));
}

inline nb::object ask(PyObject* function) {
  nb::object answer = nb::steal(PyObject_CallNoArgs(function));
  if (!answer.is_valid()) throw nb::python_error();
  return answer;
}

// An ordinary tensor, whose sign is in its memory (views of conjugates' imaginary parts have it in a flag).
inline bool plain(nb::handle h) {
  if (h.is_none()) return true;
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(h.ptr()));
  if (type != watch.tensor && type != watch.parameter) return false;
  return nb::steal(PyObject_CallMethodNoArgs(h.ptr(), watch.is_neg)).is(nb::handle(Py_False)) && !has_no_memory(h);
}

// COMPOSITE where tensors are not ordinary, or forward mode, a dispatch mode or a tracer wants to see operations;
// AUTOGRAD where a gradient may be asked for; else KERNEL. What lives elsewhere than on a CPU and what a transform
// of torch.func has wrapped has no memory that DLPack would show: the kernels decline it, so that only AUTOGRAD,
// whose node transforms do not know, has to ask. Devices that nobody serves get the composite's autograd.
inline bool has_kernels(nb::handle input) {
  return attribute(input.ptr(), watch.is_cpu) || (elsewhere && attribute(input.ptr(), watch.is_cuda));
}

inline int gate(nb::handle input, nb::handle weight, nb::handle bias) {
  if (input.is_none() || !plain(input) || !plain(weight) || !plain(bias)) return COMPOSITE;
  PyObject* level = PyDict_GetItemWithError(watch.forward_ad, watch.level_name);
  if (!level || PyLong_AsLong(level) >= 0) return COMPOSITE;
  if (PyLong_AsLong(ask(watch.dispatch_modes).ptr()) != 0 || !ask(watch.tracing_state).is_none()) return COMPOSITE;
  if (!ask(watch.grad_enabled).is(nb::handle(Py_True))) return KERNEL;
  for (nb::handle h : {input, weight, bias})
    if (!h.is_none() && attribute(h.ptr(), watch.requires_grad))
      return has_kernels(input) && ask(watch.functorch_level).is_none() ? AUTOGRAD : COMPOSITE;
  return KERNEL;
}

}  // namespace rmsnorm
