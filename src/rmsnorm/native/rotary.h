// RMSNorm of each head of a query or a key, and the rotary position embedding of the result, forward and backward.
//
// A row is one head at one position. Of its n elements the first 2·half are rotated, element i with element half + i. The
// rows of a position follow each other, so its cosines and sines are converted once for all heads.
#pragma once

#include "tensor_passes.h"

namespace rmsnorm {

// A row y becomes  y_i cos_i − y_{half+i} sin_i,  y_{half+i} cos_{half+i} + y_i sin_{half+i},  and what follows stays.
template <class C>
struct Rotation {
  const C *cos, *sin;
  int64_t half;
};

// One of cos and sin: a row of 2·half elements of any floating dtype for each position. Strides count bytes.
struct AngleRows {
  DType dtype;
  Tensor<const char> rows;
};

// The rows [begin, …) of a tensor in order, with the rotation of each one's position.
template <class C>
class Positions {
 public:
  Positions(const AngleRows& cos, const AngleRows& sin, int64_t half, int64_t heads, int64_t begin)
      : cos_(cos.dtype, cos.rows.from(begin / heads)),
        sin_(sin.dtype, sin.rows.from(begin / heads)),
        half_(half),
        heads_(heads),
        head_(begin % heads),
        buffer_(allocate<C>(4 * half)) {
    read();
  }
  Rotation<C> operator*() const { return {buffer_.get(), buffer_.get() + 2 * half_, half_}; }
  int64_t heads_left() const { return heads_ - head_; }
  // `count` <= heads_left() rows further. `last`: no row follows, and so perhaps no position.
  void advance(int64_t count, bool last) {
    head_ += count;
    if (head_ < heads_ || last) return;
    head_ = 0, ++cos_.at, ++sin_.at;
    read();
  }

 private:
  struct Angles {
    Angles(DType dtype, Cursor<const char> at) : dtype(dtype), at(at) {}
    DType dtype;
    Cursor<const char> at;
    void read(C* to, int64_t count) const {
      with_type(dtype, [&](auto zero) {
        using W = decltype(zero);
        const W* const from = reinterpret_cast<const W*>(*at);
        if constexpr (std::is_same_v<compute_t<W>, C>)
          for_each_vector<C>(0, count, [=](int64_t i, int lanes) { store_n(to + i, load_n(from + i, lanes), lanes); });
        else
          for (int64_t i = 0; i < count; ++i) to[i] = C(widen(from[i]));
      });
    }
  };
  void read() {
    cos_.read(buffer_.get(), 2 * half_);
    sin_.read(buffer_.get() + 2 * half_, 2 * half_);
  }
  Angles cos_, sin_;
  int64_t half_, heads_, head_;
  Buffer<C> buffer_;
};

template <class T>
struct RotaryForwardTensors {
  Tensor<const T> x;
  Tensor<T> y;
  Affine<compute_t<T>> affine;
  AngleRows cos, sin;
  int64_t half, heads;
};

// Calls body(n), with n as a constant (with_length) if whole heads are rotated.
template <class C, class Body>
RMSNORM_INLINE void with_whole_heads(int64_t n, int64_t half, Body body) {
  2 * half == n ? with_length<C>(n, body) : body(n);
}
// The half of the elements that are rotated.
template <class C, class Length>
RMSNORM_INLINE int64_t half_of(Length n, const Rotation<C>& rotation) {
  return IS_CONSTANT<Length> ? n / 2 : rotation.half;
}

// STEPS: the norm's steps, both products and their sum are rounded to T one by one.
template <bool STEPS, class Length, class T, class C>
RMSNORM_NOINLINE void normalize_and_rotate_row(ScaledRow<T> x, T* y, Length n, const Statistics<C> s, const C* gain,
                                               const Rotation<C> rotation) {
  const auto step = [](Vec<C> v) RMSNORM_INLINE_LAMBDA { return STEPS ? unfused(round_to<T>(v)) : v; };
  const auto normed = [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const Vec<C> v = step(RMS::normalize(x.template load<true>(i, count), s));
    return gain ? step(v * load_n(gain + i, count)) : v;
  };
  const C *cos = rotation.cos, *sin = rotation.sin;
  const int64_t half = half_of(n, rotation);
  for_each_vector<C>(0, half, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const int64_t j = half + i;
    const Vec<C> a = normed(i, count), b = normed(j, count);
    const Vec<C> first = step(a * load_n(cos + i, count)) - step(b * load_n(sin + i, count));
    const Vec<C> second = step(b * load_n(cos + j, count)) + step(a * load_n(sin + j, count));
    store_n(y + i, first, count), store_n(y + j, second, count);
  });
  for_each_vector<C>(2 * half, n,
                     [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA { store_n(y + i, normed(i, count), count); });
}

template <class Length, class T>
void rotary_forward_rows(const Problem& problem, const RotaryForwardTensors<T>& tensors, Length n, int64_t begin,
                         int64_t end) {
  using C = compute_t<T>;
  const int64_t batch = rows_per_batch<T>(n);
  auto x = tensors.x.from(begin);
  auto y = tensors.y.from(begin);
  Head head(problem, begin);
  Positions<C> position(tensors.cos, tensors.sin, tensors.half, tensors.heads, begin);
  const T* input[MAX_BATCH];
  Statistics<C> statistics[MAX_BATCH];
  for (int64_t row = begin; row < end;) {
    const int64_t rows = std::min({batch, end - row, position.heads_left()});
    for (int64_t i = 0; i < rows; ++i, ++x) input[i] = *x;
    RMS::batch_statistics(input, rows, problem.spec.k, problem.spec, statistics);
    const Rotation<C> rotation = *position;
    for (int64_t i = 0; i < rows; ++i, ++y, ++head) {
      const auto affine = tensors.affine.from(*head * n);
      const ScaledRow<T> from{input[i], statistics[i].scale};
      affine.round_first ? normalize_and_rotate_row<true>(from, *y, n, statistics[i], affine.gain, rotation)
                         : normalize_and_rotate_row<false>(from, *y, n, statistics[i], affine.gain, rotation);
    }
    row += rows;
    position.advance(rows, row == end);
  }
}

template <class T>
void rotary_forward_tensor(const Problem& problem, const RotaryForwardTensors<T>& tensors) {
  parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
    with_whole_heads<compute_t<T>>(problem.spec.n, tensors.half,
                                   [&](auto n) { rotary_forward_rows(problem, tensors, n, begin, end); });
  });
}

