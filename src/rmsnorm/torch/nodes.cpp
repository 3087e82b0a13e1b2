// The usual calls, and their autograd nodes, in C++ against torch's headers: torch.autograd.Function costs more than a
// small norm (docs/findings.md), and a training step finds its Python code in cold caches. CPU tensors go to the native
// kernels, CUDA tensors to Python functions that launch Triton's.
//
// What is not usual (subclasses, transforms, modes, tracing, other devices and layouts, wrong arguments) gets None and
// goes the way it goes without this module; a backward pass that is itself differentiated or mapped over is handed to
// the same Python function. Serves the torch it was built with and no other (see node_files.py).

#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include "tensors.h"

// RMSNORM_NODES: the module's name, which has torch's version (node_files.py).
#define RMSNORM_STRING(name) RMSNORM_QUOTED(name)
#define RMSNORM_QUOTED(name) #name
#define RMSNORM_CONCATENATED(a, b) RMSNORM_PASTED(a, b)
#define RMSNORM_PASTED(a, b) a##b

namespace rmsnorm::torch_nodes {
namespace {

using namespace torch_tensors;

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What bindings.load_nodes hands over, kept for the life of the process.
const c_api::Api* kernels = nullptr;
PyObject* gradients = nullptr;  // norm.eager.node_gradients
int usual_flags = 0;
PyObject *once = nullptr, *llama = nullptr;

// ---- kernels in Python ----

// A device's, as bindings.Kernels has them: those that Triton compiles for CUDA tensors. The tests give a CPU some too.
struct PythonKernels {
  PyObject *norm = nullptr, *norm_backward = nullptr;
};
PythonKernels of_cpu, of_cuda;

const PythonKernels& python_kernels(const Tensor& t) { return t.is_cpu() ? of_cpu : of_cuda; }

bool is_usual(const Tensor& t) { return is_plain(t) || (of_cuda.norm && is_plain_on(ON_CUDA, t)); }

pybind11::object wrapped(const Tensor& t) {  // None for an undefined tensor
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(t));
}

[[noreturn]] void throw_python_error() {
  python_error error;
  error.persist();
  throw error;
}

// The last dimensions of x.
pybind11::tuple extents_of(const Tensor& x, int dims) {
  pybind11::tuple shape(dims);
  for (int i = 0; i < dims; ++i) shape[i] = x.size(x.dim() - dims + i);
  return shape;
}

// Whether the kernel has served these arguments.
template <class... A>
bool serves(PyObject* kernel, const A&... arguments) {
  PyObject* const pointers[] = {pybind11::handle(arguments).ptr()...};
  const auto answer =
      pybind11::reinterpret_steal<pybind11::object>(PyObject_Vectorcall(kernel, pointers, sizeof...(A), nullptr));
  if (!answer) throw_python_error();
  return answer.ptr() == Py_True;
}

// ---- the node ----

struct Call {
  NormSpec spec;
  double p;
};

struct Outputs {  // y, and with a residual the sum: not a variable to autograd's reading of a call's arguments
  variable_list made;
};

struct Node : torch::autograd::Function<Node> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& residual,
                               const OptionalTensor& weight, const OptionalTensor& bias, const Call& call,
                               const Outputs& outputs) {
    const bool sums = residual.has_value();
    ctx->save_for_backward({sums ? outputs.made[1] : input, or_undefined(weight), or_undefined(bias)});
    ctx->set_materialize_grads(false);
    const auto& spec = call.spec;
    ctx->saved_data["numbers"] = c10::List<double>({spec.eps, call.p});
    ctx->saved_data["counts"] = c10::List<int64_t>({int(spec.kind), spec.flags, spec.dims, spec.n, spec.k, sums,
                                                    or_undefined(weight).defined(), or_undefined(bias).defined()});
    return outputs.made;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto counts = ctx->saved_data["counts"].toIntList();
    const auto numbers = ctx->saved_data["numbers"].toDoubleList();
    const Call call{{NormKind(counts[0]), int(counts[1]) & ~FRESH, int(counts[2]), counts[3], counts[4], numbers[0]},
                    numbers[1]};
    const bool sums = counts[5], has_weight = counts[6], has_bias = counts[7];
    // Gradients are asked for by edge, and what is not a tensor has none.
    size_t edge = 0;
    const bool wants_input = ctx->needs_input_grad(edge++);
    const bool wants_residual = sums && ctx->needs_input_grad(edge++);
    const bool wants_weight = has_weight && ctx->needs_input_grad(edge++);
    const bool wants_bias = has_bias && ctx->needs_input_grad(edge++);
    const bool wants_dx = wants_input || wants_residual;

    Tensor dx, dweight, dbias;
    const Tensor &dy = grads[0], plus = sums ? grads[1] : Tensor();
    if (!dy.defined()) {
      dx = plus;  // only the sum was used
    } else {
      if (wants_dx) dx = Tensor();
      gradients_of(call, dy, wants_dx ? plus : Tensor(), saved, wants_dx, wants_weight, wants_bias, dx, dweight, dbias);
    }
    const auto if_wanted = [](bool wanted, const Tensor& t) { return wanted ? t : Tensor(); };
    return {if_wanted(wants_input, dx), if_wanted(wants_residual, dx), dweight, dbias, Tensor(), Tensor()};
  }

 private:
  static void gradients_of(const Call& call, const Tensor& dy, const Tensor& plus, const variable_list& saved,
                           bool wants_dx, bool wants_weight, bool wants_bias, Tensor& dx, Tensor& dweight,
                           Tensor& dbias) {
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const auto usual = [&](const Tensor& t) { return !t.defined() || (is_usual(t) && t.device() == x.device()); };
    if (!at::GradMode::is_enabled() && no_mode_is_active() && usual(dy) && usual(plus) && usual(x) && usual(weight)) {
      if (wants_dx) dx = fresh_like(x);
      if (wants_weight) dweight = fresh_like(weight);
      if (wants_bias) dbias = fresh_like(bias);
      if (python_kernels(x).norm_backward) {
        if (by_python_kernel(call, dy, plus, x, weight, dx, dweight, dbias)) return;
        return in_python(call, dy, plus, saved, wants_dx, wants_weight, wants_bias, dx, dweight, dbias);
      }
      const Described d(dy), of_x(x), of_weight(weight), of_dx(dx), of_plus(plus), of_dweight(dweight), of_dbias(dbias);
      if (kernels->backward(call.spec, d, of_x, of_weight.get(), of_dx.get(), of_plus.get(), of_dweight.get(),
                            of_dbias.get()))
        return;
    }
    in_python(call, dy, plus, saved, wants_dx, wants_weight, wants_bias, dx, dweight, dbias);
  }

  static bool by_python_kernel(const Call& call, const Tensor& dy, const Tensor& plus, const Tensor& x,
                               const Tensor& weight, const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
    pybind11::gil_scoped_acquire lock;
    const auto& spec = call.spec;
    return serves(python_kernels(x).norm_backward, wrapped(dy), wrapped(plus), wrapped(x), wrapped(weight), wrapped(dx),
                  wrapped(dweight), wrapped(dbias), pybind11::int_(int(spec.kind)), extents_of(x, spec.dims),
                  pybind11::float_(spec.eps), pybind11::float_(call.p), pybind11::int_(spec.flags));
  }

  static void in_python(const Call& call, const Tensor& dy, const Tensor& plus, const variable_list& saved,
                        bool wants_dx, bool wants_weight, bool wants_bias, Tensor& dx, Tensor& dweight, Tensor& dbias) {
    pybind11::gil_scoped_acquire lock;
    const auto found = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunction(
        gradients, "iOOOOOi(NNN)ddNs", int(call.spec.kind), wrapped(dy).ptr(), wrapped(plus).ptr(),
        wrapped(saved[0]).ptr(), wrapped(saved[1]).ptr(), wrapped(saved[2]).ptr(), call.spec.dims,
        PyBool_FromLong(wants_dx), PyBool_FromLong(wants_weight), PyBool_FromLong(wants_bias), call.spec.eps, call.p,
        PyBool_FromLong(call.spec.flags & ZERO_CENTERED), call.spec.flags & ROUND_FIRST ? "llama" : "once"));
    if (!found) throw_python_error();
    Tensor* to[3] = {&dx, &dweight, &dbias};
    for (int i = 0; i < 3; ++i) {
      PyObject* t = PyTuple_GetItem(found.ptr(), i);
      if (!t) throw_python_error();
      *to[i] = t == Py_None ? Tensor() : THPVariable_Unpack(t);
    }
  }
};

