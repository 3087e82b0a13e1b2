// A step of a normalised GRU or LSTM for the rows of a batch: norms, gates and state in one kernel. The framework
// computes the matrix products between the steps. Of a small layer one call takes all steps, with products of our own
// (packed_matrix.h).
//
// A cell has two sides, the input's a = W_ih x + b_ih and the state's c = W_hh h. A side's row has G·H numbers, H for
// each of the G gates. A segment is a run of gates that share one statistic.
#pragma once

#include "batch.h"
#include "packed_matrix.h"
#include "parallel.h"
#include "row_passes.h"
#include "transcendental.h"

namespace rmsnorm {

struct Segment {
  int first_gate, end_gate;  // the gates [first_gate, end_gate)
  int64_t k;                 // the statistic is taken of the first k elements; 0: not normalised
};

// The segments of a side; none: the side is not normalised.
struct Placement {
  int segments = 0;
  Segment segment[2];
};

struct Recurrence {
  int gates;       // 3: GRU (r, z, n), 4: LSTM (i, f, g, o)
  int64_t hidden;  // H
  bool centred;    // LayerNorm's statistics, else RMSNorm's
  double eps;
  Placement input, state;
  Segment cell{0, 1, 0};   // the LSTM's cell state, before its tanh
  double update_bias = 0;  // added to the GRU's update gate z
  Threads threads = Threads::torch;

  int64_t width() const { return gates * hidden; }
  // The statistics of the first k of n elements of `count` <= GROUP rows, whose first elements are `stride` apart. The
  // rows' square roots and divisions are computed together.
  template <class T>
  void statistics(const T* x, int64_t stride, int64_t count, int64_t n, int64_t k,
                  Statistics<compute_t<T>>* out) const {
    const NormSpec spec{centred ? NormKind::layer : NormKind::rms, 0, 1, n, k, eps};
    const T* rows[GROUP];
    for (int64_t i = 0; i < count; ++i) rows[i] = x + i * stride;
    centred ? Layer::batch_statistics(rows, count, k, spec, out) : RMS::batch_statistics(rows, count, k, spec, out);
  }
};

template <class C>
constexpr Statistics<C> UNNORMALISED = {1, 0, 1, 0};

template <class C>
RMSNORM_INLINE Vec<C> normalize_any(Vec<C> x, const Statistics<C>& s) {
  return (x * s.scale - s.mean) * s.rstd + s.shift;
}

// A side's row, and the statistics of its gates. A layer without gain or bias passes ones or zeros, so that one loop
// serves every placement.
template <class T>
struct Side {
  using C = compute_t<T>;
  const T* row;  // null: the side is absent, and counts as zero
  const C *gain, *bias;
  const Statistics<C>* of_gate;

  // The normalised elements j to j + count of a gate.
  RMSNORM_INLINE Vec<C> normalized(int gate, int64_t hidden, int64_t j, int count) const {
    if (!row) return Vec<C>{};
    const int64_t i = gate * hidden + j;
    return normalize_any<C>(load_n(row + i, count), of_gate[gate]) * load_n(gain + i, count) + load_n(bias + i, count);
  }
};

// A side of `count` <= GROUP rows of a step.
template <class T>
class SideRows {
  using C = compute_t<T>;

 public:
  SideRows(const Recurrence& r, const Placement& placement, const T* rows, int64_t count, const C* gain, const C* bias)
      : rows_(rows), gain_(gain), bias_(bias), width_(r.width()) {
    for (int64_t i = 0; i < count; ++i)
      for (int gate = 0; gate < r.gates; ++gate) of_gate_[i][gate] = UNNORMALISED<C>;
    for (int segment = 0; rows && segment < placement.segments; ++segment) {
      const auto [first, end, k] = placement.segment[segment];
      Statistics<C> found[GROUP];
      r.statistics(rows + first * r.hidden, width_, count, (end - first) * r.hidden, k, found);
      for (int64_t i = 0; i < count; ++i)
        for (int gate = first; gate < end; ++gate) of_gate_[i][gate] = found[i];
    }
  }
  Side<T> operator[](int64_t i) const { return {rows_ ? rows_ + i * width_ : nullptr, gain_, bias_, of_gate_[i]}; }