template <class T>
struct RotaryBackwardTensors {
  Tensor<const T> dy, x;
  Tensor<T> dx;
  Affine<compute_t<T>> affine;
  AngleRows cos, sin;
  int64_t half, heads;
  double* dweight;  // sums for each gain; null: not wanted
};

// u, the gradient at the norm's result: dy rotated back.
template <class Length, class T, class C>
RMSNORM_NOINLINE void rotate_row_back(const T* dy, C* u, Length n, const Rotation<C> rotation) {
  const C *cos = rotation.cos, *sin = rotation.sin;
  const int64_t half = half_of(n, rotation);
  for_each_vector<C>(0, half, [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA {
    const int64_t j = half + i;
    const Vec<C> a = load_n(dy + i, count), b = load_n(dy + j, count);
    store_n(u + i, a * load_n(cos + i, count) + b * load_n(sin + j, count), count);
    store_n(u + j, b * load_n(cos + j, count) - a * load_n(sin + i, count), count);
  });
  for_each_vector<C>(2 * half, n,
                     [=](int64_t i, int count) RMSNORM_INLINE_LAMBDA { store_n(u + i, load_n(dy + i, count), count); });
}

// TRAINING: with gain, its gradient and one rounding, as a norm is usually trained. Other calls take the generic passes.
template <bool TRAINING, class Length, class T>
void rotary_backward_rows(const Problem& problem, const RotaryBackwardTensors<T>& tensors, Length n, int64_t begin,
                          int64_t end, compute_t<T>* dweight) {
  using C = compute_t<T>;
  const NormSpec& spec = problem.spec;
  auto dy = tensors.dy.from(begin), x = tensors.x.from(begin);
  auto dx = tensors.dx.from(begin);
  Head head(problem, begin);
  Positions<C> position(tensors.cos, tensors.sin, tensors.half, tensors.heads, begin);
  const int64_t group_size = n * int64_t(sizeof(T)) <= SHORT_ROW_BYTES ? GROUP : 1;
  const auto gradients = allocate<C>(group_size * n);
  for (int64_t row = begin; row < end; row += group_size) {
    RowGroup<T, C> group;
    group.count = std::min(group_size, end - row);
    for (int64_t i = 0; i < group.count; ++i, ++x, ++dy, ++head) {
      C* const u = gradients.get() + i * n;
      rotate_row_back(*dy, u, n, *position);
      position.advance(1, row + i + 1 == end);
      group.x[i] = *x, group.dy[i] = u, group.parameter_offset[i] = *head * n;
      group.gain[i] = tensors.affine.from(group.parameter_offset[i]).gain;
    }
    group.x[group.count] = *x, group.dy[group.count] = gradients.get();  // the next group's, which are prefetched
    if (TRAINING) statistics_and_projections<true>(group, spec);
    if constexpr (TRAINING && IS_CONSTANT<Length>) {
      if (problem.heads == 1 && group.all_usual()) {
        T* to[GROUP];
        for (int64_t i = 0; i < group.count; ++i, ++dx) to[i] = *dx;
        backward_group<GAIN | DX | DWEIGHT>(group, n, tensors.affine.gain, to, dweight);
        continue;
      }
    }
    for (int64_t i = 0; i < group.count; ++i, ++dx) {
      const int64_t offset = group.parameter_offset[i];
      const auto affine = tensors.affine.from(offset);
      const Gradients<T, C> out{*dx, nullptr, dweight ? dweight + offset : nullptr, nullptr};
      BackwardInputs<T, C> in{{group.x[i], 1}, group.dy[i], group.x[i + 1], group.dy[i + 1]};
      if (TRAINING && __builtin_expect(group.usual[i], 1)) {
        backward_row<RMS, GAIN | DX | DWEIGHT>(in, spec, group.statistics[i], group.projection[i], affine, out);
        continue;
      }
      const Statistics<C> s = RMS::statistics(group.x[i], spec);
      in.x.scale = s.scale;
      backward_row_generic<RMS>(in, spec, s, affine, out);
    }
  }
}

template <class T>
void rotary_backward_tensor(const Problem& problem, const RotaryBackwardTensors<T>& tensors) {
  using C = compute_t<T>;
  if (!tensors.dweight)
    return parallel_for(problem.threads(), 0, problem.rows, problem.grain(), [&](int64_t begin, int64_t end) {
      rotary_backward_rows<false>(problem, tensors, problem.spec.n, begin, end, nullptr);
    });
  double* const totals[] = {tensors.dweight};
  sum_over_rows<C>(problem, 1, totals, [&](int64_t begin, int64_t end, C* leaf) {
    if (!tensors.affine.gain || tensors.affine.round_first)
      return rotary_backward_rows<false>(problem, tensors, problem.spec.n, begin, end, leaf);
    with_whole_heads<C>(problem.spec.n, tensors.half,
                        [&](auto n) { rotary_backward_rows<true>(problem, tensors, n, begin, end, leaf); });
  });
}

}  // namespace rmsnorm
