// The backward pass of one step of a normalised GRU or LSTM: through state, gates and norms, to the gradients of both
// sides' rows, of the state before, and of gains and biases.
#pragma once

#include "recurrent.h"

namespace rmsnorm {

// Sums over rows: float32 within a few rows, float64 beyond, in tasks of a number of rows that depends on the batch
// alone, so that neither threads nor the number of steps show.
constexpr int64_t STEP_LEAF_ROWS = 8, STEP_TASKS = 32;

template <class T>
struct BackwardLayout {
  Layout<T> forward;
  const T* dh_after;   // (rows, H): what reaches the outputs from outside, or null
  T *dinput, *dstate;  // (rows, G·H); dinput is null where the input's side is absent
  T *dh, *dc;          // (batch, H): what reaches the state from the step after; then what goes on to the one before
  bool bias_inside;    // b_ih stands before the norm of its side
};

// The places of a layer's parameters in one row of sums: dgain_ih, dgain_hh, db_ih, db_hh (G·H each), dgain_cell (H).
template <class C>
struct ParameterSums {
  C *input_gain, *state_gain, *input_bias, *state_bias, *cell_gain;
  ParameterSums(C* p, int64_t W)
      : input_gain(p), state_gain(p + W), input_bias(p + 2 * W), state_bias(p + 3 * W), cell_gain(p + 4 * W) {}
};
inline int64_t count_of_sums(const Recurrence& r) { return 4 * r.width() + r.hidden; }

// From the gradient d behind gain and bias to that of the stretch [0, n) before the norm: u = g ⊙ d,
// dx = rstd (u − m ⊙ x̂ ⟨u, x̂⟩/k − mean(u) [centred]); sums over rows: dgain += d ⊙ x̂, dbias += d (or dx).
template <class T, class D, class C>
RMSNORM_NOINLINE void stretch_backward(const T* x, const C* d, const C* gain, D* dx, C* dgain, C* dbias, int64_t n,
                                       const Segment& part, const Statistics<C>& s, bool centred, bool bias_inside) {
  const int64_t k = part.k ? part.k : n;
  C along = 0, level = 0;
  if (part.k) {
    const auto [dot, sum] = reduce<C, 2>(n, [&](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
      const Vec<C> u = at.get(d) * at.get(gain);
      total[0] += u * keep_first<C>(normalize_any<C>(at.get(x), s), at.count);  // beyond the row −mean·rstd may be infinite
      total[1] += u;
    });
    along = C(dot / double(k));
    level = centred ? C(sum / double(n)) : C(0);
  }
  const C rstd = s.rstd * s.scale;
  const auto elements = [=, &s](auto term) RMSNORM_INLINE_LAMBDA {  // term(x̂): what x̂ takes from u
    return [=, &s](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
      const Vec<C> given = get(d + i, count), xhat = normalize_any<C>(get(x + i, count), s);
      const Vec<C> through = (given * get(gain + i, count) - term(xhat) - level) * rstd;
      put(dx + i, through, count);
      put(dgain + i, get(dgain + i, count) + given * xhat, count);
      if (dbias) put(dbias + i, get(dbias + i, count) + (bias_inside ? through : given), count);
    };
  };
  sweep<C>(0, k, elements([=](Vec<C> xhat) RMSNORM_INLINE_LAMBDA { return xhat * along; }));
  // Not x̂ · 0, which is NaN where x̂ is infinite.
  if (k < n) sweep<C>(k, n, elements([](Vec<C>) RMSNORM_INLINE_LAMBDA { return Vec<C>{}; }));
}

template <class T, class C>
void side_backward(const Recurrence& r, const Placement& placement, const Side<T>& side, const C* d, T* dx, C* dgain,
                   C* dbias, bool bias_inside) {
  const auto stretch = [&](const Segment& part) {
    const int64_t i = part.first * r.hidden, n = (part.last - part.first) * r.hidden;
    stretch_backward(side.row + i, d + i, side.gain + i, dx + i, dgain + i, dbias + i, n, part,
                     side.of_gate[part.first], r.centred, bias_inside);
  };
  if (placement.segments == 0) stretch({0, r.gates, 0});
  for (int i = 0; i < placement.segments; ++i) stretch(placement.segment[i]);
}

// d_input and d_state: the gradients behind gain and bias of either side, (3·H) each.
template <class T, class C>
RMSNORM_NOINLINE void gru_row_backward(const Recurrence& r, const Side<T>& c, const T* gates, const T* h_before,
                                       const T* dh_after, T* dh, C* d_input, C* d_state) {
  const int64_t H = r.hidden;
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> reset = get(gates + j, count), update = get(gates + H + j, count);
    const Vec<C> fresh = get(gates + 2 * H + j, count);
    Vec<C> d = get(dh + j, count);
    if (dh_after) d += get(dh_after + j, count);
    const Vec<C> dfresh = d * (C(1) - update) * (C(1) - fresh * fresh);
    const Vec<C> dupdate = d * (get(h_before + j, count) - fresh) * update * (C(1) - update);
    const Vec<C> dreset = dfresh * c.at(2, H, j, count) * reset * (C(1) - reset);
    put(dh + j, d * update, count);
    put(d_input + j, dreset, count);
    put(d_input + H + j, dupdate, count);
    put(d_input + 2 * H + j, dfresh, count);
    put(d_state + j, dreset, count);
    put(d_state + H + j, dupdate, count);
    put(d_state + 2 * H + j, dfresh * reset, count);
  });
}

