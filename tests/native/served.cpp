// The kernels without Python, as a process that serves calls (c_api.h) from its standard input to its standard output. It
// shows them on a processor that Python does not run on; tests/support/through_aarch64.py is the other side.
//
// A call is a Request, its storages' sizes in bytes, its tensors, and the storages' bytes. The answer is whether the
// kernels serve it (8 bytes, 1 or 0), and all storages' bytes.

#include <cstdio>
#include <vector>

#include "c_api.h"
#include "call.h"
#include "quantized.h"

namespace rmsnorm {
namespace {

enum Operation : int64_t { FORWARD, BACKWARD, GATED_FORWARD, GATED_BACKWARD, QUANTIZED };

struct Request {
  int64_t operation, kind, flags, dims, groups, norm_first, has_eps;
  double eps, p;
  int64_t storages, tensors;
};

// A failed read is the end, or a caller that stopped.
template <class T>
bool read(T* to, size_t count) {
  return std::fread(to, sizeof(T), count, stdin) == count;
}

struct Given {
  int64_t storage, offset, dtype, ndim;  // a storage of −1: not given
  std::vector<int64_t> shape, strides;
  c_api::StridedTensor view;
};

// The quantised norm, which c_api.h does not have: of contiguous rows, as native/quantized.cpp calls it.
bool quantize(const NormSpec& spec, const c_api::StridedTensor& x_, const c_api::StridedTensor* weight,
              const c_api::StridedTensor& q, const c_api::StridedTensor& scale) {
  const auto view = [](const c_api::StridedTensor& t) { return View::of(t.data, t.dtype, t.ndim, t.shape, t.strides); };
  const auto x = view(x_), w = weight ? view(*weight) : std::nullopt;
  Call call(*x, w ? &*w : nullptr, nullptr);
  if (!call.accept(spec)) return false;
  with_type(x->dtype, [&](auto zero) {
    using T = decltype(zero);
    Parameters<compute_t<T>> parameters(call);
    QuantizeTensors<T> tensors;
    tensors.x = call.tensor<const T>(*x);
    tensors.q = static_cast<uint8_t*>(q.data), tensors.scale = static_cast<float*>(scale.data);
    tensors.affine = parameters.affine;
    q.dtype == int(DType::int8) ? quantize_tensor<Int8Code>(call.problem, tensors)
                                : quantize_tensor<Float8E4M3Code>(call.problem, tensors);
  });
  return true;
}

bool serve(const Request& r, const std::vector<Given>& tensors) {
  const c_api::Api& api = *rmsnorm_c_api();
  const auto given = [&](size_t i) { return tensors[i].storage < 0 ? nullptr : &tensors[i].view; };
  const auto spec_of = [&](size_t x, NormSpec& spec) {
    spec.kind = NormKind(r.kind), spec.flags = int(r.flags);
    const Given& t = tensors[x];
    return api.make_spec(t.view, t.shape.data() + t.ndim - r.dims, int(r.dims), r.has_eps ? &r.eps : nullptr, r.p,
                         r.groups, spec);
  };
  NormSpec spec{};
  const bool backward = r.operation == BACKWARD || r.operation == GATED_BACKWARD;
  if (!spec_of(backward ? 1 : 0, spec)) return false;
  const GatedSpec gated{spec, r.groups, r.norm_first != 0};
  switch (r.operation) {
    case FORWARD: return api.forward(spec, *given(0), given(1), given(2), *given(3), given(4), given(5));
    case BACKWARD: return api.backward(spec, *given(0), *given(1), given(2), given(3), given(4), given(5), given(6));
    case GATED_FORWARD: return api.gated_forward(gated, *given(0), *given(1), given(2), *given(3));
    case GATED_BACKWARD:
      return api.gated_backward(gated, *given(0), *given(1), *given(2), given(3), *given(4), *given(5), given(6));
    case QUANTIZED: return quantize(spec, *given(0), given(1), *given(2), *given(3));
    default: return false;
  }
}

bool serve_one() {
  Request r;
  if (!read(&r, 1)) return false;
  std::vector<int64_t> sizes(r.storages);
  std::vector<Given> tensors(r.tensors);
  if (!read(sizes.data(), sizes.size())) return false;
  for (Given& t : tensors) {
    if (!read(&t.storage, 4)) return false;
    t.shape.resize(t.ndim), t.strides.resize(t.ndim);
    if (!read(t.shape.data(), t.ndim) || !read(t.strides.data(), t.ndim)) return false;
  }
  std::vector<std::vector<char>> storages;
  for (const int64_t size : sizes)
    if (!read(storages.emplace_back(size).data(), size)) return false;
  for (Given& t : tensors)
    if (t.storage >= 0)
      t.view = {storages[t.storage].data() + t.offset, int(t.dtype), int(t.ndim), t.shape.data(), t.strides.data()};
  const int64_t served = serve(r, tensors);
  std::fwrite(&served, sizeof served, 1, stdout);
  for (const auto& storage : storages) std::fwrite(storage.data(), 1, storage.size(), stdout);
  return std::fflush(stdout) == 0;
}

}  // namespace
}  // namespace rmsnorm

int main() {
  while (rmsnorm::serve_one()) {
  }
}
