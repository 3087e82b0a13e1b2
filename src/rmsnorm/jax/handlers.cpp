// The norms as XLA calls them on a CPU: two handlers over the kernels' table of C functions. rmsnorm/jax/primitives.py
// has the operations; kernels.py registers the handlers.
//
// Arrays are dense and come flat: rows are (groups, rows, heads, n), parameters (groups, heads, n). With these shapes XLA
// would choose an order for dimensions of 1 that is not the handler's, and copy every array into that.

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

enum class Role { rows, parameter };

struct Shape {
  int64_t groups, rows, heads, n;

  // Whether the attributes say how x is divided.
  bool read_from(const CallFrame& frame, const Buffer& x) {
    if (!read(frame, "groups", S64, groups) || !read(frame, "heads", S64, heads) || !read(frame, "n", S64, n))
      return false;
    int64_t parameter;
    if (groups < 0 || heads < 0 || n < 0 || __builtin_mul_overflow(groups, heads, &parameter) ||
        __builtin_mul_overflow(parameter, n, &parameter))
      return false;
    rows = parameter ? x.dims[0] / parameter : 0;
    return rows * parameter == x.dims[0];
  }
  bool fits(const Buffer* b, Role role) const {
    return !b || (b->rank == 1 && b->dims[0] == groups * (role == Role::rows ? rows : 1) * heads * n);
  }
  // The kernels know a gain of each head. One group is one call; of several, one for each head, in which the groups are
  // the heads.
  int64_t calls() const { return groups == 1 ? 1 : heads; }
};

// The part of an array that one call takes: (rows, heads or groups, n), or (heads or groups, n).
class Part : public c_api::StridedTensor {
 public:
  Part(const Buffer* b, Role role, const Shape& s, int64_t call) : present_(b) {
    if (!b) return;
    const bool one = s.groups == 1, has_rows = role == Role::rows;
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

bool read_spec(const CallFrame& frame, const Buffer& x, Shape& shape, NormSpec& spec, int64_t& arguments,
               int64_t& results) {
  int64_t kind, flags, k;
  if (!shape.read_from(frame, x) || !read(frame, "kind", S64, kind) || !read(frame, "flags", S64, flags) ||
      !read(frame, "k", S64, k) || !read(frame, "eps", F64, spec.eps) || !read(frame, "arguments", S64, arguments) ||
      !read(frame, "results", S64, results))
    return false;
  spec.kind = NormKind(kind), spec.flags = int(flags), spec.dims = 1, spec.n = shape.n, spec.k = k;
  return k >= 0 && k <= shape.n;
}

// x [residual] [weight] [bias] → y [sum]
bool forward(const CallFrame& frame, const Buffer& x) {
  Shape shape;
  NormSpec spec;
  int64_t arguments, results;
  if (!read_spec(frame, x, shape, spec, arguments, results)) return false;
  Operands in(frame.arguments, arguments), out(frame.results, results);
  in.next();
  const Buffer *residual = in.next(), *weight = in.next(), *bias = in.next(), *y = out.next(), *sum = out.next();
  for (const Buffer* b : {residual, y, sum})
    if (!shape.fits(b, Role::rows)) return false;
  for (const Buffer* b : {weight, bias})
    if (!shape.fits(b, Role::parameter)) return false;
  for (int64_t i = 0; y && i < shape.calls(); ++i) {
    const auto rows = [&](const Buffer* b) { return Part(b, Role::rows, shape, i); };
    const auto parameter = [&](const Buffer* b) { return Part(b, Role::parameter, shape, i); };
    const Part x_ = rows(&x), residual_ = rows(residual), weight_ = parameter(weight), bias_ = parameter(bias),
               y_ = rows(y), sum_ = rows(sum);
    if (!kernels->forward(spec, x_, weight_.get(), bias_.get(), y_, residual_.get(), sum_.get())) return false;
  }
  return y;
}

// x dy [weight] [bias] [plus] → [dx + plus] [dweight] [dbias]
bool backward(const CallFrame& frame, const Buffer& x) {
  Shape shape;
  NormSpec spec;
  int64_t arguments, results;
  if (!read_spec(frame, x, shape, spec, arguments, results)) return false;
  Operands in(frame.arguments, arguments), out(frame.results, results);
  in.next();
  const Buffer *dy = in.next(), *weight = in.next(), *bias = in.next(), *plus = in.next(), *dx = out.next(),
               *dweight = out.next(), *dbias = out.next();
  for (const Buffer* b : {dy, plus, dx})
    if (!shape.fits(b, Role::rows)) return false;
  for (const Buffer* b : {weight, bias, dweight, dbias})
    if (!shape.fits(b, Role::parameter)) return false;
  for (int64_t i = 0; dy && i < shape.calls(); ++i) {
    const auto rows = [&](const Buffer* b) { return Part(b, Role::rows, shape, i); };
    const auto parameter = [&](const Buffer* b) { return Part(b, Role::parameter, shape, i); };
    const Part x_ = rows(&x), dy_ = rows(dy), plus_ = rows(plus), dx_ = rows(dx), weight_ = parameter(weight),
               dweight_ = parameter(dweight), dbias_ = parameter(dbias);
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
    if (x && x->rank == 1 && norm(*frame, *x)) return nullptr;
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
