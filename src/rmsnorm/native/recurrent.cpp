// The module's class for recurrent layers: it reads a layer's tensors once, and each step is one short call.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "call.h"
#include "python_tensors.h"
#include "recurrent_backward.h"

namespace rmsnorm {

using Segments = std::vector<std::array<int64_t, 3>>;  // (first gate, last gate + 1, elements of the statistic)

// One layer in one direction. Unlike the norms' functions its methods raise for what they do not serve, because rmsnorm
// makes all the tensors itself. The caller must keep the tensors alive.
class Steps {
 public:
  virtual ~Steps() = default;
  virtual void forward(int64_t row, int64_t rows, int64_t state_row) = 0;
  virtual void prepare_backward(nb::handle dh_after, nb::handle dinput, nb::handle dstate, nb::handle dh, nb::handle dc,
                                bool bias_inside) = 0;
  virtual void backward(int64_t row, int64_t rows) = 0;
  virtual void forward_layer(nb::handle weight, nb::handle added, int64_t steps, int64_t batch, bool reverse) = 0;
  virtual void backward_layer(nb::handle weight, int64_t steps, bool reverse) = 0;
  virtual void sums(nb::handle input_gain, nb::handle state_gain, nb::handle input_bias, nb::handle state_bias,
                    nb::handle cell_gain) = 0;
};

namespace {

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

template <class T>
constexpr DType dtype_of = std::is_same_v<T, float>    ? DType::float32
                           : std::is_same_v<T, double> ? DType::float64
                           : std::is_same_v<T, bf16>   ? DType::bfloat16
                                                       : DType::float16;

// A contiguous tensor of T whose last dimension has `width` elements. None: not given.
template <class T>
struct LayerRows {
  T* data = nullptr;
  int64_t rows = 0;
  bool given = false;
  LayerRows() = default;
  LayerRows(nb::handle h, int64_t width, const char* name) {
    if (h.is_none()) return;
    const auto v = read_view(h);
    if (!v || v->dtype != dtype_of<T> || !v->contiguous(0) || v->ndim < 1 || v->shape[v->ndim - 1] != width)
      refuse(std::string(name) + " must be a contiguous CPU tensor of the layer's dtype with " + std::to_string(width) +
             " elements a row");
    data = reinterpret_cast<T*>(v->data);
    rows = v->size(0, v->ndim - 1);
    given = true;
  }
  void check_rows(int64_t row, int64_t count, const char* name) const {
    if (row < 0 || count < 0 || (given && row + count > rows))
      refuse(std::string(name) + " must have the rows [" + std::to_string(row) + ", " + std::to_string(row + count) +
             "), got " + std::to_string(rows) + " rows");
  }
};

// A parameter, or its gradient.
template <class T>
LayerRows<T> one_row(nb::handle h, int64_t width, const char* name) {
  const LayerRows<T> row(h, width, name);
  if (row.given && row.rows != 1) refuse(std::string(name) + " must be one row, got " + std::to_string(row.rows));
  return row;
}

struct Tensors {
  nb::handle input, state, h_before, h_after, c_before, c_after, gates;
  nb::handle input_gain, state_gain, input_bias, state_bias, cell_gain;
};

template <class T>
class StepsOf : public Steps {
  using C = compute_t<T>;

 public:
  StepsOf(const Recurrence& recurrence, const Tensors& t) : r_(recurrence) {
    const int64_t H = r_.hidden, W = r_.width();
    input_ = {t.input, W, "input"}, state_ = {t.state, W, "state"}, gates_ = {t.gates, W, "gates"};
    h_before_ = {t.h_before, H, "h_before"}, h_after_ = {t.h_after, H, "h_after"};
    c_before_ = {t.c_before, H, "c_before"}, c_after_ = {t.c_after, H, "c_after"};
    tensors_ = {input_.data,
                state_.data,
                h_before_.data,
                h_after_.data,
                c_before_.data,
                c_after_.data,
                gates_.data,
                parameter(t.input_gain, W, 1, "input_gain"),
                parameter(t.state_gain, W, 1, "state_gain"),
                parameter(t.input_bias, W, 0, "input_bias"),
                parameter(t.state_bias, W, 0, "state_bias"),
                r_.gates == 4 ? parameter(t.cell_gain, H, 1, "cell_gain") : nullptr};
    if (!state_.given || !h_before_.given || !h_after_.given || (r_.gates == 4 && !(c_before_.given && c_after_.given)))
      refuse("the state's tensors must be there");
  }

  void forward(int64_t row, int64_t rows, int64_t state_row) override {
    check(row, rows);
    state_.check_rows(state_row, rows, "state");
    const MaybeReleasedGil released(work(rows));
    recurrent_step(r_, tensors_, row, rows, state_row);
  }

