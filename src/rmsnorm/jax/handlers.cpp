// The norms as XLA calls them on a CPU: two handlers over the kernels' table of C functions. rmsnorm/jax/primitives.py
// has the operations; kernels.py registers the handlers.
//
// Arrays are dense: rows have the shape (groups, rows, heads, n), parameters (groups, heads, n).

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfenv>
#include <exception>
#include <new>
#include <optional>
#include <string_view>

#include "../native/c_api.h"
#include "xla_ffi.h"

namespace rmsnorm::xla_ffi {
namespace {

const c_api::Api* kernels = nullptr;

// XLA's threads treat subnormal numbers as zero, those of the kernels' own pool do not: results would depend on the
// thread.
class DefaultArithmetic {
 public:
  DefaultArithmetic() { std::fegetenv(&before_), std::fesetenv(FE_DFL_ENV); }
  ~DefaultArithmetic() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

int dtype_code(int dtype) {
  switch (dtype) {
    case F32: return int(DType::float32);
    case F64: return int(DType::float64);
    case BF16: return int(DType::bfloat16);
    case F16: return int(DType::float16);
    default: return -1;
  }
}

template <class T>
bool read(const CallFrame& frame, std::string_view name, int dtype, T& value) {
  const Attributes& attributes = frame.attributes;
  for (int64_t i = 0; i < attributes.size; ++i) {
    if (attributes.types[i] != SCALAR || std::string_view(attributes.names[i]->ptr, attributes.names[i]->len) != name)
      continue;
    const auto* scalar = static_cast<const Scalar*>(attributes.items[i]);
    if (scalar->dtype != dtype) return false;
    value = *static_cast<const T*>(scalar->value);
    return true;
  }
  return false;
}

// A call's arguments or results in their order; the bits of `present` say which of the optional ones are there.
class Operands {
 public:
  Operands(const Buffers& buffers, int64_t present) : buffers_(buffers), present_(present) {}
  const Buffer* next() {
    const bool here = present_ & 1;
    present_ >>= 1;
    if (!here || at_ >= buffers_.size || buffers_.types[at_] != BUFFER) return nullptr;
    return static_cast<const Buffer*>(buffers_.items[at_++]);
  }

 private:
  const Buffers& buffers_;
  int64_t present_, at_ = 0;
};

struct Shape {
  int64_t groups, rows, heads, n;

  explicit Shape(const Buffer& x) : groups(x.dims[0]), rows(x.dims[1]), heads(x.dims[2]), n(x.dims[3]) {}
  bool fits(const Buffer* b) const {
    if (!b) return true;
    if (b->rank == 4) return b->dims[0] == groups && b->dims[1] == rows && b->dims[2] == heads && b->dims[3] == n;
    return b->rank == 3 && b->dims[0] == groups && b->dims[1] == heads && b->dims[2] == n;
  }
  // The kernels know a gain of each head. One group is one call; of several, one for each head, in which the groups are
  // the heads.
  int64_t calls() const { return groups == 1 ? 1 : heads; }
};

// The part of an array that one call takes: (rows, heads or groups, n), or (heads or groups, n).
class Part : public c_api::StridedTensor {
 public:
  Part(const Buffer* b, const Shape& s, int64_t call) : present_(b) {
    if (!b) return;
    const bool one = s.groups == 1, has_rows = b->rank == 4;
    const int64_t count = one ? s.heads : s.groups, between = one ? s.n : (has_rows ? s.rows : 1) * s.heads * s.n;
    const int64_t shape[] = {s.rows, count, s.n}, strides[] = {s.heads * s.n, between, 1};
    std::copy_n(shape, 3, shape_), std::copy_n(strides, 3, strides_);
    dtype = dtype_code(b->dtype), ndim = has_rows ? 3 : 2;
    const int64_t item = dtype == int(DType::float64) ? 8 : dtype == int(DType::float32) ? 4 : 2;
    data = b->data ? static_cast<char*>(b->data) + call * s.n * item : nullptr;
    this->shape = shape_ + (3 - ndim), this->strides = strides_ + (3 - ndim);
  }
  Part(const Part&) = delete;
  const c_api::StridedTensor* get() const { return present_ ? this : nullptr; }

