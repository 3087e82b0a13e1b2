// torch's CPU tensors as the kernels take them, and which of them are usual. nodes.cpp and ops.cpp share it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "../native/c_api.h"

namespace rmsnorm::torch_tensors {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

using Key = c10::DispatchKey;
constexpr c10::DispatchKeySet ON_CPU({Key::CPU, Key::AutogradCPU, Key::AutocastCPU, Key::ADInplaceOrView});
constexpr c10::DispatchKeySet ON_CUDA({Key::CUDA, Key::AutogradCUDA, Key::AutocastCUDA, Key::ADInplaceOrView});

// A dense tensor in the memory of such a device, whose sign is no flag, and which nothing has wrapped.
inline bool is_plain_on(c10::DispatchKeySet plain, const Tensor& t) {
  if (!((t.key_set() | plain) == plain)) return false;
  const auto* meta = torch::autograd::impl::get_autograd_meta(t);
  return !meta || !meta->fw_grad_ || meta->fw_grad_->empty();  // forward mode
}

inline bool is_plain(const Tensor& t) { return is_plain_on(ON_CPU, t); }

// Modes, transforms and tracers are in the thread's sets of dispatch keys. Autocast does not concern the norms.
inline bool no_mode_is_active() {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const auto usual = c10::default_included_set | c10::autocast_dispatch_keyset;
  return (local.included_ | usual) == usual;
}

inline int dtype_code(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return int(DType::float32);
    case at::kDouble: return int(DType::float64);
    case at::kBFloat16: return int(DType::bfloat16);
    case at::kHalf: return int(DType::float16);
    default: return -1;
  }
}

// A tensor as the kernels take it, which judge it: whatever it is, all of it is said. Undefined: absent.
struct Described : c_api::StridedTensor {
  explicit Described(const Tensor& t) : StridedTensor{nullptr, -1, 0, nullptr, nullptr}, defined(t.defined()) {
    if (!defined) return;
    dtype = dtype_code(t);
    ndim = int(t.dim()), shape = t.sizes().data(), strides = t.strides().data();
    data = t.data_ptr();
    if (!t.storage().data()) data = nullptr;  // freed: else the address is the offset alone
  }
  const c_api::StridedTensor* get() const { return defined ? this : nullptr; }
  bool defined;
};

// Whether all strides are those of a fresh tensor: is_contiguous leaves out the ones of extent 1 and of empty tensors.
inline bool in_order(const Tensor& t) {
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    if (t.stride(d) != expected) return false;
    expected *= std::max<int64_t>(t.size(d), 1);
  }
  return true;
}

inline Tensor fresh_like(const Tensor& t) {
  return in_order(t) && t.is_cpu() ? Tensor(at::detail::empty_cpu(t.sizes(), t.scalar_type())) : at::empty_like(t);
}

inline const Tensor& or_undefined(const OptionalTensor& t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

}  // namespace rmsnorm::torch_tensors
