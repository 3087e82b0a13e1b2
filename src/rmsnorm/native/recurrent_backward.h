// The backward pass of one step of a normalised GRU or LSTM: through state, gates and norms, to the gradients of both
// sides' rows, of the previous state, and of gains and biases.
#pragma once

#include "recurrent.h"

namespace rmsnorm {

// Sums over rows are taken in float32 over STEP_LEAF_ROWS rows, and these sums are added in float64. How many rows a
// task has depends on the batch alone, so neither the number of threads nor of steps changes the result.
constexpr int64_t STEP_LEAF_ROWS = 8, STEP_TASKS = 32;
static_assert(STEP_LEAF_ROWS <= GROUP);

template <class T>
struct LayerGradients {
  LayerTensors<T> forward;
  const T* dh_after;   // (rows, H): the gradients of the outputs, or null
  T *dinput, *dstate;  // (rows, G·H); dinput is null if the input's side is absent
  T *dh, *dc;  // (batch, H): the state's gradients from the next step, replaced by those for the previous step
  bool bias_inside;  // b_ih is added before its side is normalised
};

// The sums of a layer's parameters, one after the other: four of G·H numbers, and the cell's of H.
template <class C>
struct ParameterSums {
  C *input_gain, *state_gain, *input_bias, *state_bias, *cell_gain;
  ParameterSums(C* p, int64_t W)
      : input_gain(p), state_gain(p + W), input_bias(p + 2 * W), state_bias(p + 3 * W), cell_gain(p + 4 * W) {}
};
inline int64_t count_of_sums(const Recurrence& r) { return 4 * r.width() + r.hidden; }

// The backward pass of norm, gain and bias of n elements, d being the gradient of the result. With u = gain ⊙ d, and
// m = 1 for the first k elements and 0 for the others:
//   dx = rstd (u − m ⊙ x̂ ⟨u, x̂⟩/k − mean(u) [if centred]),  dgain += d ⊙ x̂,  dbias += d, or dx if bias_inside.
template <class T, class D, class C>
RMSNORM_NOINLINE void segment_backward(const T* x, const C* d, const C* gain, D* dx, C* dgain, C* dbias, int64_t n,
                                       const Segment& segment, const Statistics<C>& s, bool centred, bool bias_inside) {
  const int64_t k = segment.k;
  C along_xhat = 0, mean = 0;
  if (k) {
    const auto [dot, sum] = accumulate<C, 2>(n, [&](auto at, Vec<C>* total) RMSNORM_INLINE_LAMBDA {
      const Vec<C> u = at.load(d) * at.load(gain);
      // Lanes after the end hold −mean·rstd, which may be infinite.
      total[0] += u * zero_after<C>(normalize_any<C>(at.load(x), s), at.count);
      total[1] += u;
    });
    along_xhat = C(dot / double(k));
    mean = centred ? C(sum / double(n)) : C(0);
  }
  const C rstd = s.rstd * s.scale;
  const auto elements = [=, &s](auto projection) RMSNORM_INLINE_LAMBDA {  // projection(x̂) is subtracted from u
    return [=, &s](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
      const Vec<C> given = load_n(d + i, count), xhat = normalize_any<C>(load_n(x + i, count), s);
      const Vec<C> dx_here = (given * load_n(gain + i, count) - projection(xhat) - mean) * rstd;
      store_n(dx + i, dx_here, count);
      store_n(dgain + i, load_n(dgain + i, count) + given * xhat, count);
      if (dbias) store_n(dbias + i, load_n(dbias + i, count) + (bias_inside ? dx_here : given), count);
    };
  };
  for_each_vector<C>(0, k, elements([=](Vec<C> xhat) RMSNORM_INLINE_LAMBDA { return xhat * along_xhat; }));
  // Not x̂ · 0, which is NaN if x̂ is infinite.
  if (k < n) for_each_vector<C>(k, n, elements([](Vec<C>) RMSNORM_INLINE_LAMBDA { return Vec<C>{}; }));
}

template <class T, class C>
void side_backward(const Recurrence& r, const Placement& placement, const Side<T>& side, const C* d, T* dx, C* dgain,
                   C* dbias, bool bias_inside) {
  const auto backward = [&](const Segment& segment) {
    const int64_t i = segment.first_gate * r.hidden, n = (segment.end_gate - segment.first_gate) * r.hidden;
    segment_backward(side.row + i, d + i, side.gain + i, dx + i, dgain + i, dbias + i, n, segment,
                     side.of_gate[segment.first_gate], r.centred, bias_inside);
  };
  if (placement.segments == 0) backward({0, r.gates, 0});
  for (int i = 0; i < placement.segments; ++i) backward(placement.segment[i]);
}

// Writes d_input and d_state, (3·H) each: the gradients of the two sides after norm, gain and bias.
template <class T, class C>
RMSNORM_NOINLINE void gru_row_backward(const Recurrence& r, const Side<T>& c, const T* gates, const T* h_before,
                                       const T* dh_after, T* dh, C* d_input, C* d_state) {
  const int64_t H = r.hidden;
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> reset = load_n(gates + j, count), update = load_n(gates + H + j, count);
    const Vec<C> fresh = load_n(gates + 2 * H + j, count);
    Vec<C> d = load_n(dh + j, count);
    if (dh_after) d += load_n(dh_after + j, count);
    const Vec<C> dfresh = d * (C(1) - update) * (C(1) - fresh * fresh);
    const Vec<C> dupdate = d * (load_n(h_before + j, count) - fresh) * update * (C(1) - update);
    const Vec<C> dreset = dfresh * c.normalized(2, H, j, count) * reset * (C(1) - reset);
    store_n(dh + j, d * update, count);
    store_n(d_input + j, dreset, count);
    store_n(d_input + H + j, dupdate, count);
    store_n(d_input + 2 * H + j, dfresh, count);
    store_n(d_state + j, dreset, count);
    store_n(d_state + H + j, dupdate, count);
    store_n(d_state + 2 * H + j, dfresh * reset, count);
  });
}

