// The module's functions for QK-norm with a rotary embedding: checks, then the kernels of the tensors' dtypes.

#include "rotary.h"

#include "bindings.h"
#include "python_spec.h"

namespace rmsnorm {
namespace {

// (…, heads, positions, n) as (…, positions, heads, n).
View by_position(const View& v) {
  View moved = v;
  std::swap(moved.shape[v.ndim - 3], moved.shape[v.ndim - 2]);
  std::swap(moved.stride[v.ndim - 3], moved.stride[v.ndim - 2]);
  return moved;
}

// cos or sin, (…, positions, 2·half), which may lack outer dimensions or repeat over them, as rows of x's positions.
std::optional<AngleRows> angle_rows(const View& v, const View& x) {
  const int positions = x.ndim - 2;  // how many dimensions the positions have
  if (v.ndim < 1 || v.ndim > positions + 1 || !v.contiguous(v.ndim - 1)) return {};
  const int64_t width = v.shape[v.ndim - 1];
  if (width % 2 || width > x.shape[x.ndim - 1]) return {};
  View bytes = x;
  bytes.ndim = positions;
  for (int d = positions - 1, from = v.ndim - 2; d >= 0; --d, --from) {
    const bool repeats = from < 0 || v.shape[from] == 1;
    if (!repeats && v.shape[from] != x.shape[d]) return {};
    bytes.stride[d] = repeats ? 0 : v.stride[from] * int64_t(item_size(v.dtype));
  }
  return AngleRows{v.dtype, {v.data, Rows(bytes, positions)}};
}

// The query or the key of a call. x: (…, heads, positions, n).
class RotaryCall {
 public:
  RotaryCall(const View& x, const View* weight) : x_(by_position(x)), call_(x_, weight, nullptr) {}

  bool accept(const SpecArguments& arguments, const View& cos, const View& sin) {
    if (!rmsnorm::accept(call_, arguments)) return false;
    const NormSpec& spec = call_.problem.spec;
    if (spec.dims != 1 || spec.k != spec.n) return false;
    if (sin.ndim != cos.ndim || !std::equal(cos.shape, cos.shape + cos.ndim, sin.shape)) return false;
    const auto cos_rows = angle_rows(cos, x_), sin_rows = angle_rows(sin, x_);
    if (!cos_rows || !sin_rows) return false;
    cos_ = *cos_rows, sin_ = *sin_rows, half_ = cos.shape[cos.ndim - 1] / 2;
    // casting="llama": each step has the dtype that promotion gives. The kernels have one for all steps.
    if (!(arguments.flags & ROUND_FIRST)) return true;
    return cos.dtype == x_.dtype && sin.dtype == x_.dtype && (!call_.weight || call_.weight->dtype == x_.dtype);
  }
  bool is_like_x(const View& v) const {
    return v.ndim == x_.ndim && call_.is_like_x(by_position(v)) && v.dtype == x_.dtype;
  }
  bool accept_gradient(const View& dweight) { return call_.weight && call_.accept_parameter(dweight); }
  int64_t elements() const { return call_.problem.rows * n(); }

  void forward(const View& y) const {
    if (elements() == 0) return;
    with_type(x_.dtype, [&](auto zero) {
      using T = decltype(zero);
      Parameters<compute_t<T>> parameters(call_);
      rotary_forward_tensor<T>(
          call_.problem, {rows<const T>(x_), rows<T>(by_position(y)), parameters.affine, cos_, sin_, half_, heads()});
    });
  }
  void backward(const View& dy, const View& dx, const View* dweight) const {
    if (n() == 0 || (elements() == 0 && !dweight)) return;
    with_type(x_.dtype, [&](auto zero) {
      using T = decltype(zero);
      Parameters<compute_t<T>> parameters(call_);
      const auto sums = dweight ? allocate<double>(call_.problem.heads * n()) : nullptr;
      rotary_backward_tensor<T>(call_.problem,
                                {rows<const T>(by_position(dy)), rows<const T>(x_), rows<T>(by_position(dx)),
                                 parameters.affine, cos_, sin_, half_, heads(), sums.get()});
      if (dweight) write_sums(*dweight, sums.get(), n(), false);
    });
  }

 private:
  int64_t n() const { return call_.problem.spec.n; }
  int64_t heads() const { return x_.shape[x_.ndim - 2]; }
  template <class T>
  Tensor<T> rows(const View& v) const {
    return call_.tensor<T>(v);
  }
  View x_;
  Call call_;
  AngleRows cos_{}, sin_{};
  int64_t half_ = 0;
};

// Whether q and k have the same shape, except for their heads.
bool fit(const View& q, const View& k) {
  if (q.ndim < 3 || k.ndim != q.ndim) return false;
  for (int d = 0; d < q.ndim; ++d)
    if (d != q.ndim - 3 && q.shape[d] != k.shape[d]) return false;
  return true;
}

// q and k, (…, heads, positions, n), may differ in heads; cos and sin: (…, positions, 2·half).
bool rotary(nb::handle q_, nb::handle k_, nb::handle cos_, nb::handle sin_, nb::handle q_weight_, nb::handle k_weight_,
            nb::handle y_q_, nb::handle y_k_, nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& q, const View& k, const View& cos, const View& sin, const View* q_weight, const View* k_weight,
          const View& y_q, const View& y_k) {
        if (!fit(q, k)) return false;
        const SpecArguments arguments{NormKind::rms, shape, eps, p, flags};
        RotaryCall query(q, q_weight), key(k, k_weight);
        if (!query.accept(arguments, cos, sin) || !key.accept(arguments, cos, sin)) return false;
        if (!query.is_like_x(y_q) || !key.is_like_x(y_k)) return false;
        prepare_fresh(y_q), prepare_fresh(y_k);
        MaybeReleasedGil released(query.elements() + key.elements());
        query.forward(y_q), key.forward(y_k);
        return true;
      },
      required(q_), required(k_), required(cos_), required(sin_), optional(q_weight_), optional(k_weight_),
      required(y_q_), required(y_k_));
}

// The gradients of one of the two: x is the query or the key.
bool rotary_backward(nb::handle dy_, nb::handle x_, nb::handle cos_, nb::handle sin_, nb::handle weight_,
                     nb::handle dx_, nb::handle dweight_, nb::handle shape, nb::handle eps, nb::handle p, int flags) {
  return call_with_views(
      [&](const View& dy, const View& x, const View& cos, const View& sin, const View* weight, const View& dx,
          const View* dweight) {
        if (x.ndim < 3) return false;
        RotaryCall call(x, weight);
        if (!call.accept({NormKind::rms, shape, eps, p, flags}, cos, sin)) return false;
        if (!call.is_like_x(dy) || !call.is_like_x(dx) || (dweight && !call.accept_gradient(*dweight))) return false;
        prepare_fresh(dx);
        MaybeReleasedGil released(call.elements());
        call.backward(dy, dx, dweight);
        return true;
      },
      required(dy_), required(x_), required(cos_), required(sin_), optional(weight_), required(dx_),
      optional(dweight_));
}

}  // namespace

void bind_rotary(nb::module_& m) {
  const auto none = nb::arg().none();
  m.def("rotary", &rotary, none, none, none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("rotary_backward", &rotary_backward, none, none, none, none, none, none, none, none, none, none, nb::arg());
}

}  // namespace rmsnorm
