// The norms for other compiled modules, which describe tensors without Python objects. rmsnorm/torch/nodes.cpp uses it.
#pragma once

#include <cstdint>

#include "norm_spec.h"

namespace rmsnorm::c_api {

constexpr int VERSION = 3;
constexpr const char* CAPSULE = "rmsnorm.native.c_api";

// A tensor on a CPU, described as it is: the kernels check whether they serve it. dtype is a DType, or −1 for any other
// dtype. Strides count elements.
struct StridedTensor {
  void* data;
  int dtype, ndim;
  const int64_t *shape, *strides;
};

// Null pointers are tensors that are not given or not wanted. The functions return false, and have written nothing, if
// the kernels do not serve such arguments.
struct Api {
  int version;
  // The arguments normalized_shape, eps and p as the user gave them, as PyObject*. kind and flags of `spec` must be
  // set; the rest of it is written. The interpreter lock must be held. Sets no Python error.
  bool (*read_spec)(const StridedTensor& x, void* normalized_shape, void* eps, void* p, NormSpec& spec);
  bool (*forward)(const NormSpec&, const StridedTensor& x, const StridedTensor* weight, const StridedTensor* bias,
                  const StridedTensor& y, const StridedTensor* residual, const StridedTensor* sum);
  bool (*backward)(const NormSpec&, const StridedTensor& dy, const StridedTensor& x, const StridedTensor* weight,
                   const StridedTensor* dx, const StridedTensor* plus, const StridedTensor* dweight,
                   const StridedTensor* dbias);
};

}  // namespace rmsnorm::c_api