// Writes d, (4·H): the gradient of both sides after norm, gain and bias. buffer: 2·H numbers.
template <class T, class C>
RMSNORM_NOINLINE void lstm_row_backward(const Recurrence& r, const LayerTensors<T>& t, int64_t at,
                                        const Statistics<C>& s, const T* dh_after, T* dh, T* dc, C* d, C* dcell_gain,
                                        C* buffer) {
  const int64_t H = r.hidden;
  const T *gates = t.gates + at * 4 * H, *c_before = t.c_before + at * H, *c_after = t.c_after + at * H;
  C *const dcell = buffer, *const dcell_before_norm = buffer + H;
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    Vec<C> given = load_n(dh + j, count);
    if (dh_after) given += load_n(dh_after + j, count);
    const Vec<C> v = normalize_any<C>(load_n(c_after + j, count), s) * load_n(t.cell_gain + j, count);
    const Vec<C> tanh_v = hyperbolic_tangent<C>(v), out = load_n(gates + 3 * H + j, count);
    store_n(dcell + j, given * out * (C(1) - tanh_v * tanh_v), count);
    store_n(d + 3 * H + j, given * tanh_v * out * (C(1) - out), count);
    store_n(dh + j, Vec<C>{}, count);
  });
  segment_backward(c_after, dcell, t.cell_gain, dcell_before_norm, dcell_gain, static_cast<C*>(nullptr), H, r.cell, s,
                   r.centred, false);
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> dstate = load_n(dcell_before_norm + j, count) + load_n(dc + j, count);
    const Vec<C> in = load_n(gates + j, count), forget = load_n(gates + H + j, count);
    const Vec<C> fresh = load_n(gates + 2 * H + j, count);
    store_n(d + j, dstate * fresh * in * (C(1) - in), count);
    store_n(d + H + j, dstate * load_n(c_before + j, count) * forget * (C(1) - forget), count);
    store_n(d + 2 * H + j, dstate * in * (C(1) - fresh * fresh), count);
    store_n(dc + j, dstate * forget, count);
  });
}

// The rows of a task are added to the same sums.
inline int64_t rows_of_task(int64_t batch) { return std::max(STEP_LEAF_ROWS, (batch + STEP_TASKS - 1) / STEP_TASKS); }
inline int64_t tasks_of(int64_t batch) { return (batch + rows_of_task(batch) - 1) / rows_of_task(batch); }

// The backward pass of rows of one step, in working buffers of its own.
template <class T>
class BackwardRows {
  using C = compute_t<T>;

 public:
  BackwardRows(const Recurrence& r, const LayerGradients<T>& g)
      : r_(r), g_(g), memory_(allocate<C>(2 * r.width() + 2 * r.hidden + count_of_sums(r))) {}

