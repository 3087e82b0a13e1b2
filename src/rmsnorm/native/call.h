// What all calls share: checks of their tensors, and the preparation of gains and biases.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arguments.h"
#include "batch.h"
#include "row_passes.h"

namespace rmsnorm {

// The interpreter's lock. module.cpp sets both functions: the same kernels run in programs without an interpreter.
struct InterpreterLock {
  void* (*release_if_held)();  // what `take` needs; null if this thread does not hold the lock
  void (*take)(void* released);
};
inline InterpreterLock interpreter_lock{};

// Releases the interpreter lock if the work takes longer than that costs. Autograd's threads do not hold the lock.
constexpr int64_t RELEASE_GIL_ELEMENTS = 1 << 16;
class MaybeReleasedGil {
 public:
  explicit MaybeReleasedGil(int64_t elements)
      : state_(elements >= RELEASE_GIL_ELEMENTS && interpreter_lock.take ? interpreter_lock.release_if_held()
                                                                         : nullptr) {}
  ~MaybeReleasedGil() {
    if (state_) interpreter_lock.take(state_);
  }

 private:
  void* state_;
};

inline DType promoted_dtype(DType a, DType b) {
  if (a == b) return a;
  return a == DType::float64 || b == DType::float64 ? DType::float64 : DType::float32;
}

// k = ⌈n·p⌉ as rmsnorm.spec.partial_count computes it, or −1 if p is not allowed or the row too long to be sure. It is the
// smallest count whose share k/n, as a float, is not below p: p is read as the simplest fraction that rounds to it, and
// of two fractions with denominators up to 10^7 at most one rounds to p, as they differ by 10^−14 and p's neighbours by
// 1.1·10^−16.
constexpr int64_t LONGEST_PARTIAL_ROW = 10'000'000;
inline int64_t elements_of_statistic(int64_t n, double p) {
  if (p == 1 || n == 0) return p > 0 && p <= 1 ? n : -1;
  if (!(p > 0 && p < 1) || n > LONGEST_PARTIAL_ROW) return -1;
  int64_t k = std::max<int64_t>(1, int64_t(double(n) * p) - 1);
  while (double(k) / double(n) < p) ++k;
  return k;
}

// eps of a call on x; NaN if it is not allowed.
inline double checked_eps(const View& x, const double* eps) {
  if (!eps)
    return x.dtype == DType::float64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  return *eps >= 0 && !std::isinf(*eps) ? *eps : std::numeric_limits<double>::quiet_NaN();
}

// The input, gain and bias of a call, and the problem they make.
struct Call {
  Call(const View& x, const View* weight, const View* bias) : x(x), weight(weight), bias(bias) {}

  const View& x;
  const View *weight, *bias;
  Problem problem{};

  // Whether the kernels serve x, weight and bias. A backward pass must check again: a hook may have replaced the saved
  // tensors that the specification was made for.
  bool accept(const NormSpec& spec) {
    problem.spec = spec;
    const int dims = spec.dims;
    if (dims < 1 || dims > x.ndim || x.size(x.ndim - dims, x.ndim) != spec.n) return false;
    if (!x.contiguous(x.ndim - dims)) return false;
    if ((weight && !accept_parameter(*weight)) || (bias && !accept_parameter(*bias))) return false;
    problem.rows = x.size(0, x.ndim - dims);
    return true;
  }
  // Whether a gain, a bias or the gradient of one has the normalised shape, or (heads, *normalised shape), heads being
  // x's extent before the normalised dimensions. All parameters of a call must have the same shape.
  bool accept_parameter(const View& p) {
    if (parameter_dims < 0) {
      const int dims = problem.spec.dims;
      if ((p.ndim != dims && p.ndim != dims + 1) || p.ndim > x.ndim) return false;
      parameter_dims = p.ndim;
      if (p.ndim > dims) problem.heads = std::max<int64_t>(1, p.shape[0]);
    }
    return p.ndim == parameter_dims && std::equal(p.shape, p.shape + p.ndim, x.shape + (x.ndim - p.ndim));
  }
  // Whether v has x's shape, and contiguous rows.
  bool is_like_x(const View& v) const {
    if (v.ndim != x.ndim || !v.contiguous(v.ndim - problem.spec.dims)) return false;
    for (int d = 0; d < x.ndim; ++d)
      if (v.shape[d] != x.shape[d]) return false;
    return true;
  }
  template <class T>
  Tensor<T> tensor(const View& v) const {
    return {reinterpret_cast<T*>(v.data), Rows(v, v.ndim - problem.spec.dims)};
  }

 protected:
  int parameter_dims = -1;  // unknown until the first parameter
};

// Gain and bias in the computation dtype, and in the order of paired loops if asked for. Each is converted once a call,
// unless it is stored that way already.
template <class C>
class Parameters {
 public:
  explicit Parameters(const Call& call, bool paired = false) : paired_(paired) {
    const int flags = call.problem.spec.flags;
    affine.round_first = flags & ROUND_FIRST;
    if (call.weight) affine.gain = prepare(*call.weight, call, gain_, flags & ZERO_CENTERED);
    if (call.bias) affine.bias = prepare(*call.bias, call, bias_, false);
  }
  Affine<C> affine;

