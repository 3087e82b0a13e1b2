"""The same mathematics as differentiable torch expressions: every device, transform and order of derivative.

Slower than the kernels, and what they are replaced by where they cannot serve: under ``vmap``, forward mode and
other transforms, in a backward pass that is itself differentiated, on devices without a kernel.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmsnorm import spec as specs
from rmsnorm.spec import NormSpec, check_spec
from rmsnorm.torch import checks, onnx

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


Statistic = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def _scaled_eps(eps: float, scale: Tensor) -> Tensor:
    return (eps**0.5 * scale).square()  # the root first: scale² alone need not be representable


def _gain(weight: Tensor, zero_centered: bool, casting: str, dtype: torch.dtype) -> Tensor:
    gain = weight if casting == "llama" else weight.to(dtype)
    return 1 + gain if zero_centered else gain


def _affine(
    xhat: Tensor, weight: Tensor | None, bias: Tensor | None, zero_centered: bool, casting: str, dtype: torch.dtype
) -> Tensor:
    """ŷ = x̂ ⊙ g + b: rounded once at the end, or, as Llama's code does, at each step."""
    if casting == "llama":
        y = xhat.to(dtype)
        y = y if weight is None else _gain(weight, zero_centered, casting, dtype) * y
        return y if bias is None else y + bias
    y = xhat if weight is None else xhat * _gain(weight, zero_centered, casting, xhat.dtype)
    y = y if bias is None else y + bias.to(xhat.dtype)
    return y.to(dtype)


def _flat(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t if len(shape) == 1 else t.reshape(*t.shape[: -len(shape)], math.prod(shape))


def _normalize(statistic: Statistic, input: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    eps = default_eps(input.dtype) if spec.eps is None else spec.eps
    x = _flat(input, spec.normalized_shape).to(compute_dtype(input.dtype) if eps < LARGEST_EPS else torch.float64)
    if x.shape[-1] == 0:  # nothing to take a statistic of
        return x, x.new_ones((*x.shape[:-1], 1))
    return statistic(x, spec.k, eps)


def _forward(statistic: Statistic, input: Tensor, weight: Tensor | None, bias: Tensor | None, spec: NormSpec) -> Tensor:
    if onnx.exporting() and spec.n:
        return _exported(statistic, input, weight, bias, spec)
    xhat = _normalize(statistic, input, spec)[0].reshape(input.shape)
    return _affine(xhat, weight, bias, spec.zero_centered, spec.casting, input.dtype)


def _exported(
    statistic: Statistic, input: Tensor, weight: Tensor | None, bias: Tensor | None, spec: NormSpec
) -> Tensor:
    """The same for ONNX, with the gain inside of its operator where the gain's rounding and shape allow."""
    norm = onnx.rms_norm if statistic is _rms else onnx.layer_norm
    eps = default_eps(input.dtype) if spec.eps is None else spec.eps
    x, gain = input.to(compute_dtype(input.dtype)), None
    if weight is not None and spec.casting == "once" and weight.dim() == len(spec.normalized_shape):
        gain, weight = _gain(weight, spec.zero_centered, spec.casting, x.dtype), None
    y = norm(x, gain, eps, spec)
    return _affine(y, weight, bias, spec.zero_centered, spec.casting, input.dtype)


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
) -> Tensor:
    """:func:`rmsnorm.torch.rms_norm` in torch's own operations, arguments checked."""
    spec = check_spec(normalized_shape, eps, p, zero_centered, casting)
    checks.check_tensors(spec.normalized_shape, input, weight, bias)
    return _forward(_rms, input, weight, bias, spec)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = 1e-5,
) -> Tensor:
    """:func:`rmsnorm.torch.layer_norm` in torch's own operations, arguments checked."""
    spec = check_spec(normalized_shape, eps)
    checks.check_tensors(spec.normalized_shape, input, weight, bias)
    return _forward(_layer, input, weight, bias, spec)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    p: float = 1.0,
    zero_centered: bool = False,
    casting: str = "once",
) -> tuple[Tensor, Tensor]:
    """:func:`rmsnorm.torch.add_rms_norm` in torch's own operations, arguments checked."""
    spec = check_spec(normalized_shape, eps, p, zero_centered, casting)
    checks.check_tensors(spec.normalized_shape, input, weight, bias)
    checks.check_alike("residual", residual, input)
    new_residual = (input + residual).to(residual.dtype)
    normed = _forward(_rms, new_residual, weight, bias, spec)
    return (normed.to(input.dtype) if residual.dtype != input.dtype else normed), new_residual


def _backward(
    statistic: Statistic,
    centred: bool,
    dy: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
    wants: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    xhat, factor = _normalize(statistic, input, spec)
    dtype = xhat.dtype
    g = None if weight is None else _gain(weight, spec.zero_centered, spec.casting, dtype).to(dtype)
    g = None if g is None else _flat(g, spec.normalized_shape)
    dy = _flat(dy, spec.normalized_shape).to(dtype)
    dx = dweight = dbias = None
    if wants[0]:
        u = dy if g is None else dy * g
        along = xhat * ((u * xhat).sum(-1, keepdim=True) / max(1, spec.k))
        if spec.k < spec.n:  # only the first k elements feed the statistic
            along = torch.nn.functional.pad(along[..., : spec.k], (0, spec.n - spec.k))
        u = u - along - u.mean(-1, keepdim=True) if centred and spec.n else u - along
        dx = (u * factor).to(input.dtype).reshape(input.shape)
    if wants[1] and weight is not None:
        seen = xhat.to(input.dtype).to(dtype) if spec.casting == "llama" else xhat
        dweight = _over_rows(dy * seen, weight, spec).to(weight.dtype)
    if wants[2] and bias is not None:
        dbias = _over_rows(dy, bias, spec).to(bias.dtype)
    return dx, dweight, dbias


def _over_rows(t: Tensor, parameter: Tensor, spec: NormSpec) -> Tensor:
    """The sum over the rows, or over those of each head, in the parameter's shape."""
    outer = tuple(range(t.dim() - 1 - (parameter.dim() - len(spec.normalized_shape))))
    return (t.sum(outer) if outer else t).reshape(parameter.shape)  # sum(()) would be the sum over everything


def rms_norm_backward(
    dy: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`rms_norm` as a differentiable expression.

    dx = (g ⊙ dy − m ⊙ x̂·⟨g ⊙ dy, x̂⟩/k) / RMS, m the mask of the first k (paper §4.2); dweight = Σ dy ⊙ x̂; dbias = Σ dy.
    """
    return _backward(_rms, False, dy, input, weight, bias, spec, wants)


def layer_norm_backward(
    dy: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
    wants: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`layer_norm` as a differentiable expression."""
    return _backward(_layer, True, dy, input, weight, bias, spec, wants)