  // The rows [begin, end) of the step whose first row is `row`. Adds to total, count_of_sums(r) numbers.
  void operator()(int64_t row, int64_t begin, int64_t end, double* total) const {
    const int64_t count = count_of_sums(r_);
    C* const leaf = memory_.get() + 2 * r_.width() + 2 * r_.hidden;
    for (; begin < end; begin += STEP_LEAF_ROWS) {
      std::fill(leaf, leaf + count, C(0));
      add_rows(row + begin, begin, std::min(end - begin, STEP_LEAF_ROWS), leaf);
      for (int64_t i = 0; i < count; ++i) total[i] += double(leaf[i]);
    }
  }

 private:
  // `count` rows from row `first` on, which is number `in_batch` of its step.
  void add_rows(int64_t first, int64_t in_batch, int64_t count, C* leaf) const {
    const auto& t = g_.forward;
    const int64_t W = r_.width();
    const SideRows<T> a(r_, r_.input, t.input ? t.input + first * W : nullptr, count, t.input_gain, t.input_bias);
    const SideRows<T> c(r_, r_.state, t.state + first * W, count, t.state_gain, t.state_bias);
    Statistics<C> of_cell[STEP_LEAF_ROWS];
    if (r_.gates == 4) cell_statistics(r_, t.c_after + first * r_.hidden, count, of_cell);
    for (int64_t i = 0; i < count; ++i) add_row(a[i], c[i], of_cell[i], first + i, in_batch + i, leaf);
  }

  void add_row(const Side<T>& a, const Side<T>& c, const Statistics<C>& of_cell, int64_t at, int64_t i, C* leaf) const {
    const auto& t = g_.forward;
    const int64_t H = r_.hidden, W = r_.width();
    C *const d_input = memory_.get(), *const d_state = d_input + W, *const buffer = d_state + W;
    const ParameterSums<C> to(leaf, W);
    const T* const dh_after = g_.dh_after ? g_.dh_after + at * H : nullptr;
    T* const dh = g_.dh + i * H;
    if (r_.gates == 3)
      gru_row_backward(r_, c, t.gates + at * W, t.h_before + at * H, dh_after, dh, d_input, d_state);
    else
      lstm_row_backward(r_, t, at, of_cell, dh_after, dh, g_.dc + i * H, d_input, to.cell_gain, buffer);
    const C* const d_of_state = r_.gates == 3 ? d_state : d_input;
    if (a.row)
      side_backward(r_, r_.input, a, d_input, g_.dinput + at * W, to.input_gain, to.input_bias, g_.bias_inside);
    side_backward(r_, r_.state, c, d_of_state, g_.dstate + at * W, to.state_gain, to.state_bias, false);
  }

  const Recurrence& r_;
  const LayerGradients<T>& g_;
  Buffer<C> memory_;
};

// One step: the rows [row, row + rows). Adds to sums, (tasks_of(batch), count_of_sums(r)).
template <class T>
void recurrent_step_backward(const Recurrence& r, const LayerGradients<T>& g, int64_t row, int64_t rows, int64_t batch,
                             double* sums) {
  const int64_t task_rows = rows_of_task(batch), grain = std::max<int64_t>(1, step_grain(r) / task_rows);
  parallel_for(r.threads, 0, (rows + task_rows - 1) / task_rows, grain, [&](int64_t first, int64_t last) {
    const BackwardRows<T> backward(r, g);
    for (int64_t task = first; task < last; ++task)
      backward(row, task * task_rows, std::min(rows, (task + 1) * task_rows), sums + task * count_of_sums(r));
  });
}

// All steps, from the last: after each, dh += dstate · W_hh. A task takes its rows of the batch through all steps.
template <class T>
void recurrent_layer_backward(const Recurrence& r, const LayerGradients<T>& g, const PackedMatrix<compute_t<T>>& weight,
                              const StepOrder& order, double* sums) {
  const int64_t H = r.hidden, W = r.width(), task_rows = rows_of_task(order.batch);
  parallel_for(r.threads, 0, tasks_of(order.batch), 1, [&](int64_t first, int64_t last) {
    const BackwardRows<T> backward(r, g);
    Widened<T> widened(task_rows * W);
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * task_rows, end = std::min(order.batch, begin + task_rows);
      for (int64_t step = order.steps - 1; step >= 0; --step) {
        const int64_t row = order.first_row(step);
        backward(row, begin, end, sums + task * count_of_sums(r));
        T* const dh = g.dh + begin * H;
        weight.multiply(end - begin, widened(g.dstate + (row + begin) * W, (end - begin) * W), W, dh, dh);
      }
    }
  });
}

}  // namespace rmsnorm
