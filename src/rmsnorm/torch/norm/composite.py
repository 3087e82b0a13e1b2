"""The plain norms as differentiable torch expressions: every device, transform and order of derivative.

They are slower than the kernels, and serve what those cannot: ``vmap``, forward mode and other transforms, a backward
pass that is itself differentiated, devices without a kernel. Arguments have been checked.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm import spec as specs
from rmsnorm.spec import NormSpec
from rmsnorm.torch import onnx
from rmsnorm.torch.dispatch import fused

# Dynamo cannot trace fractions, and need not: p is a constant of a graph. This is the mark that
# torch.compiler.assume_constant_result sets; calling that here would import the whole compiler (0.7 s).
specs.simplest._dynamo_marked_constant = True  # type: ignore[attr-defined]

LARGEST_EPS = 1e36
"""From here on, eps is no number of float32 any more when the statistic of a small row is scaled up."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_eps(dtype: torch.dtype) -> float:
    """Machine epsilon of the computation dtype, as torch takes it."""
    return torch.finfo(compute_dtype(dtype)).eps


def _exponent(largest: Tensor) -> Tensor:
    """e such that 2^-e brings ``largest`` to between 1/4 and 1/2."""
    usable = torch.isfinite(largest) & (largest > 0)  # NaN, infinity and zero take their course
    return torch.log2(torch.where(usable, largest, torch.ones_like(largest))).floor() + 2


def _most(dtype: torch.dtype) -> float:
    """2^±most and everything between are normal numbers."""
    return 126.0 if dtype == torch.float32 else 1022.0


def _largest(x: Tensor) -> Tensor:
    return x.detach().abs().amax(-1, keepdim=True)


def _first(x: Tensor, k: int) -> Tensor:
    """The first k elements; no slice where those are all (jagged tensors have no derivative of one)."""
    return x if k == x.shape[-1] else x[..., :k]


def _rms(x: Tensor, k: int, eps: float) -> tuple[Tensor, Tensor]:
    """x̂ and d x̂/d x's common factor 1/RMS over the last dimension.

    Each row is multiplied by a power of two that brings the larger of its largest element and √eps to between 1/4 and
    1/2. That is exact, and so invisible in the result; but squares, and the powers of 1/RMS that derivatives are made
    of, stay in range: the third derivative of a row around 1e-13 would need 1e91 otherwise. Not to 1: then 1/RMS is
    above 1, and what lies beyond the first k elements overflows only where its result does.
    """
    most = _most(x.dtype)
    scale = torch.exp2(-_exponent(_largest(_first(x, k)).clamp_min(eps**0.5)).clamp(-most, most))
    x = x * scale
    rstd = torch.rsqrt(_first(x, k).square().mean(-1, keepdim=True) + _scaled_eps(eps, scale))
    return x * rstd, rstd * scale


def _layer(x: Tensor, k: int, eps: float) -> tuple[Tensor, Tensor]:
    """The same of x − μ. A row is scaled twice: so that its sum stays in range, and then by what is left of it.

    The mean is corrected for its own rounding: by the mean of what is left, so that equal elements leave 0; and since
    the sum of the two is rounded again (to 0.03 around 1e6, where the row's deviation may be 1), once more.
    """
    most = _most(x.dtype)
    first = -_exponent(_largest(x)).clamp(-most // 2, most // 2)
    x = x * torch.exp2(first)
    mean = x.mean(-1, keepdim=True)
    x = x - (mean + (x - mean).mean(-1, keepdim=True))
    x = x - x.mean(-1, keepdim=True)
    both = first - _exponent(torch.maximum(_largest(x), eps**0.5 * torch.exp2(first)))
    both = both.clamp(-most, most)
    x, scale = x * torch.exp2(both - first), torch.exp2(both)
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + _scaled_eps(eps, scale))
    return x * rstd, rstd * scale


_STATISTICS = {"rms": _rms, "layer": _layer}


def _scaled_eps(eps: float, scale: Tensor) -> Tensor:
    return (eps**0.5 * scale).square()  # the root first: scale² alone need not be representable


def _gain(spec: NormSpec, weight: Tensor, dtype: torch.dtype) -> Tensor:
    gain = weight if spec.rounds_first else weight.to(dtype)
    return 1 + gain if spec.zero_centered else gain


