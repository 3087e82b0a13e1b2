"""The formulas that ``torch.onnx.export`` gets: few of torch's operations, each of which ONNX has.

For p = 1 a norm is one ``RMSNormalization`` from opset 23 on, a LayerNorm one ``LayerNormalization``; else primitives.
Rows are not rescaled as :mod:`~rmsnorm.torch.composite` does it, and ONNX Runtime's kernels do not rescale them either:
a row whose squares leave float32's range overflows there.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rmsnorm.spec import NormSpec


def exporting() -> bool:
    """Whether either of torch's exporters is at work."""
    return torch.onnx.is_in_onnx_export()


def rms_norm(x: Tensor, gain: Tensor | None, eps: float, spec: NormSpec) -> Tensor:
    """x̂ ⊙ gain, in x's dtype, which is the computation dtype."""
    if spec.k == spec.n and not torch.jit.is_tracing():  # the older exporter has no translation of it
        return F.rms_norm(x, spec.normalized_shape, gain, eps)
    rows = x.flatten(-len(spec.normalized_shape))
    xhat = rows * torch.rsqrt(rows[..., : spec.k].square().mean(-1, keepdim=True) + eps)
    return xhat.reshape(x.shape) if gain is None else xhat.reshape(x.shape) * gain


def layer_norm(x: Tensor, gain: Tensor | None, eps: float, spec: NormSpec) -> Tensor:
    """The same of x − μ."""
    return F.layer_norm(x, spec.normalized_shape, gain, None, eps)
