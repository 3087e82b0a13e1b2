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
constexpr uint8_t INT = 0, FLOAT = 2, BFLOAT = 4, FLOAT8_E4M3 = 10;

struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows; null where not offered
  void* current_stream;
};
}  // namespace dlpack

inline const dlpack::Exchange* exchange = nullptr;

// One tensor of a framework that exports the interface; borrowed. false: no such tensor, and no Python error.
inline bool borrow(PyObject* o, dlpack::Tensor& t) {
  if (exchange && exchange->tensor_from_object(o, &t) == 0) return true;
  PyErr_Clear();
  return false;
}

// The address of the first element; null for a wrapper, for torch's zeros that are nowhere, and for a view of a storage
// that was freed (`resize_(0)`, as FSDP does), whose address is its offset alone. No memory lies below 2^40 bytes by
// itself, so that an ordinary tensor is not asked.
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
  return t.bits == 32 ? int(DType::float32) : t.bits == 64 ? int(DType::float64) : t.bits == 16 ? int(DType::float16) : -1;
}

// What a tuple says: address, dtype, shape, strides.
struct Described {
  void* data;
  int dtype, ndim;
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];
};
inline bool describe(PyObject* o, Described& d) {
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

// Nothing means "not for the kernels": Python then says why, or finds another way.
inline std::optional<View> read(nb::handle h, bool eight_bit = false) {
  PyObject* o = h.ptr();
  if (PyTuple_CheckExact(o)) {
    Described d;
    return describe(o, d) ? View::of(d.data, d.dtype, d.ndim, d.shape, d.stride, eight_bit) : std::nullopt;
  }
  dlpack::Tensor t;
  if (!borrow(o, t) || t.device_type != dlpack::CPU) return std::nullopt;
  return View::of(address(o, t), dtype_code(t), t.ndim, t.shape, t.strides, eight_bit);
}

// An argument that must be a tensor, and one that may be None, as they were read; kernels get them from `served` alone.
class Needed {
 public:
  explicit Needed(std::optional<View> view) : view_(std::move(view)) {}
  explicit Needed(nb::handle h, bool eight_bit = false) : view_(read(h, eight_bit)) {}

 private:
  template <class F, class... A>
  friend bool served(F f, const A&... arguments);
  bool was_read() const { return view_.has_value(); }
  const View& get() const { return *view_; }
  std::optional<View> view_;
};
class Optional {
 public:
  explicit Optional(nb::handle h) : given_(!h.is_none()), view_(given_ ? read(h) : std::nullopt) {}
  Optional(bool given, std::optional<View> view) : given_(given), view_(std::move(view)) {}

 private:
  template <class F, class... A>
  friend bool served(F f, const A&... arguments);
  bool was_read() const { return !given_ || view_; }
  const View* get() const { return view_ ? &*view_ : nullptr; }
  bool given_;
  std::optional<View> view_;
};

// f of the views, a reference for what is needed and a pointer, null for None, for what is optional, if every argument
// could be read; f says whether it serves them.
template <class F, class... A>
bool served(F f, const A&... arguments) {
  return (arguments.was_read() && ...) && f(arguments.get()...);
}

// Whether a tensor says that it is on a CPU and has elements, but no memory.
inline bool has_no_memory(nb::handle h) {
  dlpack::Tensor t;
  return borrow(h.ptr(), t) && t.device_type == dlpack::CPU && !address(h.ptr(), t) &&
         std::all_of(t.shape, t.shape + t.ndim, [](int64_t n) { return n > 0; });
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
