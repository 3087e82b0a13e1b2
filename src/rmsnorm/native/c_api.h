// The norms for other compiled modules, which describe tensors without Python objects: rmsnorm/torch/nodes.cpp and
// rmsnorm/torch/ops.cpp use it.
#pragma once

#include <cstdint>

#include "norm_spec.h"

namespace rmsnorm::c_api {

constexpr int VERSION = 4;
constexpr const char* CAPSULE = "rmsnorm.native.c_api";
// The function that returns the Api, in the kernels' library without Python.
constexpr const char* SYMBOL = "rmsnorm_c_api";

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
  // Null in a program without Python.
  bool (*read_spec)(const StridedTensor& x, void* normalized_shape, void* eps, void* p, NormSpec& spec);
  bool (*forward)(const NormSpec&, const StridedTensor& x, const StridedTensor* weight, const StridedTensor* bias,
                  const StridedTensor& y, const StridedTensor* residual, const StridedTensor* sum);
  bool (*backward)(const NormSpec&, const StridedTensor& dy, const StridedTensor& x, const StridedTensor* weight,
                   const StridedTensor* dx, const StridedTensor* plus, const StridedTensor* dweight,
                   const StridedTensor* dbias);
  // The same as read_spec, of numbers. A null eps: the default. groups: 1, or a gated norm's; n and k are those of one.
  bool (*make_spec)(const StridedTensor& x, const int64_t* normalized_shape, int dims, const double* eps, double p,
                    int64_t groups, NormSpec& spec);
  bool (*gated_forward)(const GatedSpec&, const StridedTensor& x, const StridedTensor& gate,
                        const StridedTensor* weight, const StridedTensor& y);
  bool (*gated_backward)(const GatedSpec&, const StridedTensor& dy, const StridedTensor& x, const StridedTensor& gate,
                         const StridedTensor* weight, const StridedTensor& dx, const StridedTensor& dgate,
                         const StridedTensor* dweight);
  // libtorch's torch_parallel_for, for calls without the flag OWN_THREADS.
  void (*use_threads)(void* torch_parallel_for);
};

}  // namespace rmsnorm::c_api

extern "C" __attribute__((visibility("default"))) const rmsnorm::c_api::Api* rmsnorm_c_api();
