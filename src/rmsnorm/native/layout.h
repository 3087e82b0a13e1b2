// Tensors in memory: View, any tensor; Rows and Cursor, the rows of one, whose elements are contiguous.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "dtype.h"

namespace rmsnorm {

constexpr int MAX_DIMS = 64;  // the most that torch and NumPy allow

// A tensor that the kernels can read and write. Strides count elements. Only `of` makes views, so a kernel cannot get
// the address of an argument that was not checked.
class View {
  struct Key {};

 public:
  char* data;
  DType dtype;
  int ndim;
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];

  // Nothing for a dtype that is not floating (or not of eight bits, if one is asked for), for too many dimensions, and
  // for elements without memory. Without strides the tensor is contiguous.
  static std::optional<View> of(void* data, int dtype, int ndim, const int64_t* shape, const int64_t* stride,
                                bool eight_bit = false) {
    std::optional<View> view;
    if (!(eight_bit ? is_eight_bit(dtype) : is_floating(dtype)) || ndim < 0 || ndim > MAX_DIMS) return view;
    view.emplace(Key{}, data, DType(dtype), ndim, shape, stride);
    if (!data && !view->empty()) view.reset();
    return view;
  }
  View(Key, void* data, DType dtype, int ndim, const int64_t* shape, const int64_t* stride)
      : data(static_cast<char*>(data)), dtype(dtype), ndim(ndim) {
    std::copy_n(shape, ndim, this->shape);
    if (stride) std::copy_n(stride, ndim, this->stride);
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0 && !stride; --d) {
      this->stride[d] = expected;
      expected *= std::max<int64_t>(1, shape[d]);
    }
  }
  View(const View& o) : data(o.data), dtype(o.dtype), ndim(o.ndim) {  // not the rest of the arrays
    std::copy_n(o.shape, ndim, shape);
    std::copy_n(o.stride, ndim, stride);
  }
  View& operator=(const View&) = delete;

  bool empty() const { return std::find(shape, shape + ndim, 0) != shape + ndim; }
  int64_t size(int begin, int end) const {
    uint64_t product = 1;  // wraps only if the tensor is empty
    for (int d = begin; d < end; ++d) product *= uint64_t(shape[d]);
    return int64_t(product);
  }
  bool contiguous(int begin) const {  // the dimensions from begin on
    if (empty()) return true;  // NumPy's strides of empty arrays mean nothing
    int64_t expected = 1;
    for (int d = ndim - 1; d >= begin; --d) {
      if (shape[d] != 1 && stride[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
  // The memory from the lowest element to the end of the highest.
  std::pair<const char*, const char*> extent() const {
    int64_t low = 0, high = 1;
    for (int d = 0; d < ndim; ++d) (stride[d] < 0 ? low : high) += (shape[d] - 1) * stride[d];
    if (empty()) low = high = 0;
    const int64_t item = int64_t(item_size(dtype));
    return {data + low * item, data + high * item};
  }
  int64_t bytes() const { return extent().second - extent().first; }
  bool overlaps(const View& other) const {
    const auto [begin, end] = extent();
    const auto [first, last] = other.extent();
    return begin < last && first < end;
  }
  bool is_same_memory(const View& other) const {
    return data == other.data && dtype == other.dtype && std::equal(stride, stride + ndim, other.stride);
  }
  // Whether no two elements share memory. May say no of unusual strides, but not of a permuted dense tensor.
  bool writable() const {
    int order[MAX_DIMS], used = 0;
    for (int d = ndim - 1; d >= 0; --d)
      if (shape[d] != 1) order[used++] = d;
    std::stable_sort(order, order + used, [this](int a, int b) { return stride[a] < stride[b]; });
    int64_t reach = 1;
    for (int i = 0; i < used; ++i) {
      if (stride[order[i]] < reach) return false;
      reach = stride[order[i]] * shape[order[i]];
    }
    return true;
  }
};

// The outer dimensions, merged where possible: one for a contiguous tensor, two for q in a packed qkv.
struct Rows {
  int ndim = 0;
  int64_t count = 1;
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];  // innermost first

  Rows() = default;
  Rows(const View& v, int outer) {
    for (int d = outer - 1; d >= 0; --d) {
      count *= v.shape[d];
      if (v.shape[d] == 1) continue;
      if (ndim && v.stride[d] == stride[ndim - 1] * shape[ndim - 1])
        shape[ndim - 1] *= v.shape[d];
      else
        shape[ndim] = v.shape[d], stride[ndim++] = v.stride[d];
    }
  }
  // Whether every row starts at a multiple of `bytes` if the first one does.
  bool aligned(int64_t item, int64_t bytes) const {
    for (int d = 0; d < ndim; ++d)
      if (stride[d] * item % bytes) return false;
    return true;
  }
};

// Walks over the rows in order, from any row.
template <class T>
class Cursor {
 public:
  Cursor(T* data, const Rows& rows, int64_t row) : rows_(&rows), at_(data) {
    if (!data) return;
    one_stride_ = rows.ndim <= 1;
    if (one_stride_ && rows.ndim) step_ = rows.stride[0];
    for (int d = 0; d < rows.ndim; ++d) {
      const bool outermost = d + 1 == rows.ndim || row == 0;  // row 0: no division by extents, which may be 0
      index_[d] = outermost ? row : row % rows.shape[d];
      row = outermost ? 0 : row / rows.shape[d];
      at_ += index_[d] * rows.stride[d];
    }
  }
  T* operator*() const { return at_; }
  void operator++() {
    if (one_stride_) {  // the usual case; absent tensors have step 0
      at_ += step_;
      return;
    }
    for (int d = 0; d < rows_->ndim; ++d) {
      at_ += rows_->stride[d];
      if (d + 1 == rows_->ndim || ++index_[d] < rows_->shape[d]) return;
      at_ -= rows_->stride[d] * rows_->shape[d];
      index_[d] = 0;
    }
  }

 private:
  const Rows* rows_;
  T* at_;
  bool one_stride_ = true;
  int64_t step_ = 0;
  int64_t index_[MAX_DIMS];
};

}  // namespace rmsnorm
