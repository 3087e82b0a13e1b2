// The norms' operators on CPU tensors, in C++: what a compiled graph calls. The dispatcher's way into Python costs more
// than a small norm (docs/findings.md).
//
// Needs libtorch and no Python. bindings.load_operators hands over the kernels; in a program without Python they are
// loaded from the folder of kernels beside this library's.
//
// What is not usual (other layouts, subclasses, transforms, gradients, wrong arguments) is left to the operator of the
// same name with an underscore, which registration.py defines: the same results and errors as without this library.

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "../native/levels.h"
#include "schemas.h"
#include "tensors.h"

// libtorch's own, since 2.10.
extern "C" int32_t torch_parallel_for(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);

namespace rmsnorm::torch_ops {
namespace {

using namespace torch_tensors;
using c10::DispatchKeySet;
using c10::SymIntArrayRef;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Wants = c10::List<bool>;
using Eps = std::optional<double>;

// ---- the kernels ----

const c_api::Api* kernels = nullptr;
int usual_flags = 0;

// The kernels of the best level, or of the one that RMSNORM_ISA names, from ../native.
const c_api::Api* load_kernels() {
  Dl_info here;
  TORCH_CHECK(dladdr(reinterpret_cast<void*>(load_kernels), &here) && here.dli_fname,
              "rmsnorm cannot find its own library's folder");
  const std::string path = here.dli_fname, folder = path.substr(0, path.rfind('/') + 1);
  const char* wanted = std::getenv("RMSNORM_ISA");
  const Level* level = nullptr;
  for (int i = 0; i < supported_levels(); ++i)
    if (!wanted || !*wanted || wanted == std::string_view(LEVELS[i].name)) level = &LEVELS[i];
  TORCH_CHECK(level, "RMSNORM_ISA must name an instruction-set level that this processor runs, got ", wanted);
  const std::string file = folder + "../native/kernels" + level->module + ".so";
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library, "rmsnorm's kernels must lie in ", file, ": ", dlerror());
  const auto function = reinterpret_cast<decltype(&rmsnorm_c_api)>(dlsym(library, c_api::SYMBOL));
  TORCH_CHECK(function && function()->version == c_api::VERSION, file, " is of another version of rmsnorm than ", path);
  function()->use_threads(reinterpret_cast<void*>(torch_parallel_for));
  return function();
}

void find_kernels() {
  static std::once_flag once;
  if (!kernels) std::call_once(once, [] { kernels = load_kernels(); });
}

// ---- what the calls ask for ----

std::optional<NormSpec> read_spec(const Described& x, NormKind kind, SymIntArrayRef shape, const Eps& eps, double p,
                                  bool zero_centered, std::string_view casting, int64_t groups = 1) {
  if (casting != "once" && casting != "llama") return {};
  const auto extents = c10::asIntArrayRefSlowOpt(shape);
  if (!extents) return {};
  NormSpec spec{kind,
                usual_flags | FRESH | (zero_centered ? ZERO_CENTERED : 0) | (casting == "llama" ? ROUND_FIRST : 0)};
  if (!kernels->make_spec(x, extents->data(), int(extents->size()), eps ? &*eps : nullptr, p, groups, spec)) return {};
  return spec;
}

std::optional<GatedSpec> read_gated_spec(const Described& x, SymIntArrayRef shape, const Eps& eps, bool norm_first,
                                         int64_t groups, double p) {
  const auto group = read_spec(x, NormKind::rms, shape, eps, p, false, "once", groups);
  return group ? std::optional(GatedSpec{*group, groups, norm_first}) : std::nullopt;
}

// What takes the place of a gradient that is not wanted: a schema has no absent tensors.
Tensor or_empty(Tensor t, const Tensor& like) {
  return t.defined() ? t : Tensor(at::detail::empty_cpu({0}, like.scalar_type()));
}

Three gradients(Tensor a, Tensor b, Tensor c, const Tensor& dy) {
  const Tensor like = a.defined() ? a : b.defined() ? b : c.defined() ? c : dy;
  return {or_empty(a, like), or_empty(b, like), or_empty(c, like)};
}

// ---- the operators: results, or nothing if the kernels do not serve such arguments ----

std::optional<Two> forward(NormKind kind, const Tensor& input, const OptionalTensor& residual, SymIntArrayRef shape,
                           const OptionalTensor& weight, const OptionalTensor& bias, const Eps& eps, double p,
                           bool zero_centered, std::string_view casting) {
  const Described x(input), r(or_undefined(residual)), w(or_undefined(weight)), b(or_undefined(bias));
  const auto spec = read_spec(x, kind, shape, eps, p, zero_centered, casting);
  if (!spec) return {};
  // With Llama's casting parameters of another dtype change the result's: norm.eager.output_dtype.
  const auto changes = [&](const Described& t) { return t.defined && t.dtype != x.dtype; };
  if (spec->flags & ROUND_FIRST && (changes(w) || changes(b))) return {};
  const Tensor y = fresh_like(input), sum = residual ? fresh_like(*residual) : Tensor();
  const Described to(y), to_sum(sum);
  if (!kernels->forward(*spec, x, w.get(), b.get(), to, r.get(), to_sum.get())) return {};
  return Two(y, sum);
}

std::optional<Three> backward(NormKind kind, const Tensor& dy, const Tensor& input, SymIntArrayRef shape,
                              const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& plus,
                              const Wants& wants, const Eps& eps, double p, bool zero_centered,
                              std::string_view casting) {
  if (wants.size() != 3) return {};
  const Described x(input), d(dy), w(or_undefined(weight)), more(or_undefined(plus));
  const auto spec = read_spec(x, kind, shape, eps, p, zero_centered, casting);
  if (!spec) return {};
  const Tensor dx = wants[0] ? fresh_like(input) : Tensor();
  const Tensor dweight = wants[1] && weight ? fresh_like(*weight) : Tensor();
  const Tensor dbias = wants[2] && bias ? fresh_like(*bias) : Tensor();
  const Described to(dx), to_weight(dweight), to_bias(dbias);
  if (!kernels->backward(*spec, d, x, w.get(), to.get(), more.get(), to_weight.get(), to_bias.get())) return {};
  return gradients(dx, dweight, dbias, dy);
}

struct rms_norm {
  static constexpr const char* NAME = "rms_norm";
  static std::optional<Tensor> compute(const Tensor& input, SymIntArrayRef shape, const OptionalTensor& weight,
                                       const OptionalTensor& bias, Eps eps, double p, bool zero_centered,
                                       std::string_view casting) {
    auto made = forward(NormKind::rms, input, {}, shape, weight, bias, eps, p, zero_centered, casting);
    return made ? std::optional(std::get<0>(*made)) : std::nullopt;
  }
};

struct add_rms_norm {
  static constexpr const char* NAME = "add_rms_norm";
  static std::optional<Two> compute(const Tensor& input, const Tensor& residual, SymIntArrayRef shape,
                                    const OptionalTensor& weight, const OptionalTensor& bias, Eps eps, double p,
                                    bool zero_centered, std::string_view casting) {
    return forward(NormKind::rms, input, residual, shape, weight, bias, eps, p, zero_centered, casting);
  }
};

struct layer_norm {
  static constexpr const char* NAME = "layer_norm";
  static std::optional<Tensor> compute(const Tensor& input, SymIntArrayRef shape, const OptionalTensor& weight,
                                       const OptionalTensor& bias, Eps eps) {
    auto made = forward(NormKind::layer, input, {}, shape, weight, bias, eps, 1, false, "once");
    return made ? std::optional(std::get<0>(*made)) : std::nullopt;
  }
};

struct rms_norm_backward {
  static constexpr const char* NAME = "rms_norm_backward";
  static std::optional<Three> compute(const Tensor& dy, const Tensor& input, SymIntArrayRef shape,
                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& plus, Wants wants, Eps eps, double p, bool zero_centered,
                                      std::string_view casting) {
    return backward(NormKind::rms, dy, input, shape, weight, bias, plus, wants, eps, p, zero_centered, casting);
  }
};

struct layer_norm_backward {
  static constexpr const char* NAME = "layer_norm_backward";
  static std::optional<Three> compute(const Tensor& dy, const Tensor& input, SymIntArrayRef shape,
                                      const OptionalTensor& weight, const OptionalTensor& bias, Wants wants, Eps eps) {
    return backward(NormKind::layer, dy, input, shape, weight, bias, {}, wants, eps, 1, false, "once");
  }
};

struct rms_norm_gated {
  static constexpr const char* NAME = "rms_norm_gated";
  static std::optional<Tensor> compute(const Tensor& input, const Tensor& gate, SymIntArrayRef shape,
                                       const OptionalTensor& weight, Eps eps, bool norm_first, int64_t groups,
                                       double p) {
    const Described x(input), z(gate), w(or_undefined(weight));
    const auto spec = read_gated_spec(x, shape, eps, norm_first, groups, p);
    if (!spec) return {};
    const Tensor y = fresh_like(input);
    if (!kernels->gated_forward(*spec, x, z, w.get(), Described(y))) return {};
    return y;
  }
};

struct rms_norm_gated_backward {
  static constexpr const char* NAME = "rms_norm_gated_backward";
  static std::optional<Three> compute(const Tensor& dy, const Tensor& input, const Tensor& gate, SymIntArrayRef shape,
                                      const OptionalTensor& weight, Wants wants, Eps eps, bool norm_first,
                                      int64_t groups, double p) {
    if (wants.size() != 3) return {};
    const Described x(input), z(gate), d(dy), w(or_undefined(weight));
    const auto spec = read_gated_spec(x, shape, eps, norm_first, groups, p);
    if (!spec) return {};
    const Tensor dx = fresh_like(input), dgate = fresh_like(gate);
    const Tensor dweight = wants[2] && weight ? fresh_like(*weight) : Tensor();
    const Described to(dx), to_gate(dgate), to_weight(dweight);
    if (!kernels->gated_backward(*spec, d, x, z, w.get(), to, to_gate, to_weight.get())) return {};
    return gradients(wants[0] ? dx : Tensor(), wants[1] ? dgate : Tensor(), dweight, dy);
  }
};

// ---- the dispatcher's keys ----

bool all(bool (*property)(const Tensor&), const Tensor& t) { return property(t); }
bool all(bool (*property)(const Tensor&), const OptionalTensor& t) { return !t || property(*t); }
template <class T>
bool all(bool (*)(const Tensor&), const T&) {
  return true;
}

bool needs_no_grad(const Tensor& t) { return !t.requires_grad(); }

template <class Operator, class Compute = decltype(&Operator::compute)>
struct Keys;

template <class Operator, class Result, class... A>
struct Keys<Operator, std::optional<Result> (*)(A...)> {
  static Result cpu(DispatchKeySet keys, A... arguments) {
    if (no_mode_is_active() && (all(is_plain, arguments) && ...)) {
      find_kernels();
      if (auto made = Operator::compute(arguments...)) return *std::move(made);
    }
    return elsewhere(keys, arguments...);
  }

