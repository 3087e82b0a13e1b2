// The Python module of one instruction-set level. Its functions return True when they have done the work, and False
// when the arguments are not ones they serve, nor anybody elsewhere; they never raise for a wrong argument.
// rmsnorm.spec does that, once.

#include "bindings.h"
#include "call.h"
#include "gate.h"
#include "operations.h"

#ifndef RMSNORM_MODULE
#error "RMSNORM_MODULE names the module; CMakeLists.txt sets it"
#endif

namespace rmsnorm {
namespace {

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
  const int64_t columns = call.problem.heads * call.problem.n;
  if (dx) prepare_fresh(*dx);
  MaybeReleased released(call.problem.rows * call.problem.n);
  Parameters<compute_t<T>> parameters(call);
  const auto sums = allocate<double>(2 * columns);
  Backward<T, D> b{};
  b.dy = call.tensor<const D>(dy);
  b.x = call.tensor<const T>(call.x);
  if (dx) b.dx = call.tensor<T>(*dx);
  if (plus) b.plus = call.tensor<const T>(*plus);
  b.affine = parameters.affine;
  b.affine.b = nullptr;
  b.dweight = dweight ? sums.get() : nullptr;
  b.dbias = dbias ? sums.get() + columns : nullptr;
  backward<Norm>(call.problem, b);
  if (dweight) write_sums(*dweight, b.dweight);
  if (dbias) write_sums(*dbias, b.dbias);
}

template <class Norm>
bool any_backward(Call& call, nb::handle dy_, nb::handle dx_, nb::handle plus_, nb::handle dweight_,
                  nb::handle dbias_) {
  View dy, dx, plus, dweight, dbias;
  const bool has_dx = !dx_.is_none(), has_plus = !plus_.is_none(), has_dweight = !dweight_.is_none(),
             has_dbias = !dbias_.is_none();
  if (!read(dy_, dy) || !call.is_like_x(dy)) return false;
  if (has_dx && (!read(dx_, dx) || !call.is_like_x(dx) || dx.dtype != call.x.dtype)) return false;
  if (has_plus && (!read(plus_, plus) || !call.is_like_x(plus) || plus.dtype != call.x.dtype)) return false;
  if (has_dweight && (!read(dweight_, dweight) || !call.takes(dweight))) return false;
  if (has_dbias && (!read(dbias_, dbias) || !call.takes(dbias))) return false;
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
  if (!(flags & FRESH)) {  // sum may be residual itself, but no other memory that is still to be read
    if (!sum.contiguous(0) && !sum.writable()) return false;
    if (sum.overlaps(residual) && !sum.is_same_memory(residual)) return false;
    if (sum.overlaps(call.x) || sum.overlaps(y) || residual.overlaps(y)) return false;
    if ((call.has_weight && sum.overlaps(call.weight)) || (call.has_bias && sum.overlaps(call.bias))) return false;
  }
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
  m.def("rms_norm", or_elsewhere("rms_norm", &rms_norm), none, none, none, none, none, none, none, nb::arg());
  m.def("layer_norm", or_elsewhere("layer_norm", &layer_norm), none, none, none, none, none, none, nb::arg());
  m.def("add_rms_norm", or_elsewhere("add_rms_norm", &add_rms_norm), none, none, none, none, none, none, none, none, none, nb::arg());
  m.def("rms_norm_backward", or_elsewhere("rms_norm_backward", &rms_norm_backward), none, none, none, none, none, none,
        none, none, none, none, nb::arg());
  m.def("layer_norm_backward", or_elsewhere("layer_norm_backward", &layer_norm_backward), none, none, none, none, none,
        none, none, none, none, nb::arg());
  bind_gated(m);
  bind_quantized(m);
  bind_recurrent(m);
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
  m.def("set_elsewhere", [](nb::handle function) { elsewhere = function.inc_ref().ptr(); });
  m.def("set_gate", &set_gate);
  m.def("gate", &gate, none, none, none);
  m.def("set_partial_count", [](nb::handle function) { partial_count = function.inc_ref().ptr(); });
  m.def("num_threads", [] { return Pool::instance().threads(); });
  m.def("set_num_threads", [](int threads) { Pool::instance().set_threads(threads); });
}