// ---- the calls ----

// An argument that must be a plain tensor, or None where that is allowed.
bool unpack(PyObject* o, bool optional, OptionalTensor& t) {
  if (optional && o == Py_None) return true;
  if (!THPVariable_CheckExact(o)) return false;
  t = THPVariable_Unpack(o);
  return is_usual(*t);
}

bool read_flags(PyObject* zero_centered, PyObject* casting, int& flags) {
  flags = usual_flags | FRESH;
  if (zero_centered == Py_True)
    flags |= ZERO_CENTERED;
  else if (zero_centered != Py_False)
    return false;
  if (casting == llama)
    flags |= ROUND_FIRST;
  else if (casting != once)
    return false;
  return true;
}

bool read_number(PyObject* o, double& value) {
  value = PyFloat_AsDouble(o);
  if (value != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

bool requires_grad(const OptionalTensor& t) { return t && t->requires_grad(); }

bool is_inference(const OptionalTensor& t) { return t && t->is_inference(); }

// y (and the sum) of a usual call, or an empty list. With `out`, y is written there, and nothing is differentiable.
variable_list run(const char* name, Call& call, PyObject* shape, PyObject* eps, PyObject* p, const Tensor& input,
                  const OptionalTensor& residual, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& out = {}) {
  if (!no_mode_is_active()) return {};
  const auto elsewhere = [&](const OptionalTensor& t) { return t && t->device() != input.device(); };
  if (elsewhere(residual) || elsewhere(weight) || elsewhere(bias) || elsewhere(out)) return {};
  const Described x(input), w(or_undefined(weight)), b(or_undefined(bias)), r(or_undefined(residual));
  // With Llama's casting parameters of another dtype change the result's: norm.eager.output_dtype.
  const auto changes = [&](const Described& t) { return t.defined && t.dtype != x.dtype; };
  if (call.spec.flags & ROUND_FIRST && (changes(w) || changes(b))) return {};
  if (!kernels->read_spec(x, shape, eps, p, call.spec)) return {};
  const bool differentiable = at::GradMode::is_enabled() && (requires_grad(input) || requires_grad(residual) ||
                                                             requires_grad(weight) || requires_grad(bias));
  // What was made in inference mode cannot be saved for the backward pass: operation.saveable.
  if (differentiable && (is_inference(input) || is_inference(weight) || is_inference(bias))) return {};
  if (out && (differentiable || out->requires_grad())) return {};
  if (out && out->is_inference() && !c10::InferenceMode::is_enabled()) return {};
  if (out) call.spec.flags &= ~FRESH;
  at::RecordFunction guard(at::RecordScope::FUNCTION);
  if (guard.isActive()) guard.before(name, differentiable ? int64_t(at::sequence_number::peek()) : -1);
  Outputs outputs;
  outputs.made.push_back(out ? *out : fresh_like(input));
  if (residual) outputs.made.push_back(fresh_like(*residual));
  const Tensor& y = outputs.made[0];
  const Tensor sum = residual ? outputs.made[1] : Tensor();
  if (PyObject* const kernel = python_kernels(input).norm) {
    const auto& spec = call.spec;  // the numbers that were read, whatever objects they came in
    if (!serves(kernel, wrapped(input), wrapped(or_undefined(residual)), wrapped(or_undefined(weight)),
                wrapped(or_undefined(bias)), wrapped(y), wrapped(sum), pybind11::int_(int(spec.kind)),
                extents_of(input, spec.dims), pybind11::float_(spec.eps), pybind11::float_(call.p),
                pybind11::int_(spec.flags)))
      return {};
  } else if (!kernels->forward(call.spec, x, w.get(), b.get(), Described(y), r.get(), Described(sum).get())) {
    return {};
  }
  if (out && !out->is_inference()) out->unsafeGetTensorImpl()->bump_version();  // as in-place operations do
  if (!differentiable) return std::move(outputs.made);
  return Node::apply(input, residual, weight, bias, call, outputs);
}

// (input, normalized_shape, weight, bias, eps, p, zero_centered, casting, out) → y or None
PyObject* rms_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 9, "rms_norm takes 9 arguments");
  OptionalTensor input, weight, bias, out;
  Call call;
  call.spec.kind = NormKind::rms;
  if (!unpack(args[0], false, input) || !unpack(args[2], true, weight) || !unpack(args[3], true, bias) ||
      !unpack(args[8], true, out) || !read_number(args[5], call.p) || !read_flags(args[6], args[7], call.spec.flags))
    Py_RETURN_NONE;
  const auto made = run("rmsnorm::rms_norm", call, args[1], args[4], args[5], *input, {}, weight, bias, out);
  if (made.empty()) Py_RETURN_NONE;
  return THPVariable_Wrap(made[0]);
  END_HANDLE_TH_ERRORS
}

