// The Python module of one instruction-set level. Its functions return True when they have done the work, and False
// when the arguments are not ones they serve; they never raise for a wrong argument. rmsnorm.spec does that, once.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gate.h"
#include "operations.h"
#include "tensors.h"

#ifndef RMSNORM_MODULE
#error "RMSNORM_MODULE names the module; CMakeLists.txt sets it"
#endif

namespace rmsnorm {
namespace {

constexpr int ZERO_CENTERED = 1, ROUND_FIRST = 2, OWN_THREADS = 4, FRESH = 8;

// Only work that outlasts it is worth giving the interpreter lock away for.
constexpr int64_t RELEASE_GIL = 1 << 16;
class MaybeReleased {
 public:
  explicit MaybeReleased(int64_t elements) : state_(elements >= RELEASE_GIL ? PyEval_SaveThread() : nullptr) {}
  ~MaybeReleased() {
    if (state_) PyEval_RestoreThread(state_);
  }

 private:
  PyThreadState* state_;
};

DType promote(DType a, DType b) {
  if (a == b) return a;
  return a == DType::f64 || b == DType::f64 ? DType::f64 : DType::f32;
}

template <class F>
void with_type(DType t, F f) {
  switch (t) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
  }
}

bool number(nb::handle h, double& value) {
  value = PyFloat_AsDouble(h.ptr());
  if (value != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

PyObject* partial_count = nullptr;  // rmsnorm.spec's, handed over once: the exact arithmetic stands there alone

// k = ⌈n·p⌉, or −1 if p is wrong. The last answers are kept: a model has few pairs of n and p.
int64_t counted(int64_t n, nb::handle p_) {
  double p;
  if (!number(p_, p)) return -1;
  if (p == 1) return n;
  struct Answer {
    int64_t n, k;
    double p;
  };
  static Answer answers[8] = {};  // guarded by the interpreter lock
  static int next = 0;
  for (const Answer& a : answers)
    if (a.n == n && a.p == p) return a.k;
  nb::object k = nb::steal(PyObject_CallFunction(partial_count, "Ld", (long long)n, p));
  if (!k.is_valid()) {
    PyErr_Clear();
    return -1;
  }
  answers[next] = {n, PyLong_AsLongLong(k.ptr()), p};
  const int64_t found = answers[next].k;
  next = (next + 1) % 8;
  return found;
}

// What every call has in common: x, the normalised shape, gain and bias, eps, p, flags.
struct Call {
  View x, weight, bias;
  bool has_weight = false, has_bias = false;
  int dims = 0;
  int flags = 0;
  Problem problem{};

  bool read_all(nb::handle x_, nb::handle shape, nb::handle w, nb::handle b, nb::handle eps, nb::handle p, int flags_) {
    flags = flags_;
    if (!read(x_, x) || !trailing(shape, x, dims, problem.n) || !x.contiguous(x.ndim - dims)) return false;
    has_weight = !w.is_none(), has_bias = !b.is_none();
    if (has_weight && (!read(w, weight) || !is_parameter(weight))) return false;
    if (has_bias && (!read(b, bias) || !is_parameter(bias))) return false;
    if (eps.is_none())
      problem.eps = x.dtype == DType::f64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
    else if (!number(eps, problem.eps))
      return false;
    if (!(problem.eps >= 0) || std::isinf(problem.eps)) return false;
    problem.k = counted(problem.n, p);
    if (problem.k < 0) return false;
    problem.rows = x.size(0, x.ndim - dims);
    problem.threads = flags & OWN_THREADS ? Threads::own : Threads::torch;
    problem.fresh = flags & FRESH;
    return true;
  }
  bool is_parameter(const View& p) const {
    if (p.ndim != dims) return false;
    for (int d = 0; d < dims; ++d)
      if (p.shape[d] != x.shape[x.ndim - dims + d]) return false;
    return true;
  }
  // A tensor of x's shape whose rows are contiguous.
  bool is_like_x(const View& v) const {
    if (v.ndim != x.ndim || !v.contiguous(v.ndim - dims)) return false;
    for (int d = 0; d < x.ndim; ++d)
      if (v.shape[d] != x.shape[d]) return false;
    return true;
  }
  template <class T>
  Tensor<T> tensor(const View& v) const {
    return {reinterpret_cast<T*>(v.data), Rows(v, v.ndim - dims)};
  }
};

// Gain and bias in the computation dtype, converted once a call where they are not so already.
template <class C>
class Parameters {
 public:
  Parameters(const Call& call) {
    affine.round_first = call.flags & ROUND_FIRST;
    if (call.has_weight) affine.g = prepare(call.weight, call, gain_, call.flags & ZERO_CENTERED);
    if (call.has_bias) affine.b = prepare(call.bias, call, bias_, false);
  }
  Affine<C> affine;

 private:
  const C* prepare(const View& v, const Call& call, Buffer<C>& buffer, bool plus_one) {
    const int64_t n = call.problem.n;
    const bool direct = v.dtype == (sizeof(C) == 8 ? DType::f64 : DType::f32) && v.contiguous(0) && !plus_one;
    if (direct) return reinterpret_cast<const C*>(v.data);
    buffer = allocate<C>(n);
    with_type(v.dtype, [&](auto zero) {
      using W = decltype(zero);
      const W* data = reinterpret_cast<const W*>(v.data);
      if constexpr (sizeof(W) == 2 && sizeof(C) == 4) {  // the usual one is worth vectors: 1024 gains in 40 ns
        if (v.contiguous(0) && !plus_one)
          return sweep<C>(0, n, [&](int64_t i, int count) { put(buffer.get() + i, get(data + i, count), count); });
      }
      const Rows elements(v, v.ndim);  // each element a row of one: any strides
      Cursor<const W> from(data, elements, 0);
      for (int64_t i = 0; i < n; ++i, ++from) {
        if (!plus_one)
          buffer[i] = C(widen(**from));
        else if (affine.round_first)  // 1 + w as the framework's expression has it: rounded to the weight's dtype
          buffer[i] = C(widen(narrow<W>(1 + double(widen(**from)))));
        else
          buffer[i] = C(1) + C(widen(**from));
      }
    });
    return buffer.get();
  }
  Buffer<C> gain_, bias_;
};

// Memory that nobody may have touched yet: glibc maps arrays of 32 MiB and more anew each time, and gives back what is
// free beyond some MiB at the end of its heap. Page faults then cost five times the work; huge pages take 512 times
// fewer of them (x.clone() of 32 MiB: 8.2 → 2.7 ms).
void prepare_fresh(const View& v) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t LARGE = 8u << 20, PAGE = 4096;
  if (uintptr_t(v.bytes()) < LARGE) return;
  // The whole mapping, malloc's header included: since Linux 6.7 it begins where a huge page does.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(v.data) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(v.data) + uintptr_t(v.bytes())) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
}

void write_sums(const View& v, const double* sums, int64_t n) {
  with_type(v.dtype, [&](auto zero) {
    using W = decltype(zero);
    const Rows elements(v, v.ndim);
    Cursor<W> at(reinterpret_cast<W*>(v.data), elements, 0);
    for (int64_t i = 0; i < n; ++i, ++at) **at = narrow<W>(sums[i]);
  });
}

// ---- the operations ----

template <class Norm, class T, class Y>
void run_forward(const Call& call, const View& y, const View* residual, const View* sum) {
  if (call.problem.fresh) {
    prepare_fresh(y);
    if (sum) prepare_fresh(*sum);
  }
  MaybeReleased released(call.problem.rows * call.problem.n);
  Parameters<compute_t<T>> parameters(call);
  Forward<T, Y> f;
  f.x = call.tensor<const T>(call.x);
  f.y = call.tensor<Y>(y);
  if (residual) {
    f.residual = call.tensor<const T>(*residual);
    f.sum = call.tensor<T>(*sum);
  }
  f.affine = parameters.affine;
  forward<Norm>(call.problem, f);
}

template <class Norm>
bool any_forward(const Call& call, const View& y, const View* residual = nullptr, const View* sum = nullptr) {
  if (!call.is_like_x(y)) return false;
  if (call.problem.rows == 0 || call.problem.n == 0) return true;
  // A row is read before it is written, so that y may be x itself; but no other memory that is still to be read.
  if (!y.contiguous(0) && !y.writable()) return false;
  if (y.overlaps(call.x) && !y.is_same_memory(call.x)) return false;
  if ((call.has_weight && y.overlaps(call.weight)) || (call.has_bias && y.overlaps(call.bias))) return false;
  DType expected = call.x.dtype;
  if (call.flags & ROUND_FIRST) {
    if (call.has_weight) expected = promote(expected, call.weight.dtype);
    const DType product = expected;
    if (call.has_bias) expected = promote(expected, call.bias.dtype);
    // One rounding between product and sum is made, to y's dtype; and products in float64 are for float64 rows.
    if (call.has_weight && product != expected) return false;
    if (expected == DType::f64 && call.x.dtype != DType::f64) return false;
  }
  if (y.dtype != expected) return false;
  const bool widened = expected != call.x.dtype;
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      if (widened) return run_forward<Norm, T, float>(call, y, residual, sum);
    }
    run_forward<Norm, T, T>(call, y, residual, sum);
  });
  return true;
}

