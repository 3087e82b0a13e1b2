// From Python objects to Views. A tensor is an object of a framework that exports DLPack's C exchange API (torch >=
// 2.10), which describes it in about 30 ns; a tuple (array,) with a NumPy array of float16, float32 or float64; or else
// a tuple (address, dtype, shape, strides).
#pragma once

#include <nanobind/nanobind.h>

#include "arguments.h"

namespace rmsnorm {

namespace nb = nanobind;

// The part of DLPack 1.2's ABI that is used here.
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
constexpr uint8_t INT = 0, FLOAT = 2, BFLOAT = 4, FLOAT8_E4M3 = 10;

struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // a borrowed description; may be null
  void* current_stream;
};
}  // namespace dlpack

inline const dlpack::Exchange* dlpack_exchange = nullptr;

// The description of a tensor, valid while the object lives. False if the framework gives none; no Python error is set.
inline bool borrow_tensor(PyObject* o, dlpack::Tensor& t) {
  if (dlpack_exchange && dlpack_exchange->tensor_from_object(o, &t) == 0) return true;
  PyErr_Clear();
  return false;
}

// The address of the first element. It is null if the tensor has no memory: wrappers, torch's zero tensors, and views
// of a storage that was freed (`resize_(0)`, as FSDP does). The address of such a view is its offset alone. Memory lies
// above 2^40 bytes, so ordinary tensors skip the check.
inline void* address(PyObject* o, const dlpack::Tensor& t) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(t.data) + t.byte_offset;
  if (first < uintptr_t(1) << 40) {
    static PyObject* const name = PyUnicode_InternFromString("storage_offset");
    const nb::object offset = nb::steal(PyObject_CallMethodNoArgs(o, name));
    if (offset.is_valid() && PyLong_AsUnsignedLongLong(offset.ptr()) * (t.bits / 8) == first) return nullptr;
    PyErr_Clear();
  }
  return reinterpret_cast<void*>(first);
}

inline int dtype_code(const dlpack::Tensor& t) {
  if (t.lanes != 1) return -1;
  if (t.code == dlpack::FLOAT8_E4M3) return t.bits == 8 ? int(DType::float8_e4m3fn) : -1;
  if (t.code == dlpack::INT) return t.bits == 8 ? int(DType::int8) : -1;
  if (t.code == dlpack::BFLOAT) return t.bits == 16 ? int(DType::bfloat16) : -1;
  if (t.code != dlpack::FLOAT) return -1;
  switch (t.bits) {
    case 16: return int(DType::float16);
    case 32: return int(DType::float32);
    case 64: return int(DType::float64);
    default: return -1;
  }
}

// A tuple (address, dtype, shape, strides).
struct TupleTensor {
  void* data;
  int dtype, ndim;
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];
};
inline bool read_tuple(PyObject* o, TupleTensor& d) {
  PyObject* item[4];
  if (PyTuple_GET_SIZE(o) != 4) return false;
  for (int i = 0; i < 4; ++i) item[i] = PyTuple_GET_ITEM(o, i);
  if (!PyTuple_Check(item[2]) || !PyTuple_Check(item[3])) return false;
  const Py_ssize_t ndim = PyTuple_GET_SIZE(item[2]);
  if (ndim > MAX_DIMS || PyTuple_GET_SIZE(item[3]) != ndim) return false;
  d.data = PyLong_AsVoidPtr(item[0]), d.dtype = int(PyLong_AsLong(item[1])), d.ndim = int(ndim);
  for (int i = 0; i < d.ndim; ++i) {
    d.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(item[2], i));
    d.stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(item[3], i));
  }
  if (PyErr_Occurred()) throw nb::python_error();
  return true;
}

// What NumPy's __array_struct__ holds (its documentation: "The array interface protocol"). Strides are in bytes.
struct ArrayStruct {
  int two, ndim;
  char kind;
  int itemsize, flags;
  Py_intptr_t *shape, *strides;
  void* data;
  static constexpr int USUAL = 0x100 | 0x200;  // aligned, in the machine's byte order
};

// A NumPy array. Its __array_interface__ would take 1 µs to make; this takes 50 ns.
inline std::optional<View> read_array(PyObject* o) {
  static PyObject* const name = PyUnicode_InternFromString("__array_struct__");
  const nb::object capsule = nb::steal(PyObject_GetAttr(o, name));
  const auto* a =
      static_cast<ArrayStruct*>(capsule.is_valid() ? PyCapsule_GetPointer(capsule.ptr(), nullptr) : nullptr);
  if (!a) PyErr_Clear();
  if (!a || a->two != 2 || a->kind != 'f' || (a->flags & ArrayStruct::USUAL) != ArrayStruct::USUAL) return {};
  const bool known = a->ndim <= MAX_DIMS && (a->itemsize == 2 || a->itemsize == 4 || a->itemsize == 8);
  if (!known) return {};
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];
  for (int i = 0; i < a->ndim; ++i) {
    if (a->strides[i] % a->itemsize) return {};
    shape[i] = a->shape[i], stride[i] = a->strides[i] / a->itemsize;
  }
  const DType dtype = a->itemsize == 2 ? DType::float16 : a->itemsize == 4 ? DType::float32 : DType::float64;
  return View::of(a->data, int(dtype), a->ndim, shape, stride);
}

// Nothing if the kernels do not serve such a tensor.
inline std::optional<View> read_view(nb::handle h, bool eight_bit = false) {
  PyObject* o = h.ptr();
  if (PyTuple_CheckExact(o)) {
    if (PyTuple_GET_SIZE(o) == 1) return read_array(PyTuple_GET_ITEM(o, 0));
    TupleTensor d;
    return read_tuple(o, d) ? View::of(d.data, d.dtype, d.ndim, d.shape, d.stride, eight_bit) : std::nullopt;
  }
  dlpack::Tensor t;
  if (!borrow_tensor(o, t) || t.device_type != dlpack::CPU) return std::nullopt;
  return View::of(address(o, t), dtype_code(t), t.ndim, t.shape, t.strides, eight_bit);
}

// Arguments of call_with_views: a tensor, and one that may be None.
inline RequiredArgument required(nb::handle h, bool eight_bit = false) {
  return RequiredArgument(read_view(h, eight_bit));
}
inline OptionalArgument optional(nb::handle h) {
  const bool given = !h.is_none();
  return {given, given ? read_view(h) : std::nullopt};
}

// Whether a tensor is on a CPU and has elements, but no memory.
inline bool has_no_memory(nb::handle h) {
  dlpack::Tensor t;
  return borrow_tensor(h.ptr(), t) && t.device_type == dlpack::CPU && !address(h.ptr(), t) &&
         std::all_of(t.shape, t.shape + t.ndim, [](int64_t n) { return n > 0; });
}

// Reads an int, or a tuple or list of ints, that must equal the last dimensions of x.
inline bool read_normalized_shape(nb::handle normalized_shape, const View& x, int& dims, int64_t& n) {
  PyObject* o = normalized_shape.ptr();
  if (PyBool_Check(o)) return false;  // an int to Python
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
    if (!PyLong_Check(item) || PyBool_Check(item)) return false;
    const int64_t extent = PyLong_AsLongLong(item);
    if (extent == -1 && PyErr_Occurred()) PyErr_Clear();
    if (extent != x.shape[x.ndim - dims + d]) return false;
    n *= extent;
  }
  return true;
}

}  // namespace rmsnorm