// (input, normalized_shape, weight, bias, eps, out) → y or None
PyObject* layer_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 6, "layer_norm takes 6 arguments");
  OptionalTensor input, weight, bias, out;
  Call call;
  call.spec.kind = NormKind::layer, call.spec.flags = usual_flags | FRESH, call.p = 1;
  if (!unpack(args[0], false, input) || !unpack(args[2], true, weight) || !unpack(args[3], true, bias) ||
      !unpack(args[5], true, out))
    Py_RETURN_NONE;
  static PyObject* const whole = PyFloat_FromDouble(1);
  const auto made = run("rmsnorm::layer_norm", call, args[1], args[4], whole, *input, {}, weight, bias, out);
  if (made.empty()) Py_RETURN_NONE;
  return THPVariable_Wrap(made[0]);
  END_HANDLE_TH_ERRORS
}

// (input, residual, normalized_shape, weight, bias, eps, p, zero_centered, casting) → (y, sum) or None
PyObject* add_rms_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 9, "add_rms_norm takes 9 arguments");
  OptionalTensor input, residual, weight, bias;
  Call call;
  call.spec.kind = NormKind::rms;
  if (!unpack(args[0], false, input) || !unpack(args[1], false, residual) || !unpack(args[3], true, weight) ||
      !unpack(args[4], true, bias) || !read_number(args[6], call.p) || !read_flags(args[7], args[8], call.spec.flags))
    Py_RETURN_NONE;
  const auto made = run("rmsnorm::add_rms_norm", call, args[2], args[5], args[6], *input, residual, weight, bias);
  if (made.empty()) Py_RETURN_NONE;
  const auto y = pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(made[0]));
  const auto sum = pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(made[1]));
  return PyTuple_Pack(2, y.ptr(), sum.ptr());
  END_HANDLE_TH_ERRORS
}