 private:
  const T* rows_;
  const C *gain_, *bias_;
  int64_t width_;
  Statistics<C> of_gate_[GROUP][4];
};

// The statistics of the cell states of `count` <= GROUP rows of an LSTM.
template <class T>
RMSNORM_INLINE void cell_statistics(const Recurrence& r, const T* cells, int64_t count, Statistics<compute_t<T>>* out) {
  if (r.cell.k)
    r.statistics(cells, r.hidden, count, r.hidden, r.cell.k, out);
  else
    std::fill(out, out + count, UNNORMALISED<compute_t<T>>);
}

// The tensors of a layer. Each holds the rows of all steps; `state` may hold those of one step if no gradient is
// needed.
template <class T>
struct LayerTensors {
  using C = compute_t<T>;
  const T *input, *state;  // (rows, G·H): a, or null, and c
  const T* h_before;       // (rows, H)
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
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> reset = sigmoid<C>(a.normalized(0, H, j, count) + c.normalized(0, H, j, count));
    const Vec<C> update = sigmoid<C>(a.normalized(1, H, j, count) + c.normalized(1, H, j, count) + update_bias);
    const Vec<C> fresh = hyperbolic_tangent<C>(a.normalized(2, H, j, count) + reset * c.normalized(2, H, j, count));
    store_n(h_after + j, fresh + update * (load_n(h_before + j, count) - fresh), count);
    if (!gates) return;
    store_n(gates + j, reset, count);
    store_n(gates + H + j, update, count);
    store_n(gates + 2 * H + j, fresh, count);
  });
}

// The gates and the new cell state.
template <class T, class C>
RMSNORM_NOINLINE void lstm_cell(const Recurrence& r, const Side<T>& a, const Side<T>& c, const T* c_before, T* c_after,
                                T* gates, C* out_gate) {
  const int64_t H = r.hidden;
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> in = sigmoid<C>(a.normalized(0, H, j, count) + c.normalized(0, H, j, count));
    const Vec<C> forget = sigmoid<C>(a.normalized(1, H, j, count) + c.normalized(1, H, j, count));
    const Vec<C> fresh = hyperbolic_tangent<C>(a.normalized(2, H, j, count) + c.normalized(2, H, j, count));
    const Vec<C> out = sigmoid<C>(a.normalized(3, H, j, count) + c.normalized(3, H, j, count));
    store_n(c_after + j, forget * load_n(c_before + j, count) + in * fresh, count);
    store_n(out_gate + j, out, count);
    if (!gates) return;
    store_n(gates + j, in, count);
    store_n(gates + H + j, forget, count);
    store_n(gates + 2 * H + j, fresh, count);
    store_n(gates + 3 * H + j, out, count);
  });
}

template <class T, class C>
RMSNORM_NOINLINE void lstm_state(int64_t H, const T* c_after, const Statistics<C>& s, const C* cell_gain,
                                 const C* out_gate, T* h_after) {
  for_each_vector<C>(0, H, [&](int64_t j, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = normalize_any<C>(load_n(c_after + j, count), s) * load_n(cell_gain + j, count);
    store_n(h_after + j, load_n(out_gate + j, count) * hyperbolic_tangent<C>(v), count);
  });
}

// Rows of a thread, at least: fewer would read the packed matrix too often.
constexpr int64_t LAYER_GRAIN = 4;

constexpr int64_t GATE_WORK = 8;  // an element of a gate costs about as much as this many of a norm

inline int64_t step_grain(const Recurrence& r) {
  return std::max<int64_t>(1, GRAIN / GATE_WORK / std::max<int64_t>(1, r.width()));
}

// The output gates of a group of an LSTM's rows, which a thread of `rows` rows keeps until the cell states have statistics.
template <class T>
Buffer<compute_t<T>> allocate_out_gates(const Recurrence& r, int64_t rows) {
  return allocate<compute_t<T>>(r.gates == 4 ? std::min(GROUP, rows) * r.hidden : 0);
}