// d: the gradient behind gain and bias of both sides, (4·H); buffer: 2·H numbers.
template <class T, class C>
RMSNORM_NOINLINE void lstm_row_backward(const Recurrence& r, const Layout<T>& l, int64_t at, const T* dh_after, T* dh,
                                        T* dc, C* d, C* dcell_gain, C* buffer) {
  const int64_t H = r.hidden;
  const T *gates = l.gates + at * 4 * H, *c_before = l.c_before + at * H, *c_after = l.c_after + at * H;
  const auto s = r.cell.k ? r.statistics(c_after, H, r.cell.k) : UNNORMALISED<C>;
  C *const dcell = buffer, *const dthrough = buffer + H;
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> given = get(dh + j, count);
    if (dh_after) given += get(dh_after + j, count);
    const Vec<C> v = normalize_any<C>(get(c_after + j, count), s) * get(l.cell_gain + j, count);
    const Vec<C> t = hyperbolic_tangent<C>(v), out = get(gates + 3 * H + j, count);
    put(dcell + j, given * out * (C(1) - t * t), count);
    put(d + 3 * H + j, given * t * out * (C(1) - out), count);
    put(dh + j, Vec<C>{}, count);
  });
  stretch_backward(c_after, dcell, l.cell_gain, dthrough, dcell_gain, static_cast<C*>(nullptr), H, r.cell, s, r.centred,
                   false);
  sweep<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> dstate = get(dthrough + j, count) + get(dc + j, count);
    const Vec<C> in = get(gates + j, count), forget = get(gates + H + j, count), fresh = get(gates + 2 * H + j, count);
    put(d + j, dstate * fresh * in * (C(1) - in), count);
    put(d + H + j, dstate * get(c_before + j, count) * forget * (C(1) - forget), count);
    put(d + 2 * H + j, dstate * in * (C(1) - fresh * fresh), count);
    put(dc + j, dstate * forget, count);
  });
}

// How the rows of a batch are dealt out; rows of a task add to the same sums.
inline int64_t rows_of_task(int64_t batch) {
  return std::max(STEP_LEAF_ROWS, (batch + STEP_TASKS - 1) / STEP_TASKS);
}
inline int64_t tasks_of(int64_t batch) { return (batch + rows_of_task(batch) - 1) / rows_of_task(batch); }

// Rows [row, row + rows) of the slabs; sums: (tasks_of(batch), count_of_sums) numbers that are added to.
template <class T>
void recurrent_step_backward(const Recurrence& r, const BackwardLayout<T>& b, int64_t row, int64_t rows, int64_t batch,
                             double* sums) {
  using C = compute_t<T>;
  const int64_t H = r.hidden, W = r.width(), task_rows = rows_of_task(batch), count = count_of_sums(r);
  const auto& l = b.forward;
  const int64_t grain = std::max<int64_t>(1, step_grain(r) / task_rows);
  parallel_for(r.threads, 0, (rows + task_rows - 1) / task_rows, grain, [&](int64_t first, int64_t last) {
    const auto memory = allocate<C>(2 * W + 2 * H + count);
    C *const d_input = memory.get(), *const d_state = d_input + W, *const buffer = d_state + W, *const leaf = buffer + 2 * H;
    const ParameterSums<C> to(leaf, W);
    for (int64_t task = first; task < last; ++task) {
      const int64_t end = std::min(rows, (task + 1) * task_rows);
      for (int64_t begin = task * task_rows; begin < end; begin += STEP_LEAF_ROWS) {
        std::fill(leaf, leaf + count, C(0));
        for (int64_t i = begin; i < std::min(end, begin + STEP_LEAF_ROWS); ++i) {
          const int64_t at = row + i;
          const Side<T> a(r, r.input, l.input ? l.input + at * W : nullptr, l.input_gain, l.input_bias);
          const Side<T> c(r, r.state, l.state + at * W, l.state_gain, l.state_bias);
          const T* const dh_after = b.dh_after ? b.dh_after + at * H : nullptr;
          if (r.gates == 3)
            gru_row_backward(r, c, l.gates + at * W, l.h_before + at * H, dh_after, b.dh + i * H, d_input, d_state);
          else
            lstm_row_backward(r, l, at, dh_after, b.dh + i * H, b.dc + i * H, d_input, to.cell_gain, buffer);
          const C* const d_of_state = r.gates == 3 ? d_state : d_input;
          if (a.row)
            side_backward(r, r.input, a, d_input, b.dinput + at * W, to.input_gain, to.input_bias, b.bias_inside);
          side_backward(r, r.state, c, d_of_state, b.dstate + at * W, to.state_gain, to.state_bias, false);
        }
        double* const total = sums + task * count;
        for (int64_t i = 0; i < count; ++i) total[i] += double(leaf[i]);
      }
    }
  });
}

}  // namespace rmsnorm
