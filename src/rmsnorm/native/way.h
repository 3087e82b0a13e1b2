// The way of an eager torch call on a CPU (rmsnorm.torch.dispatch.Way). It is C++ because the same questions cost 0.5 µs
// in Python, and a whole call of F.layer_norm on 1024 elements takes 2.7.
#pragma once

#include "bindings.h"
#include "codes.h"
#include "python_tensors.h"

namespace rmsnorm {

namespace nb = nanobind;

// Objects of torch that rmsnorm.torch.dispatch passes once, and interned names. They are kept until the process ends.
inline struct {
  PyObject *tensor_type = nullptr, *parameter_type = nullptr;
  PyObject* forward_ad = nullptr;  // the dictionary of that module
  PyObject *functorch_level = nullptr, *dispatch_modes = nullptr, *tracing_state = nullptr, *grad_enabled = nullptr;
  PyObject *is_key_included = nullptr, *pre_dispatch_key = nullptr;
  PyObject *current_level = nullptr, *is_cpu = nullptr, *is_neg = nullptr, *requires_grad = nullptr;
} torch_objects;

inline void set_way(nb::handle tensor_type, nb::handle parameter_type, nb::handle forward_ad,
                    nb::handle functorch_level, nb::handle dispatch_modes, nb::handle is_key_included,
                    nb::handle pre_dispatch_key, nb::handle tracing_state, nb::handle grad_enabled) {
  const auto keep = [](nb::handle h) { return h.inc_ref().ptr(); };
  const auto intern = PyUnicode_InternFromString;
  torch_objects = {keep(tensor_type),      keep(parameter_type),     keep(forward_ad),   keep(functorch_level),
                   keep(dispatch_modes),   keep(tracing_state),      keep(grad_enabled), keep(is_key_included),
                   keep(pre_dispatch_key), intern("_current_level"), intern("is_cpu"),   intern("is_neg"),
                   intern("requires_grad")};
}

inline bool is_attribute_true(nb::handle object, PyObject* name) {
  return nb::steal(PyObject_GetAttr(object.ptr(), name)).is(nb::handle(Py_True));
}

inline nb::object call(PyObject* function, PyObject* argument = nullptr) {
  nb::object result = nb::steal(argument ? PyObject_CallOneArg(function, argument) : PyObject_CallNoArgs(function));
  if (!result.is_valid()) throw nb::python_error();
  return result;
}

// None, or a tensor that is no subclass, has memory, and is not negated by a flag (as imaginary parts of conjugates
// are).
inline bool is_ordinary(nb::handle h) {
  if (h.is_none()) return true;
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(h.ptr()));
  if (type != torch_objects.tensor_type && type != torch_objects.parameter_type) return false;
  return nb::steal(PyObject_CallMethodNoArgs(h.ptr(), torch_objects.is_neg)).is(nb::handle(Py_False)) &&
         !has_no_memory(h);
}

// COMPOSITE if a tensor is not ordinary, or if forward mode, a dispatch mode or a tracer is active. AUTOGRAD if a gradient
// may be needed. Else KERNEL. The first tensor is the input; any other may be None. Only AUTOGRAD must check the device,
// and for transforms of torch.func, which do not know its node: the kernels themselves decline tensors of other devices
// and tensors that a transform has wrapped, because DLPack shows no memory for them.
inline int way(nb::args tensors) {
  if (tensors.size() == 0 || tensors[0].is_none()) return COMPOSITE;
  for (nb::handle t : tensors)
    if (!is_ordinary(t)) return COMPOSITE;
  const auto& torch = torch_objects;
  PyObject* level = PyDict_GetItemWithError(torch.forward_ad, torch.current_level);
  if (!level || PyLong_AsLong(level) >= 0) return COMPOSITE;
  if (PyLong_AsLong(call(torch.dispatch_modes).ptr()) != 0 || !call(torch.tracing_state).is_none()) return COMPOSITE;
  // make_fx and export have modes of the PreDispatch key, which are in no stack.
  if (call(torch.is_key_included, torch.pre_dispatch_key).is(nb::handle(Py_True))) return COMPOSITE;
  if (!call(torch.grad_enabled).is(nb::handle(Py_True))) return KERNEL;
  for (nb::handle t : tensors) {
    if (t.is_none() || !is_attribute_true(t, torch.requires_grad)) continue;
    const bool cpu = is_attribute_true(nb::handle(tensors[0]), torch.is_cpu);
    return cpu && call(torch.functorch_level).is_none() ? AUTOGRAD : COMPOSITE;
  }
  return KERNEL;
}

}  // namespace rmsnorm
