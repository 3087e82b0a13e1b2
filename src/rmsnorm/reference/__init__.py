"""The oracle: RMSNorm, pRMSNorm and LayerNorm in NumPy and float64, with their derivatives, in the paper's notation.

Written to be read and to be right, not to be fast. Tests, benchmarks and analyses check everything else against it.
Notation of Zhang & Sennrich, "Root Mean Square Layer Normalization" (NeurIPS 2019), §3, §3.1 and §4.2:

    a  the summed inputs, shape (..., n); the last axis is normalised, every row on its own
    g  the gain and b the bias, shape (n,); none means ones and zeros
    k  how many leading elements the RMS is taken over (pRMSNorm); none means all n
    u  the gradient that arrives at the output; d* is a tangent (jvp) or a gradient (vjp) of *

Conventions shared by all functions:

- eps is inside the root: r = √(mean(a²) + eps). A zero-centred gain multiplies by 1 + g.
- Gain and bias may also have shape (heads, n) if a has (..., heads, n): one for each head. Both gradients then
  have the shape of the gain (which may be all ones).
- Arguments of any floating dtype are converted to float64 and float64 is returned. If one of them is ``longdouble``,
  everything is computed in that type: the reference for float64 kernels where the platform has a wider type.
- Rows, and the gradients and tangents that go with them, are first scaled by a power of two, which is exact: no
  finite row overflows or underflows on the way, and a result is infinite only where it is too large to be represented.
- Infinities and NaN follow IEEE arithmetic: an infinite statistic makes its row 0, and NaN where a is infinite; a row
  of zeros at eps = 0 is 0/0 = NaN. The warnings that NumPy gives for these are silenced.
"""

from rmsnorm.reference.family import add_rms_norm_quantized, rms_norm_gated, rms_norm_gated_vjp, rms_norm_quantized
from rmsnorm.reference.layer import layer_norm, layer_norm_jvp, layer_norm_vjp
from rmsnorm.reference.residual import add_rms_norm, add_rms_norm_jvp, add_rms_norm_vjp
from rmsnorm.reference.rms import rms_norm, rms_norm_jvp, rms_norm_vjp
from rmsnorm.reference.rotary import rms_norm_rotary, rms_norm_rotary_vjp

__all__ = [
    "add_rms_norm",
    "add_rms_norm_jvp",
    "add_rms_norm_quantized",
    "add_rms_norm_vjp",
    "layer_norm",
    "layer_norm_jvp",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_gated",
    "rms_norm_gated_vjp",
    "rms_norm_jvp",
    "rms_norm_quantized",
    "rms_norm_rotary",
    "rms_norm_rotary_vjp",
    "rms_norm_vjp",
]
