"""RMSNorm with a SiLU gate, as Mamba-2 has it: the public function, its autograd node, and the composite.

A group is a row of its own whose gain is that of a head: (…, n) is read as (…, groups, n / groups), and everything
that the plain norm can do with heads serves here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.spec import NormSpec, check_groups, check_norm_first, check_spec
from rmsnorm.torch import checks, composite, eager, onnx
from rmsnorm.torch.bindings import FLAGS, FRESH_FLAGS, kernels_of
from rmsnorm.torch.dispatch import Way, eager_way, graph_way
from rmsnorm.torch.eager import Shape


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
    how = (eps, norm_before_gate, groups, p)
    if is_compiling() and graph_way(input) == Way.OPERATOR:
        shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
        return torch.ops.rmsnorm.rms_norm_gated(input, gate, shape, weight, *how)
    way = Way.COMPOSITE if is_compiling() else eager_way(input, weight, gate)
    if way == Way.AUTOGRAD:
        return RMSNormGatedFunction.apply(input, gate, normalized_shape, weight, *how)
    if way != Way.COMPOSITE:
        return forward(input, gate, normalized_shape, weight, *how)
    spec = GatedSpec.of(normalized_shape, *how).check(input, gate, weight)
    return expression(input, gate, weight, spec)


@dataclass(frozen=True)
class GatedSpec:
    """What is asked for, checked: the normalised shape, and the norm of one group."""

    shape: tuple[int, ...]
    groups: int
    norm_first: bool
    group: NormSpec

    @classmethod
    def of(cls, shape: Shape, eps: float | None, norm_before_gate: bool, groups: int, p: float) -> "GatedSpec":
        """From the arguments, or the error that says what is wrong with them."""
        spec = check_spec(shape, eps, p)
        groups = check_groups(groups, spec.n)
        group = check_spec(spec.n // groups, eps, p)
        return cls(spec.normalized_shape, groups, check_norm_first(norm_before_gate), group)

    def check(self, input: Tensor, gate: Tensor, weight: Tensor | None) -> "GatedSpec":
        """Itself, if such tensors can be served."""
        checks.check_tensors(self.shape, input, weight, None, per_head=False)
        checks.check_alike("gate", gate, input)
        return self

    def grouped(self, t: Tensor) -> Tensor:
        """(…, *shape) as (…, groups, n / groups)."""
        return t.reshape(*t.shape[: t.dim() - len(self.shape)], self.groups, self.group.n)


# ---- the composite ----


def _logistic(z: Tensor) -> tuple[Tensor, Tensor]:
    """σ(z) and σ(−z) as the kernels have them: e^−|z| is the square of e^(−|z|/2), so that it ends in subnormal numbers
    (torch.sigmoid is 0 from −89 on in float32; the norm may bring such rows back to 1)."""
    root = torch.exp(torch.where(z < 0, z, -z) * 0.5)
    t = root * root
    large = 1 / (1 + t)
    small = t * large
    return torch.where(z < 0, small, large), torch.where(z < 0, large, small)


def _norm(x: Tensor, weight: Tensor | None, spec: GatedSpec) -> Tensor:
    gain = None if weight is None else spec.grouped(weight)
    y = composite.rms_norm(spec.grouped(x), spec.group.normalized_shape, gain, spec.group.eps, p=spec.group.p)
    return y.reshape(x.shape)


def expression(input: Tensor, gate: Tensor, weight: Tensor | None, spec: GatedSpec) -> Tensor:
    """:func:`rms_norm_gated` in torch's own operations."""
    x = input.to(composite.compute_dtype(input.dtype))
    z = gate.to(x.dtype)
    s = torch.nn.functional.silu(z) if onnx.exporting() else z * _logistic(z)[0]
    y = _norm(x, weight, spec) * s if spec.norm_first else _norm(x * s, weight, spec)
    return y.to(input.dtype)