template <class Norm, class T, class D>
void run_backward(const Call& call, const View& dy, const View* dx, const View* plus, const View* dweight,
                  const View* dbias) {
  const int64_t n = call.problem.n;
  if (dx) prepare_fresh(*dx);
  MaybeReleased released(call.problem.rows * n);
  Parameters<compute_t<T>> parameters(call);
  const auto sums = allocate<double>(2 * n);
  Backward<T, D> b{};
  b.dy = call.tensor<const D>(dy);
  b.x = call.tensor<const T>(call.x);
  if (dx) b.dx = call.tensor<T>(*dx);
  if (plus) b.plus = call.tensor<const T>(*plus);
  b.affine = parameters.affine;
  b.affine.b = nullptr;
  b.dweight = dweight ? sums.get() : nullptr;
  b.dbias = dbias ? sums.get() + n : nullptr;
  backward<Norm>(call.problem, b);
  if (dweight) write_sums(*dweight, b.dweight, n);
  if (dbias) write_sums(*dbias, b.dbias, n);
}

template <class Norm>
bool any_backward(const Call& call, nb::handle dy_, nb::handle dx_, nb::handle plus_, nb::handle dweight_,
                  nb::handle dbias_) {
  View dy, dx, plus, dweight, dbias;
  const bool has_dx = !dx_.is_none(), has_plus = !plus_.is_none(), has_dweight = !dweight_.is_none(),
             has_dbias = !dbias_.is_none();
  if (!read(dy_, dy) || !call.is_like_x(dy)) return false;
  if (has_dx && (!read(dx_, dx) || !call.is_like_x(dx) || dx.dtype != call.x.dtype)) return false;
  if (has_plus && (!read(plus_, plus) || !call.is_like_x(plus) || plus.dtype != call.x.dtype)) return false;
  if (has_dweight && (!read(dweight_, dweight) || !call.is_parameter(dweight))) return false;
  if (has_dbias && (!read(dbias_, dbias) || !call.is_parameter(dbias))) return false;
  const bool half = call.x.dtype == DType::bf16 || call.x.dtype == DType::f16;
  const bool widened = half && dy.dtype == DType::f32;
  if (dy.dtype != call.x.dtype && !widened) return false;
  if (call.problem.n == 0) return true;
  const auto given = [](bool has, const View& v) { return has ? &v : nullptr; };
  with_type(call.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto d) {
      run_backward<Norm, T, decltype(d)>(call, dy, given(has_dx, dx), given(has_plus, plus), given(has_dweight, dweight),
                                         given(has_dbias, dbias));
    };
    if constexpr (sizeof(T) == 2) {
      if (widened) return run(float{});
    }
    run(T{});
  });
  return true;
}

