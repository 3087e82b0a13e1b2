// The norms as other compiled modules call them, without Python objects for tensors: rmsnorm/torch/nodes.cpp does.
#pragma once

#include <cstdint>

#include "codes.h"

namespace rmsnorm::c_api {

constexpr int VERSION = 3;
constexpr const char* CAPSULE = "rmsnorm.native.c_api";

// A tensor on a CPU: dtype is a DType, or −1 for another, which no kernel serves; strides in elements. The kernels
// judge what is said here, so that who calls them says it of every tensor as it is.
struct Strided {
  void* data;
  int dtype, ndim;
  const int64_t *shape, *strides;
};

// What a call says beside its tensors.
struct How {
  NormKind norm;
  int flags;
  int dims;         // of the input, the last ones, over which is normalised
  int64_t n, k;     // their elements, and how many the statistic is of
  double eps;
};

// A null pointer is what is not given or not wanted. false: the kernels do not serve this, and nothing was written.
struct Api {
  int version;
  // With Python's lock held: the arguments normalized_shape, eps and p as the user gave them. Sets no Python error.
  bool (*read)(const Strided& x, void* normalized_shape, void* eps, void* p, How& how);
  bool (*forward)(const How&, const Strided& x, const Strided* weight, const Strided* bias, const Strided& y,
                  const Strided* residual, const Strided* sum);
  bool (*backward)(const How&, const Strided& dy, const Strided& x, const Strided* weight, const Strided* dx,
                   const Strided* plus, const Strided* dweight, const Strided* dbias);
};

}  // namespace rmsnorm::c_api