 private:
  const C* prepare(const View& v, const Call& call, Buffer<C>& buffer, bool plus_one) {
    const int64_t n = v.size(0, v.ndim);
    const bool usable = v.dtype == (sizeof(C) == 8 ? DType::float64 : DType::float32) && v.contiguous(0) && !plus_one;
    const C* unpaired = reinterpret_cast<const C*>(v.data);
    if (usable && !paired_) return unpaired;
    buffer = allocate<C>(n);
    if (!usable) {
      convert(v, n, plus_one, buffer.get());
      unpaired = buffer.get();
    }
    if constexpr (sizeof(C) == 4) {
      const int64_t row = call.problem.spec.n;
      for (int64_t begin = 0; paired_ && begin < n; begin += row) pair(unpaired + begin, row, buffer.get() + begin);
    }
    return buffer.get();
  }
  void convert(const View& v, int64_t n, bool plus_one, C* to) const {
    with_type(v.dtype, [&](auto zero) {
      using W = decltype(zero);
      const W* data = reinterpret_cast<const W*>(v.data);
      if constexpr (sizeof(W) == 2 && sizeof(C) == 4) {  // the usual case, with vectors: 1024 gains in 40 ns
        if (v.contiguous(0) && !plus_one)
          return for_each_vector<C>(0, n,
                                    [&](int64_t i, int count) { store_n(to + i, load_n(data + i, count), count); });
      }
      const Rows elements(v, v.ndim);
      Cursor<const W> from(data, elements, 0);
      for (int64_t i = 0; i < n; ++i, ++from) {
        if (!plus_one)
          to[i] = C(widen(**from));
        else if (affine.round_first)  // Llama's expression rounds 1 + w to the weight's dtype
          to[i] = C(widen(narrow<W>(1 + double(widen(**from)))));
        else
          to[i] = C(1) + C(widen(**from));
      }
    });
  }
  // Puts a row into the order of paired loops, and its NaNs into the form that these can round (demote_even_odd). `to`
  // may be `from` itself.
  static void pair(const float* from, int64_t n, float* to) {
    constexpr int N = LANES<float>;
    const Vec<float> plain_nan = set<float>(std::numeric_limits<float>::quiet_NaN());
    const auto with_plain_nan = [=](Vec<float> v) { return v == v ? v : plain_nan; };
    int64_t i = 0;
    for (; i + 2 * N <= n; i += 2 * N) {
      const Vec<float> low = load(from + i), high = load(from + i + N);
      store(to + i, with_plain_nan(concat_even(high, low)));
      store(to + i + N, with_plain_nan(concat_odd(high, low)));
    }
    for_each_vector<float>(
        i, n, [&](int64_t j, int count) { store_n(to + j, with_plain_nan(load_n(from + j, count)), count); });
  }
  bool paired_;
  Buffer<C> gain_, bias_;
};

// Asks for huge pages for an output that was just allocated. glibc maps every array of at least 32 MiB again, and
// returns memory at the end of its heap to the system, so the pages are often not there yet. Their faults then cost
// five times the work; with huge pages there are 512 times fewer (x.clone() of 32 MiB: 8.2 → 2.7 ms).
// Returns whether the pages are there (an allocator that keeps its memory): asked for four of a large output's.
inline bool prepare_fresh(const View& v) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t LARGE = SANITIZED ? 2048 : 8 << 20, PAGE = 4096;
  if (uintptr_t(v.bytes()) < LARGE) return false;
  // The range begins at the page of malloc's header: since Linux 6.7 a large mapping begins where a huge page does.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(v.data) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(v.data) + uintptr_t(v.bytes())) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint, which may fail
  for (uintptr_t eighth : {1, 3, 5, 7}) {
    unsigned char there = 0;
    const uintptr_t page = (begin + (end - begin) / 8 * eighth) / PAGE * PAGE;
    if (mincore(reinterpret_cast<void*>(page), PAGE, &there) != 0 || !(there & 1)) return false;
  }
  return true;
#else
  return false;
#endif
}

// Writes sums over rows, n for each head, to a tensor of any strides. `paired`: the sums are in the order of paired
// loops.
RMSNORM_NOINLINE inline void write_sums(const View& v, const double* sums, int64_t n, bool paired) {
  with_type(v.dtype, [&](auto zero) {
    using W = decltype(zero);
    W* const to = reinterpret_cast<W*>(v.data);
    const int64_t count = v.size(0, v.ndim);
    const auto sum = [=](int64_t begin, int64_t i) {
      return narrow<W>(sums[begin + (paired ? paired_index(i, n) : i)]);
    };
    if (v.contiguous(0)) {
      for (int64_t begin = 0; begin < count; begin += n)
        for (int64_t i = 0; i < n; ++i) to[begin + i] = sum(begin, i);
      return;
    }
    const Rows elements(v, v.ndim);
    Cursor<W> at(to, elements, 0);
    for (int64_t begin = 0; begin < count; begin += n)
      for (int64_t i = 0; i < n; ++i, ++at) **at = sum(begin, i);
  });
}

}  // namespace rmsnorm
