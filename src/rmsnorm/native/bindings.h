// What each file of bindings adds to the module, and who is asked where the kernels decline.
#pragma once

#include <nanobind/nanobind.h>

namespace rmsnorm {

// A Python function (name, arguments…) → bool that serves other devices' tensors, or null. It is asked only for what
// the kernels have declined, so that a call on a CPU does not pay for it.
inline PyObject* elsewhere = nullptr;

template <class... A>
auto or_elsewhere(const char* name, bool (*kernel)(A...)) {
  return [=](A... a) {
    return kernel(a...) || (elsewhere && nanobind::cast<bool>(nanobind::handle(elsewhere)(name, a...)));
  };
}

void bind_gated(nanobind::module_& m);
void bind_recurrent(nanobind::module_& m);
void bind_quantized(nanobind::module_& m);

}  // namespace rmsnorm