def _affine(spec: NormSpec, xhat: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x̂ ⊙ g + b: rounded once at the end, or, as Llama's code does, at each step."""
    if spec.rounds_first:
        y = xhat.to(dtype)
        y = y if weight is None else _gain(spec, weight, dtype) * y
        return y if bias is None else y + bias
    y = xhat if weight is None else xhat * _gain(spec, weight, xhat.dtype)
    y = y if bias is None else y + bias.to(xhat.dtype)
    return y.to(dtype)


def _flat(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t if len(shape) == 1 else t.reshape(*t.shape[: -len(shape)], math.prod(shape))


def _normalize(spec: NormSpec, input: Tensor) -> tuple[Tensor, Tensor]:
    eps = default_eps(input.dtype) if spec.eps is None else spec.eps
    x = _flat(input, spec.normalized_shape).to(compute_dtype(input.dtype) if eps < LARGEST_EPS else torch.float64)
    if x.shape[-1] == 0:  # nothing to take a statistic of
        return x, x.new_ones((*x.shape[:-1], 1))
    return _STATISTICS[spec.kind](x, spec.k, eps)


def _normed(spec: NormSpec, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if onnx.exporting() and spec.n:
        return _exported(spec, input, weight, bias)
    xhat = _fused(spec, input) if fused(input) else _normalize(spec, input)[0]
    return _affine(spec, xhat.reshape(input.shape), weight, bias, input.dtype)


def _fused(spec: NormSpec, input: Tensor) -> Tensor:
    """x̂ of :func:`_normalize` for a compiler to fuse."""
    x = _flat(input, spec.normalized_shape)
    eps = default_eps(input.dtype) if spec.eps is None else spec.eps
    if spec.kind == "rms" and spec.k == spec.n and in_float32(spec.n, eps):
        exporting = torch.compiler.is_exporting()  # an exported graph holds torch's operators alone
        return (_InTwoRanges.apply if exporting else torch.ops.rmsnorm.xhat_in_two_ranges)(x.float(), eps)
    return _wide(spec, x, eps)


LONGEST = 4096
"""Elements of a row that are summed in float32. A vector of 8 or 16 sums adds at most 512 times, and its error is as
that of the kernels, which sum as many in float32."""
SMALLEST_EPS = 1e-25
"""Squares that are no normal numbers of float32 (below 1e-38) do not count beside it."""


def in_float32(n: int, eps: float | None) -> bool:
    """Whether :func:`_fused` needs no float64 for rows of n elements, which all have a part in the statistic."""
    return 0 < n <= LONGEST and (eps is None or SMALLEST_EPS <= eps <= 1)


class _InTwoRanges(torch.autograd.Function):
    """x̂ of float32 rows with the sum of squares in float32, and a second one of the rows that are too large for it.

    float64 would hold both, for half the lanes and two conversions a vector. A backward pass of its own: that of the
    expression would have the cube of 1/RMS, which leaves the range, and NaN of the sum that is not taken.
    """

    @staticmethod
    def forward(ctx, x, eps):
        ctx.save_for_backward(x)
        ctx.eps = eps
        return x * _rstd_times_16(x, eps) * (1 / 16)

    @staticmethod
    def backward(ctx, u):
        """dx = (u − x̂·⟨u, x̂⟩/n) / RMS. Compilers find x̂ and 1/RMS in the forward pass; a second derivative needs x."""
        (x,) = ctx.saved_tensors
        xhat, rstd = _InTwoRanges.apply(x, ctx.eps), _rstd_times_16(x, ctx.eps)
        along = (u * xhat).sum(-1, keepdim=True) * (1 / x.shape[-1])
        return (u - xhat * along) * rstd * (1 / 16), None


def _rstd_times_16(x: Tensor, eps: float) -> Tensor:
    """16/RMS. It is divided by 16 when it has met x, since 1/RMS of the largest rows is below the normal numbers."""
    share = 1 / x.shape[-1]
    usual = x.square().sum(-1, keepdim=True)
    large = (x * 2.0**-80).square().sum(-1, keepdim=True)
    fits = usual < 1e38
    mean = torch.where(fits, usual * share + eps, large * share)  # eps is nothing beside a large one
    return torch.rsqrt(mean) * torch.where(fits, 16.0, 16 * 2.0**-80)


# Dynamo would trace the Function itself, and its graphs of such lose second derivatives without an error (torch 2.13).
# An operator without a kernel is one call to it, and is expanded by what compiles its graph.
_library = torch.library.Library("rmsnorm", "FRAGMENT")
_library.define("xhat_in_two_ranges(Tensor x, float eps) -> Tensor")
_library.impl("xhat_in_two_ranges", _InTwoRanges.apply, "CompositeImplicitAutograd")


def _wide(spec: NormSpec, x: Tensor, eps: float) -> Tensor:
    """The same in float64: its range holds the squares of every shorter dtype, and its precision the mean, so no row is
    rescaled and nothing is corrected.

    Inductor computes a row's numbers again for each vector of it: 1/k is a factor, since a division there takes a tenth
    of the small call. The mean of equal elements must be exact.
    """
    x = x.double()
    x = x - x.mean(-1, keepdim=True) if spec.kind == "layer" else x
    rstd = torch.rsqrt(_first(x, spec.k).square().sum(-1, keepdim=True) * (1 / max(1, spec.k)) + eps)
    return (x * rstd).float()


def _exported(spec: NormSpec, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The same for ONNX, with the gain inside of its operator where the gain's rounding and shape allow."""
    norm = onnx.rms_norm if spec.kind == "rms" else onnx.layer_norm
    eps = default_eps(input.dtype) if spec.eps is None else spec.eps
    x, gain = input.to(compute_dtype(input.dtype)), None
    if weight is not None and not spec.rounds_first and weight.dim() == len(spec.normalized_shape):
        gain, weight = _gain(spec, weight, x.dtype), None
    return _affine(spec, norm(x, gain, eps, spec), weight, bias, input.dtype)


def norm(
    spec: NormSpec, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(y, sum): the norm of the input, or of the sum of input and residual, rounded to the residual's dtype."""
    if residual is None:
        return _normed(spec, input, weight, bias), None
    total = (input + residual).to(residual.dtype)
    y = _normed(spec, total, weight, bias)
    return (y.to(input.dtype) if residual.dtype != input.dtype else y), total


def norm_backward(
    spec: NormSpec,
    dy: Tensor,
    plus: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx + plus, dweight, dbias) of a norm without a residual, as a differentiable expression.

    dx = (g ⊙ dy − m ⊙ x̂·⟨g ⊙ dy, x̂⟩/k) / RMS, m the mask of the first k (paper §4.2), for a LayerNorm without the mean
    of g ⊙ dy; dweight = Σ dy ⊙ x̂; dbias = Σ dy.
    """
    xhat, factor = _normalize(spec, input)
    dtype = xhat.dtype
    g = None if weight is None else _gain(spec, weight, dtype).to(dtype)
    g = None if g is None else _flat(g, spec.normalized_shape)
    dy = _flat(dy, spec.normalized_shape).to(dtype)
    dx = dweight = dbias = None
    if wants[0]:
        u = dy if g is None else dy * g
        along = xhat * ((u * xhat).sum(-1, keepdim=True) / max(1, spec.k))
        if spec.k < spec.n:  # only the first k elements feed the statistic
            along = torch.nn.functional.pad(along[..., : spec.k], (0, spec.n - spec.k))
        u = u - along - u.mean(-1, keepdim=True) if spec.kind == "layer" and spec.n else u - along
        dx = (u * factor).to(input.dtype).reshape(input.shape)
        dx = dx if plus is None else dx + plus
    if wants[1] and weight is not None:
        seen = xhat.to(input.dtype).to(dtype) if spec.rounds_first else xhat
        dweight = _over_rows(spec, dy * seen, weight).to(weight.dtype)
    if wants[2] and bias is not None:
        dbias = _over_rows(spec, dy, bias).to(bias.dtype)
    return dx, dweight, dbias


def _over_rows(spec: NormSpec, t: Tensor, parameter: Tensor) -> Tensor:
    """The sum over the rows, or over those of each head, in the parameter's shape."""
    outer = tuple(range(t.dim() - 1 - (parameter.dim() - len(spec.normalized_shape))))
    return (t.sum(outer) if outer else t).reshape(parameter.shape)  # sum(()) would be the sum over everything