  void prepare_backward(nb::handle dh_after, nb::handle dinput, nb::handle dstate, nb::handle dh, nb::handle dc,
                        bool bias_inside) override {
    const int64_t H = r_.hidden, W = r_.width();
    dh_after_ = {dh_after, H, "dh_after"}, dh_ = {dh, H, "dh"}, dc_ = {dc, H, "dc"};
    dinput_ = {dinput, W, "dinput"}, dstate_ = {dstate, W, "dstate"};
    if (!gates_.given || !dstate_.given || !dh_.given || input_.given != dinput_.given || (r_.gates == 4) != dc_.given)
      refuse("backward needs the gates of the forward pass, dstate, dh, dc for an LSTM, and dinput for an input");
    gradients_ = {tensors_, dh_after_.data, dinput_.data, dstate_.data, dh_.data, dc_.data, bias_inside};
    sums_.assign(size_t(tasks_of(dh_.rows) * count_of_sums(r_)), 0.0);
  }

  void backward(int64_t row, int64_t rows) override {
    if (!dh_.given) refuse("prepare_backward must be called before backward");
    check(row, rows);
    check_gradients(row, rows);
    dh_.check_rows(0, rows, "dh"), dc_.check_rows(0, rows, "dc");
    const MaybeReleasedGil released(work(rows));
    recurrent_step_backward(r_, gradients_, row, rows, dh_.rows, sums_.data());
  }

  // weight: W_hh, (G·H, H); added: (rows, G·H), or None, what is added to the products.
  void forward_layer(nb::handle weight, nb::handle added, int64_t steps, int64_t batch, bool reverse) override {
    const LayerRows<T> matrix = weight_of(weight), more(added, r_.width(), "added");
    check(0, check_size(steps, batch));
    more.check_rows(0, steps * batch, "added");
    const bool one_state = state_.rows < steps * batch;
    state_.check_rows(0, one_state ? batch : steps * batch, "state");
    const MaybeReleasedGil released(work(steps * batch));
    const PackedMatrix<C> packed(matrix.data, r_.hidden, r_.width(), 1, r_.hidden);
    recurrent_layer(r_, tensors_, state_.data, one_state, more.data, packed, {steps, batch, reverse});
  }

  void backward_layer(nb::handle weight, int64_t steps, bool reverse) override {
    if (!dh_.given) refuse("prepare_backward must be called before backward_layer");
    const LayerRows<T> matrix = weight_of(weight);
    const int64_t batch = dh_.rows, rows = check_size(steps, batch);
    check(0, rows);
    check_gradients(0, rows);
    dh_.check_rows(0, batch, "dh"), dc_.check_rows(0, batch, "dc");
    const MaybeReleasedGil released(work(rows));
    const PackedMatrix<C> packed(matrix.data, r_.width(), r_.hidden, r_.hidden, 1);
    recurrent_layer_backward(r_, gradients_, packed, {steps, batch, reverse}, sums_.data());
  }

  void sums(nb::handle input_gain, nb::handle state_gain, nb::handle input_bias, nb::handle state_bias,
            nb::handle cell_gain) override {
    const int64_t H = r_.hidden, W = r_.width(), count = count_of_sums(r_);
    std::vector<double> total(size_t(count), 0.0);
    for (size_t i = 0; i < sums_.size(); ++i) total[i % size_t(count)] += sums_[i];
    const auto write = [](nb::handle h, const double* from, int64_t n, const char* name) {
      const LayerRows<T> to = one_row<T>(h, n, name);
      if (to.given) std::transform(from, from + n, to.data, narrow<T>);
    };
    const ParameterSums<double> of(total.data(), W);
    write(input_gain, of.input_gain, W, "input_gain"), write(state_gain, of.state_gain, W, "state_gain");
    write(input_bias, of.input_bias, W, "input_bias"), write(state_bias, of.state_bias, W, "state_bias");
    write(cell_gain, of.cell_gain, H, "cell_gain");
  }

