"""The gated norm as a function of tensors: which way a call goes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.torch.dispatch import AUTOGRAD, COMPOSITE, KERNEL, OPERATOR, eager_way, graph_way
from rmsnorm.torch.gated.eager import GATED, recorded_gated
from rmsnorm.torch.gated.spec import check_gated_spec, gated_spec
from rmsnorm.torch.indirect import indirect
from rmsnorm.torch.operation import checked_composite, extents, run

_ops = torch.ops.rmsnorm


def rms_norm_gated(
    input: Tensor,
    gate: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    norm_before_gate: bool = False,
    groups: int = 1,
    p: float = 1.0,
) -> Tensor:
    r"""RMSNorm and a SiLU gate in one pass over memory (Mamba-2's ``RMSNormGated``).

    .. math:: y = \mathrm{rms\_norm}(x \odot \mathrm{silu}(z)) \odot g \quad\text{or}\quad
              y = \mathrm{rms\_norm}(x) \odot g \odot \mathrm{silu}(z), \qquad \mathrm{silu}(z) = \frac{z}{1 + e^{-z}}

    The second form is that of ``norm_before_gate=True``.

    Args:
        input: x, (…, \*normalized_shape), float16, bfloat16, float32 or float64; any strides.
        gate: z, of the input's shape and any floating dtype (the kernels take the input's).
        normalized_shape: the last dimensions, of n elements together.
        weight: the gain g, of shape ``normalized_shape`` and any floating dtype; None: 1.
        eps: inside the root; None: machine epsilon of the computation dtype (1.19e-7, or 2.22e-16 for float64).
        norm_before_gate: normalise first, then apply the gate.
        groups: split the n elements into this number of groups, in row-major order; each has its own statistic.
        p: the RMS is taken of this fraction of each group's elements, the first ones; 0 < p ≤ 1.

    The computation dtype is float32, or float64 for float64 inputs, with one rounding at the end, to the input's dtype.
    x ⊙ silu(z) is computed in that dtype; where it is finite the statistic does not overflow. Derivatives of every
    order, forward mode and ``torch.func`` transforms work.

    Returns:
        y, of the input's shape and dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has a wrong value, or if tensors do not fit each other; the latter error is a
            ``RuntimeError`` too, as in torch.

    Source: Dao & Gu, "Transformers are SSMs" (2024): the norm before the output projection of Mamba-2.

    Example:
        >>> x, gate = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
        >>> rms_norm_gated(x, gate, (2,))
        tensor([[0.0000, 1.4142]])
        >>> rms_norm_gated(x, gate, (2,), norm_before_gate=True)
        tensor([[0.0000, 0.8271]])
    """
    how = eps, norm_before_gate, groups, p
    tensors = input, gate, weight
    if is_compiling():
        way = graph_way(input, gate)
        if way == OPERATOR:
            return _ops.rms_norm_gated(input, gate, extents(normalized_shape), weight, *how)
    else:
        way = eager_way(*tensors)
    if way == COMPOSITE:
        options = {"eps": eps, "norm_before_gate": norm_before_gate, "groups": groups, "p": p}
        rows = {"input": input, "gate": gate}
        y = indirect(rms_norm_gated, rows, normalized_shape, weight=weight, **options)
        if y is not None:
            return y
    spec = (check_gated_spec if is_compiling() else gated_spec)(normalized_shape, *how)
    if way == AUTOGRAD:
        return recorded_gated(spec, *tensors)
    return (run if way == KERNEL else checked_composite)(GATED, spec, tensors)[0]