// The rows [row, end); in `state` they begin at state_row.
template <class T>
void recurrent_rows(const Recurrence& r, const LayerTensors<T>& t, int64_t row, int64_t end, int64_t state_row,
                    compute_t<T>* out_gates) {
  const int64_t H = r.hidden, W = r.width();
  for (; row < end; row += GROUP, state_row += GROUP) {
    const int64_t count = std::min(GROUP, end - row);
    const SideRows<T> a(r, r.input, t.input ? t.input + row * W : nullptr, count, t.input_gain, t.input_bias);
    const SideRows<T> c(r, r.state, t.state + state_row * W, count, t.state_gain, t.state_bias);
    for (int64_t i = 0, at = row; i < count; ++i, ++at) {
      T* const gates = t.gates ? t.gates + at * W : nullptr;
      if (r.gates == 3)
        gru_row(r, a[i], c[i], t.h_before + at * H, t.h_after + at * H, gates);
      else
        lstm_cell(r, a[i], c[i], t.c_before + at * H, t.c_after + at * H, gates, out_gates + i * H);
    }
    if (r.gates == 3) continue;
    Statistics<compute_t<T>> of_cell[GROUP];
    cell_statistics(r, t.c_after + row * H, count, of_cell);
    for (int64_t i = 0, at = row; i < count; ++i, ++at)
      lstm_state(H, t.c_after + at * H, of_cell[i], t.cell_gain, out_gates + i * H, t.h_after + at * H);
  }
}

// One step: the rows [row, row + rows); in `state` they begin at state_row.
template <class T>
void recurrent_step(const Recurrence& r, const LayerTensors<T>& t, int64_t row, int64_t rows, int64_t state_row) {
  parallel_for(r.threads, 0, rows, step_grain(r), [&](int64_t begin, int64_t end) {
    const auto out_gates = allocate_out_gates<T>(r, end - begin);
    recurrent_rows(r, t, row + begin, row + end, state_row + begin, out_gates.get());
  });
}

// The steps of a layer, all of `batch` rows.
struct StepOrder {
  int64_t steps, batch;
  bool reverse;

  int64_t first_row(int64_t step) const { return (reverse ? steps - 1 - step : step) * batch; }
};

// Rows as the products take them: themselves, or widened into a buffer.
template <class T>
class Widened {
  using C = compute_t<T>;

 public:
  explicit Widened(int64_t count) : buffer_(allocate<C>(std::is_same_v<T, C> ? 0 : count)) {}
  const C* operator()(const T* rows, int64_t count) {
    if constexpr (std::is_same_v<T, C>) {
      return rows;
    } else {
      for_each_vector<C>(0, count, [=, to = buffer_.get()](int64_t i, int lanes) RMSNORM_INLINE_LAMBDA {
        store_n(to + i, load_n(rows + i, lanes), lanes);
      });
      return buffer_.get();
    }
  }

 private:
  Buffer<C> buffer_;
};

// All steps: state = h_before · W_hhᵀ, or added + that, and then the rest. A thread takes some rows of the batch through
// all steps, so that threads meet once a layer. `state` has all rows, or those of one step.
template <class T>
void recurrent_layer(const Recurrence& r, const LayerTensors<T>& t, T* state, bool one_state, const T* added,
                     const PackedMatrix<compute_t<T>>& weight, const StepOrder& order) {
  const int64_t H = r.hidden, W = r.width();
  parallel_for(r.threads, 0, order.batch, LAYER_GRAIN, [&](int64_t begin, int64_t end) {
    const auto out_gates = allocate_out_gates<T>(r, end - begin);
    Widened<T> widened((end - begin) * H);
    for (int64_t step = 0; step < order.steps; ++step) {
      const int64_t row = order.first_row(step) + begin, state_row = one_state ? begin : row;
      weight.multiply(end - begin, widened(t.h_before + row * H, (end - begin) * H), H,
                      added ? added + row * W : nullptr, state + state_row * W);
      recurrent_rows(r, t, row, row + end - begin, state_row, out_gates.get());
    }
  });
}

}  // namespace rmsnorm
