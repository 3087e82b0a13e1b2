// One step of a normalised GRU or LSTM, forward and backward, for the rows of a batch: norms, gates and state in one
// kernel. The matrix products before and after it are the framework's.
//
// A cell sees two sides, a = W_ih x + b_ih and c = W_hh h, each a row of G·H numbers: the gates' stretches one behind
// the other. What one statistic is taken of is a segment, a run of gates.
#pragma once

#include "batch.h"
#include "parallel.h"
#include "passes.h"
#include "transcendental.h"

namespace rmsnorm {

struct Segment {
  int first, last;  // gates [first, last)
  int64_t k;        // elements that the statistic is taken of
};

// How a side is normalised: no segment means not at all.
struct Placement {
  int segments = 0;
  Segment segment[2];
};

struct Recurrence {
  int gates;  // 3: GRU (r, z, n), 4: LSTM (i, f, g, o)
  int64_t hidden;
  bool centred;  // LayerNorm's statistics instead of RMSNorm's
  double eps;
  Placement input, state;
  Segment cell{0, 1, 0};  // of the LSTM's cell state before its tanh; no elements: not normalised
  double update_bias = 0;  // added to the GRU's z
  Threads threads = Threads::torch;

  int64_t width() const { return gates * hidden; }
  template <class T>
  Statistics<compute_t<T>> statistics(const T* x, int64_t n, int64_t k) const {
    return centred ? Layer::statistics(x, n, k, eps) : RMS::statistics(x, n, k, eps);
  }
};

template <class C>
constexpr Statistics<C> UNNORMALISED = {1, 0, 1, 0};

template <class C>
RMSNORM_INLINE Vec<C> normalize_any(Vec<C> x, const Statistics<C>& s) {
  return (x * s.scale - s.mean) * s.rstd + s.shift;
}

// One side's row with the statistics of its gates. gain and bias are there always (ones and zeros where a layer has
// none), so that one loop serves every placement.
template <class T>
struct Side {
  using C = compute_t<T>;
  const T* row;  // null: this side is absent, and counts as zero
  const C *gain, *bias;
  Statistics<C> of_gate[4];

  Side(const Recurrence& r, const Placement& placement, const T* row_, const C* gain_, const C* bias_)
      : row(row_), gain(gain_), bias(bias_) {
    for (int gate = 0; gate < r.gates; ++gate) of_gate[gate] = UNNORMALISED<C>;
    if (!row) return;
    for (int i = 0; i < placement.segments; ++i) {
      const Segment& part = placement.segment[i];
      const auto s = r.statistics(row + part.first * r.hidden, (part.last - part.first) * r.hidden, part.k);
      for (int gate = part.first; gate < part.last; ++gate) of_gate[gate] = s;
    }
  }
  RMSNORM_INLINE Vec<C> at(int gate, int64_t hidden, int64_t j, int count) const {
    if (!row) return Vec<C>{};
    const int64_t i = gate * hidden + j;
    return normalize_any<C>(get(row + i, count), of_gate[gate]) * get(gain + i, count) + get(bias + i, count);
  }
};

// What a layer's steps have in common. Every slab holds the rows of all steps; `state` may hold those of one step only,
// where nobody will ask for gradients.
template <class T>
struct Layout {
  using C = compute_t<T>;
  const T *input, *state;  // (rows, G·H): a (or null) and c
  const T *h_before;       // (rows, H)
  T* h_after;
  const T* c_before;  // LSTM
  T* c_after;
  T* gates;  // (rows, G·H), or null
  const C *input_gain, *state_gain, *input_bias, *state_bias;  // (G·H)
  const C* cell_gain;                                          // (H)
};

template <class T>
RMSNORM_NOINLINE void gru_row(const Recurrence& r, const Side<T>& a, const Side<T>& c, const T* h_before, T* h_after,
                              T* gates) {
  using C = compute_t<T>;
  const int64_t H = r.hidden;
  const C update_bias = C(r.update_bias);
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> reset = sigmoid<C>(a.at(0, H, j, count) + c.at(0, H, j, count));
    const Vec<C> update = sigmoid<C>(a.at(1, H, j, count) + c.at(1, H, j, count) + update_bias);
    const Vec<C> fresh = hyperbolic_tangent<C>(a.at(2, H, j, count) + reset * c.at(2, H, j, count));
    put(h_after + j, fresh + update * (get(h_before + j, count) - fresh), count);
    if (!gates) return;
    put(gates + j, reset, count);
    put(gates + H + j, update, count);
    put(gates + 2 * H + j, fresh, count);
  });
}

template <class T, class C>
RMSNORM_NOINLINE void lstm_row(const Recurrence& r, const Side<T>& a, const Side<T>& c, const T* c_before, T* c_after,
                               T* h_after, T* gates, const C* cell_gain, C* out_gate) {
  const int64_t H = r.hidden;
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> in = sigmoid<C>(a.at(0, H, j, count) + c.at(0, H, j, count));
    const Vec<C> forget = sigmoid<C>(a.at(1, H, j, count) + c.at(1, H, j, count));
    const Vec<C> fresh = hyperbolic_tangent<C>(a.at(2, H, j, count) + c.at(2, H, j, count));
    const Vec<C> out = sigmoid<C>(a.at(3, H, j, count) + c.at(3, H, j, count));
    put(c_after + j, forget * get(c_before + j, count) + in * fresh, count);
    put(out_gate + j, out, count);
    if (!gates) return;
    put(gates + j, in, count);
    put(gates + H + j, forget, count);
    put(gates + 2 * H + j, fresh, count);
    put(gates + 3 * H + j, out, count);
  });
  const auto s = r.cell.k ? r.statistics(c_after, H, r.cell.k) : UNNORMALISED<C>;
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = normalize_any<C>(get(c_after + j, count), s) * get(cell_gain + j, count);
    put(h_after + j, get(out_gate + j, count) * hyperbolic_tangent<C>(v), count);
  });
}

inline int64_t step_grain(const Recurrence& r) {
  // A gate's element costs about ten times an element of a norm.
  return std::max<int64_t>(1, GRAIN / 8 / std::max<int64_t>(1, r.width()));
}

// Rows [row, row + rows) of the slabs; state_row is the first one's place in `state`.
template <class T>
void recurrent_step(const Recurrence& r, const Layout<T>& l, int64_t row, int64_t rows, int64_t state_row) {
  using C = compute_t<T>;
  const int64_t H = r.hidden, W = r.width();
  parallel_for(r.threads, 0, rows, step_grain(r), [&](int64_t begin, int64_t end) {
    const auto buffer = allocate<C>(r.gates == 4 ? H : 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = row + i;
      const Side<T> a(r, r.input, l.input ? l.input + at * W : nullptr, l.input_gain, l.input_bias);
      const Side<T> c(r, r.state, l.state + (state_row + i) * W, l.state_gain, l.state_bias);
      T* const gates = l.gates ? l.gates + at * W : nullptr;
      if (r.gates == 3)
        gru_row(r, a, c, l.h_before + at * H, l.h_after + at * H, gates);
      else
        lstm_row(r, a, c, l.c_before + at * H, l.c_after + at * H, l.h_after + at * H, gates, l.cell_gain, buffer.get());
    }
  });
}

}  // namespace rmsnorm
