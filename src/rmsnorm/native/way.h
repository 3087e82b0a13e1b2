// The way of an eager torch call on a CPU (rmsnorm.torch.dispatch.Way), asked of torch's Python objects. It is C++ because
// asking from Python takes 0.5 µs, and a whole call of F.layer_norm on 1024 elements takes 2.7.
#pragma once

#include "bindings.h"
#include "codes.h"
#include "tensors.h"

namespace rmsnorm {

namespace nb = nanobind;

// What rmsnorm.torch.dispatch hands over, kept for the life of the process.
inline struct {
  PyObject *tensor = nullptr, *parameter = nullptr;  // the two types of ordinary tensors
  PyObject* forward_ad = nullptr;                    // the module's dictionary, with _current_level
  PyObject *functorch_level = nullptr, *dispatch_modes = nullptr, *tracing_state = nullptr, *grad_enabled = nullptr;
  PyObject *key_included = nullptr, *pre_dispatch = nullptr;  // whether a dispatch key is active; PreDispatch
  PyObject *level_name = nullptr, *is_cpu = nullptr, *is_neg = nullptr, *requires_grad = nullptr;
} watch;

inline void set_way(nb::handle tensor, nb::handle parameter, nb::handle forward_ad, nb::handle functorch_level,
                    nb::handle dispatch_modes, nb::handle key_included, nb::handle pre_dispatch, nb::handle tracing_state,
                    nb::handle grad_enabled) {
  const auto keep = [](nb::handle h) { return h.inc_ref().ptr(); };
  watch = {keep(tensor),         keep(parameter),     keep(forward_ad),
           keep(functorch_level), keep(dispatch_modes), keep(tracing_state),
           keep(grad_enabled),   keep(key_included),   keep(pre_dispatch),
           PyUnicode_InternFromString("_current_level"),
           PyUnicode_InternFromString("is_cpu"), PyUnicode_InternFromString("is_neg"),
           PyUnicode_InternFromString("requires_grad")};
}

inline bool attribute(PyObject* o, PyObject* name) {
  return nb::steal(PyObject_GetAttr(o, name)).is(nb::handle(Py_True));
}

inline nb::object ask(PyObject* function, PyObject* argument = nullptr) {
  nb::object answer = nb::steal(argument ? PyObject_CallOneArg(function, argument) : PyObject_CallNoArgs(function));
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

// COMPOSITE if a tensor is not ordinary, or if forward mode, a dispatch mode or a tracer is active; AUTOGRAD if a gradient
// may be asked for; else KERNEL. The first tensor is the input, any other may be None. A tensor of another device, or
// wrapped by a transform of torch.func, has no memory that DLPack would show: the kernels decline it. So only AUTOGRAD,
// whose node transforms do not know, needs the last check.
inline int way(nb::args tensors) {
  if (tensors.size() == 0 || tensors[0].is_none()) return COMPOSITE;
  for (nb::handle t : tensors)
    if (!plain(t)) return COMPOSITE;
  PyObject* level = PyDict_GetItemWithError(watch.forward_ad, watch.level_name);
  if (!level || PyLong_AsLong(level) >= 0) return COMPOSITE;
  if (PyLong_AsLong(ask(watch.dispatch_modes).ptr()) != 0 || !ask(watch.tracing_state).is_none()) return COMPOSITE;
  if (ask(watch.key_included, watch.pre_dispatch).is(nb::handle(Py_True))) return COMPOSITE;  // make_fx, export
  if (!ask(watch.grad_enabled).is(nb::handle(Py_True))) return KERNEL;
  for (nb::handle t : tensors)
    if (!t.is_none() && attribute(t.ptr(), watch.requires_grad))
      return attribute(nb::handle(tensors[0]).ptr(), watch.is_cpu) && ask(watch.functorch_level).is_none() ? AUTOGRAD
                                                                                                          : COMPOSITE;
  return KERNEL;
}

}  // namespace rmsnorm
