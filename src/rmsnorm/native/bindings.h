// The functions that the other files add to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace rmsnorm {

void bind_recurrent(nanobind::module_& m);
void bind_quantized(nanobind::module_& m);
void bind_rotary(nanobind::module_& m);

}  // namespace rmsnorm
