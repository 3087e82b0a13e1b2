// The table of c_api.h. Nothing here needs Python.

#include "c_api.h"

#include "norms.h"

namespace rmsnorm::c_api {
namespace {

std::optional<View> view_of(const StridedTensor& t) { return View::of(t.data, t.dtype, t.ndim, t.shape, t.strides); }
RequiredArgument required(const StridedTensor& t) { return RequiredArgument(view_of(t)); }
OptionalArgument optional(const StridedTensor* t) { return {t != nullptr, t ? view_of(*t) : std::nullopt}; }

constexpr Api API = {
    VERSION,
    nullptr,  // read_spec
    [](const NormSpec& spec, const StridedTensor& x_, const StridedTensor* weight, const StridedTensor* bias,
       const StridedTensor& y_, const StridedTensor* residual_, const StridedTensor* sum_) {
      return call_with_views(
          [&](const View& x, const View* w, const View* b, const View& y, const View* residual, const View* sum) {
            Call call(x, w, b);
            return call.accept(spec) && run_forward(call, y, residual, sum);
          },
          required(x_), optional(weight), optional(bias), required(y_), optional(residual_), optional(sum_));
    },
    [](const NormSpec& spec, const StridedTensor& dy_, const StridedTensor& x_, const StridedTensor* weight,
       const StridedTensor* dx_, const StridedTensor* plus_, const StridedTensor* dweight_,
       const StridedTensor* dbias_) {
      return call_with_views(
          [&](const View& dy, const View& x, const View* w, const View* dx, const View* plus, const View* dweight,
              const View* dbias) {
            Call call(x, w, nullptr);
            return call.accept(spec) && run_backward(call, dy, dx, plus, dweight, dbias);
          },
          required(dy_), required(x_), optional(weight), optional(dx_), optional(plus_), optional(dweight_),
          optional(dbias_));
    },
    [](const StridedTensor& x_, const int64_t* shape, int dims, const double* eps, double p, int64_t groups,
       NormSpec& spec) {
      return call_with_views(
          [&](const View& x) {
            if (dims < 1 || dims > x.ndim || !std::equal(shape, shape + dims, x.shape + (x.ndim - dims))) return false;
            spec.dims = dims, spec.n = x.size(x.ndim - dims, x.ndim), spec.eps = checked_eps(x, eps);
            if (std::isnan(spec.eps) || groups < 1 || spec.n % groups) return false;
            spec.n /= groups, spec.k = elements_of_statistic(spec.n, p);
            return spec.k >= 0;
          },
          required(x_));
    },
    [](const GatedSpec& spec, const StridedTensor& x_, const StridedTensor& gate, const StridedTensor* weight,
       const StridedTensor& y_) {
      return call_with_views([&](const View& x, const View& z, const View* w,
                                 const View& y) { return run_gated_forward(spec, x, z, w, y); },
                             required(x_), required(gate), optional(weight), required(y_));
    },
    [](const GatedSpec& spec, const StridedTensor& dy_, const StridedTensor& x_, const StridedTensor& gate,
       const StridedTensor* weight, const StridedTensor& dx_, const StridedTensor& dgate,
       const StridedTensor* dweight_) {
      return call_with_views(
          [&](const View& dy, const View& x, const View& z, const View* w, const View& dx, const View& dz,
              const View* dweight) { return run_gated_backward(spec, dy, x, z, w, dx, dz, dweight); },
          required(dy_), required(x_), required(gate), optional(weight), required(dx_), required(dgate),
          optional(dweight_));
    },
    [](void* function) { torch_parallel_for = reinterpret_cast<TorchParallelFor>(function); },
};

}  // namespace
}  // namespace rmsnorm::c_api

const rmsnorm::c_api::Api* rmsnorm_c_api() { return &rmsnorm::c_api::API; }
