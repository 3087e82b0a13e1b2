// From Python objects to Views. A tensor is either a tuple (address, dtype, shape, strides), or an object of a
// framework that exports DLPack's C exchange API (torch >= 2.10), which tells the same in about 30 ns.
#pragma once

#include <nanobind/nanobind.h>

#include "layout.h"

namespace rmsnorm {

namespace nb = nanobind;

// The part of DLPack 1.2's ABI that is read here.
namespace dlpack {
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
constexpr int32_t CPU = 1;
constexpr uint8_t FLOAT = 2, BFLOAT = 4;

struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows; null where not offered
  void* current_stream;
};
}  // namespace dlpack

inline const dlpack::Exchange* exchange = nullptr;

// The views of one call. false anywhere means "not for the kernels": Python then says why, or finds another way.
inline bool read_tuple(PyObject* o, View& v) {
  PyObject* item[4];
  if (PyTuple_GET_SIZE(o) != 4) return false;
  for (int i = 0; i < 4; ++i) item[i] = PyTuple_GET_ITEM(o, i);
  if (!PyTuple_Check(item[2]) || !PyTuple_Check(item[3])) return false;
  const Py_ssize_t ndim = PyTuple_GET_SIZE(item[2]);
  if (ndim > MAX_DIMS || PyTuple_GET_SIZE(item[3]) != ndim) return false;
  v.data = static_cast<char*>(PyLong_AsVoidPtr(item[0]));
  v.dtype = DType(PyLong_AsLong(item[1]));
  v.ndim = int(ndim);
  for (int d = 0; d < v.ndim; ++d) {
    v.shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(item[2], d));
    v.stride[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(item[3], d));
  }
  if (PyErr_Occurred()) throw nb::python_error();
  return v.dtype >= DType::f32 && v.dtype <= DType::f16;
}

inline bool read(nb::handle h, View& v) {
  PyObject* o = h.ptr();
  if (PyTuple_CheckExact(o)) return read_tuple(o, v);
  if (!exchange) return false;
  dlpack::Tensor t;
  if (exchange->tensor_from_object(o, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.device_type != dlpack::CPU || t.ndim > MAX_DIMS || t.lanes != 1) return false;
  if (t.code == dlpack::FLOAT && t.bits == 32)
    v.dtype = DType::f32;
  else if (t.code == dlpack::FLOAT && t.bits == 64)
    v.dtype = DType::f64;
  else if (t.code == dlpack::FLOAT && t.bits == 16)
    v.dtype = DType::f16;
  else if (t.code == dlpack::BFLOAT && t.bits == 16)
    v.dtype = DType::bf16;
  else
    return false;
  v.ndim = t.ndim;
  int64_t expected = 1;
  for (int d = t.ndim - 1; d >= 0; --d) {
    v.shape[d] = t.shape[d];
    v.stride[d] = t.strides ? t.strides[d] : expected;
    expected *= t.shape[d];
  }
  if (!t.data && expected) return false;  // a wrapper, or zeros that are nowhere
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  return true;
}

// Whether a tensor says that it is on a CPU and has elements, but no memory: functionalisation's wrappers, and torch's zeros
// that are not stored.
inline bool has_no_memory(nb::handle h) {
  dlpack::Tensor t;
  if (!exchange || exchange->tensor_from_object(h.ptr(), &t) != 0) {
    PyErr_Clear();
    return false;
  }
  return t.device_type == dlpack::CPU && !t.data && std::all_of(t.shape, t.shape + t.ndim, [](int64_t n) { return n > 0; });
}

// The normalised shape: an int or a sequence of ints that are the last dimensions of x.
inline bool trailing(nb::handle normalized_shape, const View& x, int& dims, int64_t& n) {
  PyObject* o = normalized_shape.ptr();
  if (PyLong_Check(o)) {
    dims = 1;
    n = PyLong_AsLongLong(o);
    if (n == -1 && PyErr_Occurred()) PyErr_Clear();
    return x.ndim >= 1 && x.shape[x.ndim - 1] == n;
  }
  const bool tuple = PyTuple_Check(o);  // torch.Size is one
  if (!tuple && !PyList_Check(o)) return false;
  dims = int(tuple ? PyTuple_GET_SIZE(o) : PyList_GET_SIZE(o));
  if (dims < 1 || dims > x.ndim) return false;
  n = 1;
  for (int d = 0; d < dims; ++d) {
    PyObject* item = tuple ? PyTuple_GET_ITEM(o, d) : PyList_GET_ITEM(o, d);
    if (!PyLong_Check(item)) return false;
    const int64_t extent = PyLong_AsLongLong(item);
    if (extent == -1 && PyErr_Occurred()) PyErr_Clear();
    if (extent != x.shape[x.ndim - dims + d]) return false;
    n *= extent;
  }
  return true;
}

}  // namespace rmsnorm