// (kernels.c_api, norm.eager.node_gradients, flags) → whether the kernels speak this module's version of the interface
PyObject* connect(PyObject*, PyObject* args) {
  PyObject* capsule;
  PyObject* function;
  if (!PyArg_ParseTuple(args, "OOi", &capsule, &function, &usual_flags)) return nullptr;
  const auto* api = static_cast<const c_api::Api*>(PyCapsule_GetPointer(capsule, c_api::CAPSULE));
  if (!api) return nullptr;
  if (api->version != c_api::VERSION) Py_RETURN_FALSE;
  kernels = api, gradients = Py_NewRef(function);
  once = PyUnicode_InternFromString("once"), llama = PyUnicode_InternFromString("llama");
  Py_RETURN_TRUE;
}

// What triton/plans.py finds a call's plan by; the same as its _describe.
PyObject* describe(PyObject*, PyObject* tensors) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(PyTuple_CheckExact(tensors), "describe takes a tuple of tensors and None");
  const Py_ssize_t count = PyTuple_GET_SIZE(tensors);
  c10::SmallVector<int64_t, 96> said;
  pybind11::tuple addresses(count);
  uintptr_t bits = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const o = PyTuple_GET_ITEM(tensors, i);
    TORCH_CHECK_TYPE(o == Py_None || THPVariable_Check(o), "describe takes a tuple of tensors and None");
    const Tensor& t = o == Py_None ? or_undefined({}) : THPVariable_Unpack(o);
    if (t.defined() && (!t.has_storage() || (!t.storage().data() && t.numel()))) Py_RETURN_NONE;
    const auto address = t.defined() ? reinterpret_cast<uintptr_t>(t.data_ptr()) : 0;
    addresses[i] = address;
    bits |= address;
    said.push_back(t.defined());
    if (!t.defined()) continue;
    said.append({int64_t(t.scalar_type()), int64_t(t.device().index()), int64_t(t.is_neg()), t.dim()});
    said.append(t.sizes().begin(), t.sizes().end());
    said.append(t.strides().begin(), t.strides().end());
  }
  const pybind11::bytes key(reinterpret_cast<const char*>(said.data()), said.size() * sizeof(int64_t));
  return pybind11::make_tuple(key, addresses, bits).release().ptr();
  END_HANDLE_TH_ERRORS
}

// ("cpu" or "cuda", norm, norm_backward): the device's kernels in Python from now on; None twice: it has none
PyObject* serve(PyObject*, PyObject* args) {
  const char* device;
  PyObject *norm, *norm_backward;
  if (!PyArg_ParseTuple(args, "sOO", &device, &norm, &norm_backward)) return nullptr;
  const auto kept = [](PyObject* o) { return o == Py_None ? nullptr : Py_NewRef(o); };
  (std::string_view(device) == "cuda" ? of_cuda : of_cpu) = {kept(norm), kept(norm_backward)};
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"rms_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(rms_norm)), METH_FASTCALL, nullptr},
    {"layer_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(layer_norm)), METH_FASTCALL, nullptr},
    {"add_rms_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(add_rms_norm)), METH_FASTCALL, nullptr},
    {"connect", connect, METH_VARARGS, nullptr},
    {"describe", describe, METH_O, nullptr},
    {"serve", serve, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, RMSNORM_STRING(RMSNORM_NODES), nullptr, -1, methods};

}  // namespace
}  // namespace rmsnorm::torch_nodes

#define RMSNORM_INIT(name) RMSNORM_CONCATENATED(PyInit_, name)
PyMODINIT_FUNC RMSNORM_INIT(RMSNORM_NODES)() { return PyModule_Create(&rmsnorm::torch_nodes::definition); }