  // As _autograd of registration.py, which has what is differentiated, mapped over or watched.
  static Result autograd(DispatchKeySet keys, A... arguments) {
    const bool records = at::GradMode::is_enabled() && !(all(needs_no_grad, arguments) && ...);
    if (records || !no_mode_is_active() || !(all(is_plain, arguments) && ...)) return elsewhere(keys, arguments...);
    at::AutoDispatchBelowAutograd guard;
    return cpu(keys & c10::after_autograd_keyset, arguments...);
  }

 private:
  static Result elsewhere(DispatchKeySet keys, A... arguments) {
    static const std::string name = Operator::NAME;
    const auto other = c10::Dispatcher::singleton().findSchema({"rmsnorm::_" + name, ""});
    TORCH_CHECK_NOT_IMPLEMENTED(
        other, "rmsnorm::", name,
        " was called with arguments that its C++ kernels do not take (a layout, dtype, shape, "
        "or a gradient), and without Python nothing else serves them; pass contiguous CPU tensors that need no gradient");
    return other->template typed<Result(A...)>().redispatch(keys, arguments...);
  }
};

}  // namespace

TORCH_LIBRARY(rmsnorm, library) {
#define DEFINE(name, schema) library.def(#name schema);
  RMSNORM_OPERATORS(DEFINE)
}

TORCH_LIBRARY_IMPL(rmsnorm, CPU, library) {
#define ON_CPU(name, schema) library.impl(#name, Keys<name>::cpu);
  RMSNORM_OPERATORS(ON_CPU)
}

TORCH_LIBRARY_IMPL(rmsnorm, AutogradCPU, library) {
#define ON_AUTOGRAD(name, schema) library.impl(#name, Keys<name>::autograd);
  RMSNORM_OPERATORS(ON_AUTOGRAD)
}

}  // namespace rmsnorm::torch_ops

// Takes the kernels that Python has loaded. False, and nothing is taken, if they speak another version of the interface.
extern "C" __attribute__((visibility("default"))) bool rmsnorm_connect(const rmsnorm::c_api::Api* api, int flags) {
  if (api->version != rmsnorm::c_api::VERSION) return false;
  rmsnorm::torch_ops::kernels = api, rmsnorm::torch_ops::usual_flags = flags;
  return true;
}