 private:
  const Buffer* present_;
  int64_t shape_[3], strides_[3];
};

bool read_spec(const CallFrame& frame, const Shape& shape, NormSpec& spec, int64_t& arguments, int64_t& results) {
  int64_t kind, flags, k;
  if (!read(frame, "kind", S64, kind) || !read(frame, "flags", S64, flags) || !read(frame, "k", S64, k) ||
      !read(frame, "eps", F64, spec.eps) || !read(frame, "arguments", S64, arguments) ||
      !read(frame, "results", S64, results))
    return false;
  spec.kind = NormKind(kind), spec.flags = int(flags), spec.dims = 1, spec.n = shape.n, spec.k = k;
  return k >= 0 && k <= shape.n;
}

// x [residual] [weight] [bias] → y [sum]
bool forward(const CallFrame& frame, const Buffer& x) {
  const Shape shape(x);
  NormSpec spec;
  int64_t arguments, results;
  if (!read_spec(frame, shape, spec, arguments, results)) return false;
  Operands in(frame.arguments, arguments), out(frame.results, results);
  in.next();
  const Buffer *residual = in.next(), *weight = in.next(), *bias = in.next(), *y = out.next(), *sum = out.next();
  for (const Buffer* b : {residual, weight, bias, y, sum})
    if (!shape.fits(b)) return false;
  for (int64_t i = 0; y && i < shape.calls(); ++i) {
    const Part x_(&x, shape, i), residual_(residual, shape, i), weight_(weight, shape, i), bias_(bias, shape, i),
        y_(y, shape, i), sum_(sum, shape, i);
    if (!kernels->forward(spec, x_, weight_.get(), bias_.get(), y_, residual_.get(), sum_.get())) return false;
  }
  return y;
}

// x dy [weight] [bias] [plus] → [dx + plus] [dweight] [dbias]
bool backward(const CallFrame& frame, const Buffer& x) {
  const Shape shape(x);
  NormSpec spec;
  int64_t arguments, results;
  if (!read_spec(frame, shape, spec, arguments, results)) return false;
  Operands in(frame.arguments, arguments), out(frame.results, results);
  in.next();
  const Buffer *dy = in.next(), *weight = in.next(), *bias = in.next(), *plus = in.next(), *dx = out.next(),
               *dweight = out.next(), *dbias = out.next();
  for (const Buffer* b : {dy, weight, bias, plus, dx, dweight, dbias})
    if (!shape.fits(b)) return false;
  for (int64_t i = 0; dy && i < shape.calls(); ++i) {
    const Part x_(&x, shape, i), dy_(dy, shape, i), weight_(weight, shape, i), plus_(plus, shape, i), dx_(dx, shape, i),
        dweight_(dweight, shape, i), dbias_(dbias, shape, i);
    if (!kernels->backward(spec, dy_, x_, weight_.get(), dx_.get(), plus_.get(), dweight_.get(), dbias_.get()))
      return false;
  }
  return dy;
}

// XLA asks for the version before it registers a handler. A version that it refuses would keep JAX from starting at all,
// so the answer is its own version, and each call checks the layout of what is read. jaxlib 0.7 does not say its version.
bool answered(const CallFrame& frame) {
  const Extension* extension = frame.extension_start;
  if (!extension || extension->type != METADATA) return false;
  Metadata& metadata = *reinterpret_cast<const MetadataExtension*>(extension)->metadata;
  metadata.api_version = {sizeof(Version), nullptr, MAJOR, frame.api ? frame.api->api_version.minor_version : 1};
  metadata.traits = 0;
  return true;
}

bool has_known_layout(const CallFrame& frame) {
  return frame.arguments.struct_size == sizeof(Buffers) && frame.results.struct_size == sizeof(Buffers) &&
         frame.attributes.struct_size == sizeof(Attributes) && frame.struct_size >= sizeof(CallFrame);
}

template <bool (*norm)(const CallFrame&, const Buffer&)>
Error* handler(CallFrame* frame) noexcept {
  if (answered(*frame)) return nullptr;
  const auto error = [=](const char* message, int code) {
    ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message, code};
    return frame->api->create_error(&arguments);
  };
  if (!has_known_layout(*frame))
    return error("this jaxlib calls handlers in a way that this rmsnorm does not know; install a newer rmsnorm",
                 INTERNAL);
  try {
    const Buffers& in = frame->arguments;
    const auto* x = in.size && in.types[0] == BUFFER ? static_cast<const Buffer*>(in.items[0]) : nullptr;
    const DefaultArithmetic arithmetic;
    if (x && x->rank == 4 && norm(*frame, *x)) return nullptr;
    return error("rmsnorm's kernels declined arguments that rmsnorm.jax had checked; please report this",
                 INVALID_ARGUMENT);
  } catch (const std::bad_alloc&) {
    return error("rmsnorm: there is not enough memory", RESOURCE_EXHAUSTED);
  } catch (const std::exception& e) {
    return error(e.what(), INTERNAL);
  }
}

// connect(the kernels' c_api) → (forward, backward), capsules for jax.ffi; None if the kernels are of another version.
PyObject* connect(PyObject*, PyObject* capsule) {
  const auto* api = static_cast<const c_api::Api*>(PyCapsule_GetPointer(capsule, c_api::CAPSULE));
  if (!api) return nullptr;
  if (api->version != c_api::VERSION) Py_RETURN_NONE;
  kernels = api;
  const auto wrapped = [](Error* (*f)(CallFrame*) noexcept) {
    return PyCapsule_New(reinterpret_cast<void*>(f), nullptr, nullptr);
  };
  return Py_BuildValue("(NN)", wrapped(&handler<forward>), wrapped(&handler<backward>));
}

PyMethodDef methods[] = {
    {"connect", connect, METH_O, "The handlers as capsules, over the kernels' table of C functions."}, {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ffi", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace rmsnorm::xla_ffi

PyMODINIT_FUNC PyInit__ffi() { return PyModule_Create(&rmsnorm::xla_ffi::module); }