def backward_expression(
    dy: Tensor, input: Tensor, gate: Tensor, weight: Tensor | None, spec: GatedSpec, wants: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`expression`, differentiable themselves.

    dx = dh ⊙ silu(z) and dz = dh ⊙ x ⊙ silu'(z), dh being the norm's; with ``norm_before_gate`` the norm receives
    dy ⊙ silu(z), and dz = dy ⊙ rms_norm(x) ⊙ g ⊙ silu'(z).
    """
    x = input.to(composite.compute_dtype(input.dtype))
    dy = dy.to(x.dtype)
    z = gate.to(x.dtype)
    at, rest = _logistic(z)
    s, slope = z * at, at * (1 + z * rest)
    gain = None if weight is None else spec.grouped(weight)
    h, u = (x, dy * s) if spec.norm_first else (x * s, dy)
    needs = (wants[0] or (wants[1] and not spec.norm_first), wants[2], False)
    dh, dweight, _ = composite.rms_norm_backward(spec.grouped(u), spec.grouped(h), gain, None, spec.group, needs)
    dx = dz = None
    if dh is not None:
        dh = dh.reshape(x.shape)
        dx = (dh if spec.norm_first else dh * s).to(input.dtype) if wants[0] else None
        dz = dh * x
    if spec.norm_first and wants[1]:
        dz = dy * _norm(x, weight, spec)
    return (
        dx,
        (dz * slope).to(gate.dtype) if wants[1] and dz is not None else None,
        None if dweight is None or weight is None else dweight.reshape(weight.shape),
    )


# ---- the kernels ----


def forward(
    input: Tensor,
    gate: Tensor,
    shape: Shape,
    weight: Tensor | None,
    eps: float | None,
    norm_before_gate: bool,
    groups: int,
    p: float,
) -> Tensor:
    """y, without autograd."""
    y = torch.empty_like(input)
    if isinstance(norm_before_gate, bool):
        last = eps, p, groups, norm_before_gate, FRESH_FLAGS
        if kernels_of(input).rms_norm_gated(input, gate, shape, weight, y, *last):
            return y
    spec = GatedSpec.of(shape, eps, norm_before_gate, groups, p).check(input, gate, weight)
    x, z = (eager.rows_contiguous(t, len(spec.shape)) for t in (input, gate))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not kernels_of(x).rms_norm_gated(x, z, spec.shape, weight, y, eps, p, groups, spec.norm_first, FRESH_FLAGS):
        y = expression(input, gate, weight, spec)
    return eager.laid_out(y, input)


def backward(dy, input, gate, shape, weight, wants, eps, norm_before_gate, groups, p):
    """(dx, dgate, dweight) as far as wanted, without autograd."""
    last = eps, p, groups, bool(norm_before_gate), FLAGS
    dx, dz, dweight = _empty(input, gate, weight, wants)
    if not kernels_of(input).rms_norm_gated_backward(dy, input, gate, shape, weight, dx, dz, dweight, *last):
        spec = GatedSpec.of(shape, eps, norm_before_gate, groups, p).check(input, gate, weight)
        checks.check_alike("dy", dy, input)
        g, x, z = (eager.rows_contiguous(t, len(spec.shape)) for t in (dy, input, gate))
        dx, dz, dweight = _empty(x, z, weight, wants)
        if not kernels_of(x).rms_norm_gated_backward(g, x, z, spec.shape, weight, dx, dz, dweight, *last):
            dx, dz, dweight = backward_expression(dy, input, gate, weight, spec, wants)
    return eager.laid_out(dx, input) if wants[0] else None, eager.laid_out(dz, gate) if wants[1] else None, dweight


def _empty(input, gate, weight, wants):
    """Both gradients that have rows are always made: the one costs nothing once the other is there."""
    dweight = torch.empty_like(weight) if wants[2] and weight is not None else None
    return torch.empty_like(input), torch.empty_like(gate), dweight


class RMSNormGatedFunction(torch.autograd.Function):
    """rms_norm_gated for autograd; ``how`` is (eps, norm_before_gate, groups, p)."""

    @staticmethod
    def forward(ctx, input, gate, shape, weight, *how):
        ctx.save_for_backward(*eager.saveable(input, gate, weight))
        ctx.shape, ctx.how = shape, how
        return forward(input, gate, shape, weight, *how)

    @staticmethod
    def backward(ctx, dy):
        input, gate, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = (needs[0], needs[1], needs[3])
        if is_compiling():  # compiled autograd
            shape = [ctx.shape] if isinstance(ctx.shape, int) else list(ctx.shape)
            found = torch.ops.rmsnorm.rms_norm_gated_backward(dy, input, gate, shape, weight, wants, *ctx.how)
            dx, dz, dweight = (g if w else None for g, w in zip(found, wants, strict=True))
        elif eager.first_order(dy, input, weight) and eager.first_order(dy, gate, None):
            dx, dz, dweight = backward(dy, input, gate, ctx.shape, weight, wants, *ctx.how)
        else:
            spec = GatedSpec.of(ctx.shape, *ctx.how)
            checks.check_memories(dy=dy, input=input, gate=gate, weight=weight)
            dx, dz, dweight = backward_expression(dy, input, gate, weight, spec, wants)
        return dx, dz, None, dweight, None, None, None, None