 private:
  int64_t work(int64_t rows) const { return rows * r_.width() * GATE_WORK; }
  LayerRows<T> weight_of(nb::handle h) const {
    const LayerRows<T> matrix(h, r_.hidden, "weight");
    if (matrix.rows != r_.width()) refuse("weight must have " + std::to_string(r_.width()) + " rows");
    return matrix;
  }
  static int64_t check_size(int64_t steps, int64_t batch) {
    int64_t rows = 0;
    if (steps < 0 || batch < 0 || __builtin_mul_overflow(steps, batch, &rows)) refuse("steps and batch must be sizes");
    return rows;
  }
  void check_gradients(int64_t row, int64_t rows) const {
    state_.check_rows(row, rows, "state"), dh_after_.check_rows(row, rows, "dh_after");
    dinput_.check_rows(row, rows, "dinput"), dstate_.check_rows(row, rows, "dstate");
  }
  void check(int64_t row, int64_t rows) const {
    input_.check_rows(row, rows, "input"), gates_.check_rows(row, rows, "gates");
    h_before_.check_rows(row, rows, "h_before"), h_after_.check_rows(row, rows, "h_after");
    c_before_.check_rows(row, rows, "c_before"), c_after_.check_rows(row, rows, "c_after");
  }

  // A parameter in the computation dtype: as it is, or widened into memory of ours; `otherwise` where there is none.
  const C* parameter(nb::handle h, int64_t n, C otherwise, const char* name) {
    const LayerRows<T> row = one_row<T>(h, n, name);
    if constexpr (std::is_same_v<T, C>)
      if (row.given) return row.data;
    C* const wide = made_.emplace_back(allocate<C>(n)).get();
    for (int64_t i = 0; i < n; ++i) wide[i] = row.given ? C(widen(row.data[i])) : otherwise;
    return wide;
  }

  Recurrence r_;
  LayerTensors<T> tensors_;
  LayerGradients<T> gradients_{};
  LayerRows<T> input_, state_, gates_, h_before_, h_after_, c_before_, c_after_, dh_after_, dinput_, dstate_, dh_, dc_;
  std::vector<double> sums_;
  std::vector<Buffer<C>> made_;
};

Placement placement(const Segments& segments, int gates, int64_t hidden) {
  Placement p;
  if (segments.size() > 2) refuse("a side has at most two segments");
  for (const auto& [first, end, k] : segments) {
    if (first < 0 || first >= end || end > gates || k < 1 || k > (end - first) * hidden)
      refuse("a segment must be a run of the gates, with a statistic of some of its elements");
    p.segment[p.segments++] = {int(first), int(end), k};
  }
  return p;
}

std::unique_ptr<Steps> recurrent_steps(int gates, int64_t hidden, bool centred, double eps,
                                       const Segments& input_segments, const Segments& state_segments,
                                       int64_t cell_count, double update_bias, bool own_threads, nb::handle input,
                                       nb::handle state, nb::handle h_before, nb::handle h_after, nb::handle c_before,
                                       nb::handle c_after, nb::handle gate_values, nb::handle input_gain,
                                       nb::handle state_gain, nb::handle input_bias, nb::handle state_bias,
                                       nb::handle cell_gain) {
  if (gates != 3 && gates != 4) refuse("gates must be 3 (GRU) or 4 (LSTM)");
  if (hidden < 0 || cell_count < 0 || cell_count > hidden) refuse("hidden and cell_count must be sizes");
  Recurrence r;
  r.gates = gates, r.hidden = hidden, r.centred = centred, r.eps = eps, r.update_bias = update_bias;
  r.input = placement(input_segments, gates, hidden), r.state = placement(state_segments, gates, hidden);
  r.cell = {0, 1, cell_count};
  r.threads = own_threads ? Threads::own : Threads::torch;
  const Tensors t{input,       state,      h_before,   h_after,    c_before,   c_after,
                  gate_values, input_gain, state_gain, input_bias, state_bias, cell_gain};
  const auto v = read_view(h_before);
  if (!v) refuse("h_before must be a CPU tensor");
  switch (v->dtype) {
    case DType::float32: return std::make_unique<StepsOf<float>>(r, t);
    case DType::float64: return std::make_unique<StepsOf<double>>(r, t);
    case DType::bfloat16: return std::make_unique<StepsOf<bf16>>(r, t);
    default: return std::make_unique<StepsOf<f16>>(r, t);
  }
}

}  // namespace

void bind_recurrent(nb::module_& m) {
  const auto none = nb::arg().none();
  nb::class_<Steps>(m, "RecurrentSteps")
      .def("forward", &Steps::forward)
      .def("prepare_backward", &Steps::prepare_backward, none, none, none, none, none, nb::arg())
      .def("backward", &Steps::backward)
      .def("forward_layer", &Steps::forward_layer, nb::arg(), none, nb::arg(), nb::arg(), nb::arg())
      .def("backward_layer", &Steps::backward_layer)
      .def("sums", &Steps::sums, none, none, none, none, none);
  m.def("recurrent_steps", &recurrent_steps, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), none, none, none, none, none, none, none, none, none, none, none, none);
}

}  // namespace rmsnorm
