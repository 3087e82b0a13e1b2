// How the rows of a tensor lie in memory: any outer strides, the normalised elements contiguous.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dtype.h"

namespace rmsnorm {

constexpr int MAX_DIMS = 64;  // what torch and NumPy allow

// A tensor as its owner describes it; strides count elements.
struct View {
  char* data = nullptr;
  DType dtype = DType::f32;
  int ndim = 0;
  int64_t shape[MAX_DIMS], stride[MAX_DIMS];

  int64_t size(int begin, int end) const {
    int64_t product = 1;
    for (int d = begin; d < end; ++d) product *= shape[d];
    return product;
  }
  bool contiguous(int begin) const {  // the dimensions from begin on
    if (size(0, ndim) == 0) return true;  // NumPy's strides of empty arrays mean nothing
    // Asked even of one element: torch's views of imaginary parts, whose sign may be a flag that no kernel sees,
    // have a stride of 2.
    if (begin < ndim && stride[ndim - 1] != 1) return false;
    int64_t expected = 1;
    for (int d = ndim - 1; d >= begin; --d) {
      if (shape[d] != 1 && stride[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
  int64_t bytes() const {  // from the first element to behind the last; strides are not negative where it matters
    int64_t last = 0;
    for (int d = 0; d < ndim; ++d) last += (shape[d] - 1) * stride[d];
    return (last + 1) * int64_t(item_size(dtype));
  }
  bool overlaps(const View& other) const { return data < other.data + other.bytes() && other.data < data + bytes(); }
  bool is_same_memory(const View& other) const {
    return data == other.data && dtype == other.dtype && std::equal(stride, stride + ndim, other.stride);
  }
  // Whether no two elements are one place in memory (sufficient, and true of every permuted dense tensor).
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

// The outer dimensions, merged where they can be: one for a contiguous tensor, two for q in a packed qkv.
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
  // Whether every row starts at a multiple of `bytes`, given that the first one does.
  bool aligned(int64_t item, int64_t bytes) const {
    for (int d = 0; d < ndim; ++d)
      if (stride[d] * item % bytes) return false;
    return true;
  }
};

// Walks over rows in order from any start.
template <class T>
class Cursor {
 public:
  Cursor(T* data, const Rows& rows, int64_t row) : rows_(&rows), at_(data) {
    if (!data) return;
    even_ = rows.ndim <= 1;
    if (even_ && rows.ndim) step_ = rows.stride[0];
    for (int d = 0; d < rows.ndim; ++d) {
      const bool outermost = d + 1 == rows.ndim || row == 0;  // row 0 asks nothing of shapes, which may be 0
      index_[d] = outermost ? row : row % rows.shape[d];
      row = outermost ? 0 : row / rows.shape[d];
      at_ += index_[d] * rows.stride[d];
    }
  }
  T* operator*() const { return at_; }
  void operator++() {
    if (even_) {  // as rows usually lie, and what is absent: step 0
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
  bool even_ = true;
  int64_t step_ = 0;
  int64_t index_[MAX_DIMS];
};

}  // namespace rmsnorm