bool rms_norm(nb::handle x, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_, nb::handle eps, nb::handle p,
              int flags) {
  Call call;
  View y;
  return call.read_all(x, shape, w, b, eps, p, flags) && read(y_, y) && any_forward<RMS>(call, y);
}

bool layer_norm(nb::handle x, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_, nb::handle eps, int flags) {
  Call call;
  View y;
  return call.read_all(x, shape, w, b, eps, nb::float_(1.0), flags) && read(y_, y) && any_forward<Layer>(call, y);
}

bool add_rms_norm(nb::handle x, nb::handle residual_, nb::handle shape, nb::handle w, nb::handle b, nb::handle y_,
                  nb::handle sum_, nb::handle eps, nb::handle p, int flags) {
  Call call;
  View y, residual, sum;
  if (!call.read_all(x, shape, w, b, eps, p, flags) || !read(y_, y) || !read(residual_, residual) || !read(sum_, sum))
    return false;
  for (const View* v : {&residual, &sum})
    if (!call.is_like_x(*v) || v->dtype != call.x.dtype) return false;
  return any_forward<RMS>(call, y, &residual, &sum);
}

bool rms_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                       nb::handle dweight, nb::handle dbias, nb::handle eps, nb::handle p, int flags) {
  Call call;
  return call.read_all(x, shape, w, nb::none(), eps, p, flags) && any_backward<RMS>(call, dy, dx, plus, dweight, dbias);
}

bool layer_norm_backward(nb::handle dy, nb::handle x, nb::handle shape, nb::handle w, nb::handle dx, nb::handle plus,
                         nb::handle dweight, nb::handle dbias, nb::handle eps, int flags) {
  Call call;
  return call.read_all(x, shape, w, nb::none(), eps, nb::float_(1.0), flags) &&
         any_backward<Layer>(call, dy, dx, plus, dweight, dbias);
}

}  // namespace
}  // namespace rmsnorm

NB_MODULE(RMSNORM_MODULE, m) {
  using namespace rmsnorm;
  const auto none = nb::arg().none();
  m.def("rms_norm", &rms_norm, none, none, none, none, none, none, none, nb::arg());
  m.def("layer_norm", &layer_norm, none, none, none, none, none, none, nb::arg());
  m.def("add_rms_norm", &add_rms_norm, none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("rms_norm_backward", &rms_norm_backward, none, none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("layer_norm_backward", &layer_norm_backward, none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("set_torch_parallel_for", [](uintptr_t address) {
    torch_parallel_for = reinterpret_cast<TorchParallelFor>(address);
  });
  m.def("set_exchange", [](nb::handle capsule) {
    auto* api = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) throw nb::python_error();
    if (api->major != 1 || !api->tensor_from_object) return false;
    exchange = api;
    return true;
  });
  m.def("set_gate", &set_gate);
  m.def("gate", &gate, none, none, none);
  m.def("set_partial_count", [](nb::handle function) { partial_count = function.inc_ref().ptr(); });
  m.def("num_threads", [] { return Pool::instance().threads(); });
  m.def("set_num_threads", [](int threads) { Pool::instance().set_threads(threads); });
}
