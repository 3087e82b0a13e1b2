// The product of a few rows with a matrix that stays the same for many steps, and is packed once for all of them.
//
// A library's product of a small matrix costs more in calls and packing than in arithmetic.
#pragma once

#include "batch.h"
#include "simd.h"

namespace rmsnorm {

// Sums of a block of rows and columns fill the registers, beside a row of the panel and a broadcast element.
#if defined(RMSNORM_AVX512)
constexpr int PANEL_VECTORS = 4, BLOCK_ROWS = 6;
#else
constexpr int PANEL_VECTORS = 3, BLOCK_ROWS = 4;
#endif

// The elements [0, columns) of R rows of x · panel, or of add + x · panel; add may be out.
template <int R, class T, class C>
RMSNORM_NOINLINE void multiply_block(const C* x, int64_t x_stride, const C* panel, int64_t depth, const T* add, T* out,
                                     int64_t stride, int64_t columns) {
  constexpr int N = LANES<C>, V = PANEL_VECTORS;
  const auto lanes_of = [=](int v) { return int(std::clamp<int64_t>(columns - v * N, 0, N)); };
  Vec<C> sum[R][V] = {};
  if (add)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V && lanes_of(v); ++v) sum[r][v] = load_n(add + r * stride + v * N, lanes_of(v));
  for (int64_t k = 0; k < depth; ++k, panel += V * N) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Vec<C> element = set(x[r * x_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += element * load(panel + v * N);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V && lanes_of(v); ++v) store_n(out + r * stride + v * N, sum[r][v], lanes_of(v));
}

// A matrix (depth, width) in panels of neighbouring columns, one panel after the other; columns past the end are 0.
template <class C>
class PackedMatrix {
  static constexpr int64_t COLUMNS = PANEL_VECTORS * LANES<C>;

 public:
  // The element (k, j) is at w[k * depth_stride + j * width_stride].
  template <class T>
  PackedMatrix(const T* w, int64_t depth, int64_t width, int64_t depth_stride, int64_t width_stride)
      : depth_(depth), width_(width), panels_(allocate<C>((width + COLUMNS - 1) / COLUMNS * depth * COLUMNS)) {
    C* to = panels_.get();
    for (int64_t first = 0; first < width; first += COLUMNS)
      for (int64_t k = 0; k < depth; ++k, to += COLUMNS)
        for (int64_t j = 0; j < COLUMNS; ++j)
          to[j] = first + j < width ? widen(w[k * depth_stride + (first + j) * width_stride]) : C(0);
  }

  // out = x · matrix, or add + x · matrix, for rows of x that are x_stride apart; those of add and out are width apart.
  template <class T>
  void multiply(int64_t rows, const C* x, int64_t x_stride, const T* add, T* out) const {
    const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t first = 0; first < width_; first += COLUMNS)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = rows * block / blocks, count = rows * (block + 1) / blocks - row;
        multiply_rows<BLOCK_ROWS>(count, x + row * x_stride, x_stride, panels_.get() + first * depth_,
                                  add ? add + row * width_ + first : nullptr, out + row * width_ + first, first);
      }
  }

 private:
  template <int R, class T>
  void multiply_rows(int64_t count, const C* x, int64_t x_stride, const C* panel, const T* add, T* out,
                     int64_t first) const {
    if (count == R) return multiply_block<R>(x, x_stride, panel, depth_, add, out, width_, width_ - first);
    if constexpr (R > 1) multiply_rows<R - 1>(count, x, x_stride, panel, add, out, first);
  }

  int64_t depth_, width_;
  Buffer<C> panels_;
};

}  // namespace rmsnorm
