// RMSNorm, LayerNorm and the gated norm on views, forward and backward. The functions return false, and have written nothing, if the kernels
// do not serve such arguments.
#pragma once

#include "call.h"

namespace rmsnorm {

// y = norm(x), or, with a residual and a sum (RMSNorm only): sum = x + residual and y = norm(sum).
bool run_forward(const Call& call, const View& y, const View* residual = nullptr, const View* sum = nullptr);

// dx + plus, dweight and dbias; null: not wanted. dy may be float32 if x has 16 bits.
bool run_backward(Call& call, const View& dy, const View* dx, const View* plus, const View* dweight, const View* dbias);

// The same of the gated norm; z is the gate.
bool run_gated_forward(const GatedSpec& spec, const View& x, const View& z, const View* weight, const View& y);
bool run_gated_backward(const GatedSpec& spec, const View& dy, const View& x, const View& z, const View* weight,
                        const View& dx, const View& dz, const View* dweight);

}  // namespace rmsnorm
