// What the module's functions have in common: how Python's arguments are read and judged, and parameters prepared.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "batch.h"
#include "c_api.h"
#include "passes.h"
#include "tensors.h"

namespace rmsnorm {

// Only work that outlasts it is worth giving the interpreter lock away for.
constexpr int64_t RELEASE_GIL = 1 << 16;
class MaybeReleased {
 public:
  explicit MaybeReleased(int64_t elements)  // autograd's threads come without the lock
      : state_(elements >= RELEASE_GIL && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
  ~MaybeReleased() {
    if (state_) PyEval_RestoreThread(state_);
  }

 private:
  PyThreadState* state_;
};

inline DType promote(DType a, DType b) {
  if (a == b) return a;
  return a == DType::float64 || b == DType::float64 ? DType::float64 : DType::float32;
}

template <class F>
void with_type(DType t, F f) {
  switch (t) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::bfloat16: return f(bf16{});
    case DType::float16: return f(f16{});
    default: break;  // no view that a kernel computes with has another
  }
}

inline bool number(nb::handle h, double& value) {
  value = PyFloat_AsDouble(h.ptr());
  if (value != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

inline PyObject* partial_count = nullptr;  // rmsnorm.spec's, handed over once: the exact arithmetic stands there alone

// k = ⌈n·p⌉, or −1 if p is wrong. The last answers are kept: a model has few pairs of n and p.
inline int64_t counted(int64_t n, nb::handle p_) {
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

using c_api::How;

// The normalised shape, eps and p of a call on x.
inline bool read_how(const View& x, nb::handle shape, nb::handle eps, nb::handle p, How& how) {
  if (!trailing(shape, x, how.dims, how.n)) return false;
  if (eps.is_none())
    how.eps = x.dtype == DType::float64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  else if (!number(eps, how.eps))
    return false;
  if (!(how.eps >= 0) || std::isinf(how.eps)) return false;
  how.k = counted(how.n, p);
  return how.k >= 0;
}

// What every call has in common: x, gain and bias, over which dimensions is normalised, and how.
struct Call {
  Call(NormKind norm, const View& x, const View* weight, const View* bias) : norm(norm), x(x), weight(weight), bias(bias) {}

  NormKind norm;
  const View& x;
  const View *weight, *bias;
  int dims = 0, parameter_dims = -1;
  int flags = 0;
  Problem problem{};

  bool accept(nb::handle shape, nb::handle eps, nb::handle p, int flags) {
    How how;
    how.flags = flags;
    return read_how(x, shape, eps, p, how) && accept(how);
  }
  // Whether x, weight and bias are the kernels'. `how` may be another tensor's: a hook may have changed what was saved.
  bool accept(const How& how) {
    dims = how.dims, flags = how.flags;
    if (dims < 1 || dims > x.ndim || x.size(x.ndim - dims, x.ndim) != how.n) return false;
    if (!x.contiguous(x.ndim - dims) || (weight && !takes(*weight)) || (bias && !takes(*bias))) return false;
    problem.n = how.n, problem.k = how.k, problem.eps = how.eps;
    problem.rows = x.size(0, x.ndim - dims);
    problem.threads = flags & OWN_THREADS ? Threads::own : Threads::torch;
    problem.fresh = flags & FRESH;
    return true;
  }
  // A gain or bias, or the gradient of one: of the normalised shape, or (heads, *normalised shape) with the extent that
  // x has there; all of one call alike.
  bool takes(const View& p) {
    if (parameter_dims < 0) {
      if ((p.ndim != dims && p.ndim != dims + 1) || p.ndim > x.ndim) return false;
      parameter_dims = p.ndim;
      if (p.ndim > dims) problem.heads = std::max<int64_t>(1, p.shape[0]);
    }
    return p.ndim == parameter_dims && std::equal(p.shape, p.shape + p.ndim, x.shape + (x.ndim - p.ndim));
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

// Gain and bias in the computation dtype, converted once a call where they are not so already; for paired loops, in
// their order.
template <class C>
class Parameters {
 public:
  explicit Parameters(const Call& call, bool paired = false) : paired_(paired) {
    affine.round_first = call.flags & ROUND_FIRST;
    if (call.weight) affine.g = prepare(*call.weight, call, gain_, call.flags & ZERO_CENTERED);
    if (call.bias) affine.b = prepare(*call.bias, call, bias_, false);
  }
  Affine<C> affine;

 private:
  const C* prepare(const View& v, const Call& call, Buffer<C>& buffer, bool plus_one) {
    const int64_t n = v.size(0, v.ndim);
    const bool direct = v.dtype == (sizeof(C) == 8 ? DType::float64 : DType::float32) && v.contiguous(0) && !plus_one;
    const C* straight = reinterpret_cast<const C*>(v.data);
    if (direct && !paired_) return straight;
    buffer = allocate<C>(n);
    if (!direct) {
      convert(v, n, plus_one, buffer.get());
      straight = buffer.get();
    }
    if constexpr (sizeof(C) == 4) {
      const int64_t row = call.problem.n;
      for (int64_t begin = 0; paired_ && begin < n; begin += row) pair(straight + begin, row, buffer.get() + begin);
    }
    return buffer.get();
  }
  void convert(const View& v, int64_t n, bool plus_one, C* to) const {
    with_type(v.dtype, [&](auto zero) {
      using W = decltype(zero);
      const W* data = reinterpret_cast<const W*>(v.data);
      if constexpr (sizeof(W) == 2 && sizeof(C) == 4) {  // the usual one is worth vectors: 1024 gains in 40 ns
        if (v.contiguous(0) && !plus_one)
          return sweep<C>(0, n, [&](int64_t i, int count) { put(to + i, get(data + i, count), count); });
      }
      const Rows elements(v, v.ndim);
      Cursor<const W> from(data, elements, 0);
      for (int64_t i = 0; i < n; ++i, ++from) {
        if (!plus_one)
          to[i] = C(widen(**from));
        else if (affine.round_first)  // 1 + w as the framework's expression has it: rounded to the weight's dtype
          to[i] = C(widen(narrow<W>(1 + double(widen(**from)))));
        else
          to[i] = C(1) + C(widen(**from));
      }
    });
  }
  // A row to the order of paired loops, and its NaNs to what those may round (simd.h); `to` may be `from` itself.
  static void pair(const float* from, int64_t n, float* to) {
    constexpr int N = LANES<float>;
    const auto sound = [](Vec<float> v) { return v == v ? v : splat(std::numeric_limits<float>::quiet_NaN()); };
    int64_t i = 0;
    for (; i + 2 * N <= n; i += 2 * N) {
      Vec<float> even, odd;
      take_apart(load(from + i), load(from + i + N), even, odd);
      store(to + i, sound(even));
      store(to + i + N, sound(odd));
    }
    sweep<float>(i, n, [&](int64_t j, int count) { put(to + j, sound(get(from + j, count)), count); });
  }
  bool paired_;
  Buffer<C> gain_, bias_;
};

// Memory that nobody may have touched yet: glibc maps arrays of 32 MiB and more anew each time, and gives back what is
// free beyond some MiB at the end of its heap. Page faults then cost five times the work; huge pages take 512 times
// fewer of them (x.clone() of 32 MiB: 8.2 → 2.7 ms).
inline void prepare_fresh(const View& v) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t LARGE = 8u << 20, PAGE = 4096;
  if (uintptr_t(v.bytes()) < LARGE) return;
  // The whole mapping, malloc's header included: since Linux 6.7 it begins where a huge page does.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(v.data) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(v.data) + uintptr_t(v.bytes())) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
}

// Sums over the rows of `heads` heads of n elements each, which a paired loop has left in its order.
inline void write_sums(const View& v, const double* sums, int64_t n, bool paired) {
  with_type(v.dtype, [&](auto zero) {
    using W = decltype(zero);
    const Rows elements(v, v.ndim);  // each element a row of one: any strides
    const int64_t count = v.size(0, v.ndim);
    Cursor<W> at(reinterpret_cast<W*>(v.data), elements, 0);
    for (int64_t begin = 0; begin < count; begin += n)
      for (int64_t i = 0; i < n; ++i, ++at) **at = narrow<W>(sums[begin + (paired ? paired_place(i, n) : i)]);
  });
}

}  // namespace rmsnorm
