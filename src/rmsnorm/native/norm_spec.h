// What a call asks of a norm: NormSpec, which every kernel takes.
#pragma once

#include <cstdint>

#include "codes.h"

namespace rmsnorm {

struct NormSpec {
  NormKind kind;
  int flags;     // codes.py lists them
  int dims;      // how many dimensions are normalised, the last ones
  int64_t n, k;  // the elements of a row, and the first k of them, of which the statistic is taken
  double eps;
};

struct GatedSpec {
  NormSpec group;  // n and k are those of one group; dims counts the dimensions that all groups make together
  int64_t groups;
  bool norm_first;
};

}  // namespace rmsnorm
