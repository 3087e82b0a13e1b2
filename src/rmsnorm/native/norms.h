// The norm of a call, call.norm, on views that were read. false: not served.
#pragma once

#include "call.h"

namespace rmsnorm {

// With a residual and a sum (RMSNorm alone): x + residual goes to sum, and its norm to y.
bool forward(const Call& call, const View& y, const View* residual = nullptr, const View* sum = nullptr);

// dx + plus, dweight and dbias, as far as there is where to write them. dy may be float32 where x is of 16 bits.
bool backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight, const View* dbias);

}  // namespace rmsnorm
