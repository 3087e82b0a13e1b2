// The kernels without Python, as a process that serves calls (c_api.h) from its standard input to its standard output. It
// shows them on a processor that Python does not run on; tests/support/through_aarch64.py is the other side.
//
// A call is a Request, its storages' sizes in bytes, its tensors, and the storages' bytes. The answer is whether the
// kernels serve it (8 bytes, 1 or 0), and all storages' bytes.

#include <cstdio>
#include <vector>

#include "c_api.h"

namespace rmsnorm {
namespace {

enum Operation : int64_t { FORWARD, BACKWARD, GATED_FORWARD, GATED_BACKWARD };

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

struct Tensor {
  int64_t storage, offset, dtype, ndim;  // a storage of −1: not given
  std::vector<int64_t> shape, strides;
  c_api::StridedTensor view;
};

bool serve(const Request& r, const std::vector<Tensor>& tensors) {
  const c_api::Api& api = *rmsnorm_c_api();
  const auto given = [&](size_t i) { return tensors[i].storage < 0 ? nullptr : &tensors[i].view; };
  const auto spec_of = [&](size_t x, NormSpec& spec) {
    spec.kind = NormKind(r.kind), spec.flags = int(r.flags);
    const Tensor& t = tensors[x];
    return api.make_spec(t.view, t.shape.data() + t.ndim - r.dims, int(r.dims), r.has_eps ? &r.eps : nullptr, r.p,
                         r.groups, spec);
  };
  NormSpec spec{};
  if (!spec_of(r.operation == FORWARD || r.operation == GATED_FORWARD ? 0 : 1, spec)) return false;
  const GatedSpec gated{spec, r.groups, r.norm_first != 0};
  switch (r.operation) {
    case FORWARD: return api.forward(spec, *given(0), given(1), given(2), *given(3), given(4), given(5));
    case BACKWARD: return api.backward(spec, *given(0), *given(1), given(2), given(3), given(4), given(5), given(6));
    case GATED_FORWARD: return api.gated_forward(gated, *given(0), *given(1), given(2), *given(3));
    case GATED_BACKWARD:
      return api.gated_backward(gated, *given(0), *given(1), *given(2), given(3), *given(4), *given(5), given(6));
    default: return false;
  }
}

bool serve_one() {
  Request r;
  if (!read(&r, 1)) return false;
  std::vector<int64_t> sizes(r.storages);
  std::vector<Tensor> tensors(r.tensors);
  if (!read(sizes.data(), sizes.size())) return false;
  for (Tensor& t : tensors) {
    if (!read(&t.storage, 4)) return false;
    t.shape.resize(t.ndim), t.strides.resize(t.ndim);
    if (!read(t.shape.data(), t.ndim) || !read(t.strides.data(), t.ndim)) return false;
  }
  std::vector<std::vector<char>> storages;
  for (const int64_t size : sizes)
    if (!read(storages.emplace_back(size).data(), size)) return false;
  for (Tensor& t : tensors)
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
