"""Which convention reproduces a module: it is run on prepared rows, and its numbers decide, never its name."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from rmsnorm.spec import partial_count
from rmsnorm.torch.swap.conventions import PAIRS, Convention, Names
from rmsnorm.torch.swap.samples import (
    TOLERANCE,
    Sample,
    close_with_gradients,
    gain_of_one,
    make_parameters,
    make_rows,
    named_eps,
    seeded,
    verified_pairs,
)
from rmsnorm.torch.swap.shadow import Left, elements_copied, given, required_arguments, run, shadow
from rmsnorm.torch.swap.shapes import verified

FREE_LENGTHS = 64, 48, 16384
"""Of the rows for a module whose own shape does not say one. A row of n has elements up to √n: a clamp shows there."""


def judge(module: nn.Module) -> Convention:
    """The convention that reproduces ``module``; Left says why there is none."""
    shape, wide = _shapes(module)
    tried, reasons = 0, []
    for names in _assignments(module):
        for gain in ("weight", "1 + weight") if names.weight else ("weight",):
            tried += 1
            try:
                eps, eps_name = _eps(module, names, gain, wide)
            except Left as reason:
                reasons.append(str(reason))
                continue
            partial = _partial(module, names, gain, eps, wide) if len(wide) == 1 else 1.0
            for norm in ("rms", "layer"):
                convention = Convention(norm, names, eps, eps_name, gain, partial, shape)
                if norm == "layer":  # has neither p nor a gain of its own around zero
                    convention = replace(convention, p=1.0, gain="weight" if gain == "weight" else "(1 + weight)")
                if _reproduces(module, convention, wide):
                    return _with_pairs(module, _with_inputs(module, convention, wide), wide)
    raise Left(reasons[0] if len(reasons) == tried else "no convention reproduces its results")


# ---- rows and parameters ----


def _shapes(module: nn.Module) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The normalised shape, None if any, and the last dimensions of an input, with the heads."""
    own = getattr(module, "normalized_shape", None)
    if isinstance(own, tuple | list) and own and all(isinstance(n, int) for n in own) and math.prod(own) > 1:
        return tuple(own), tuple(own)
    parameters = list(given(module).values())
    if not parameters:
        return None, FREE_LENGTHS[:1]
    return tuple(parameters[0].shape[-1:]), tuple(parameters[0].shape)


def _assignments(module: nn.Module) -> Iterator[Names]:
    """Which parameter may be the gain and which the bias; the usual one first."""
    names = sorted(given(module), key=lambda name: "bias" in name)
    first, second = [*names, None, None][:2]
    yield Names(first, second)
    if second is not None:
        yield Names(second, first)


# ---- eps and p ----


def _eps(module: nn.Module, names: Names, gain: str, wide: tuple[int, ...]) -> tuple[float, str | None]:
    """From rows so small that their result is x / √eps, and the attribute that it is read from."""
    x = torch.zeros(2, *wide)
    x[..., 0], x[..., 1] = 1e-15, -1e-15

    def measure(module: nn.Module) -> float:
        y = run(module, gain_of_one(names, gain, wide), x)
        return ((x[..., 0].double() / y[..., 0].double()) ** 2).mean().item()

    return named_eps(module, measure, smallest=2e-30 / wide[-1])


def _partial(module: nn.Module, names: Names, gain: str, eps: float, wide: tuple[int, ...]) -> float:
    """The share of elements whose RMS is taken: a large one beyond them leaves the others as they are."""
    n = wide[0]
    parameters = gain_of_one(names, gain, wide)
    low, high = 1, n  # the first k elements are taken, low ≤ k ≤ high
    while low < high:
        middle = (low + high) // 2  # is the element of that index, the (middle + 1)-th, taken?
        x = torch.ones(1, n)
        x[0, middle] = 1e4
        if run(module, parameters, x)[0, 0].abs() < 0.5:
            low = middle + 1
        else:
            high = middle
    return low / n


# ---- what is compared ----


def _reproduces(module: nn.Module, convention: Convention, wide: tuple[int, ...]) -> bool:
    """In float32: results in both modes, and gradients once."""
    for lengths in [wide] if convention.shape else [(n,) for n in FREE_LENGTHS]:
        generator = seeded()
        x = make_rows(lengths, generator)
        parameters = make_parameters(convention.names, lengths, generator, outlier=1e6)
        if convention.eps:  # eps is added to the mean square, which is of its size here
            x = torch.cat([x, convention.eps**0.5 * torch.randn(8, *lengths, generator=generator)])
        if not _close(module, convention, x, parameters) or not _same_edges(module, convention, lengths):
            return False
    x, dy = (torch.randn(8, *wide, generator=generator) for _ in range(2))
    return _gradients_close(module, convention, x, make_parameters(convention.names, wide, generator, outlier=1), dy)


def _close(module: nn.Module, convention: Convention, x: Tensor, parameters: dict[str, Tensor]) -> bool:
    weight, bias = (parameters.get(name or "") for name in convention.names)
    ours = convention.compute(x, weight, bias, "once", convention.eps).double()
    dims = tuple(range(x.dim() - len(convention.shape or (1,)), x.dim()))
    x64 = x.double()
    mean = x64.mean(dims, keepdim=True)
    if convention.norm == "layer":
        rstd = torch.rsqrt((x64 - mean).square().mean(dims, keepdim=True) + convention.eps)
        size = x64.abs().amax(dims, keepdim=True) * rstd  # the mean is as uncertain as the largest element
    else:
        first = x64 if convention.p == 1.0 else x64[..., : partial_count(x.shape[-1], convention.p)]
        size = x64.abs() * torch.rsqrt(first.square().mean(dims, keepdim=True) + convention.eps)
    if weight is not None:
        size = size * (weight.double().abs() + (convention.gain != "weight"))
    if bias is not None:
        size = size + bias.double().abs()
    for training in (False, True):
        theirs = run(module, parameters, x, training=training)
        if theirs.dtype != torch.float32 or not ((theirs.double() - ours).abs() <= TOLERANCE * size).all():
            return False
    return True


def _same_edges(module: nn.Module, convention: Convention, wide: tuple[int, ...]) -> bool:
    """Rows with a NaN or an infinity, and one of zeros, come out as ours do."""
    generator = seeded(3)
    x, parameters = torch.randn(4, *wide, generator=generator), make_parameters(convention.names, wide, generator, 1)
    x[0, ..., 0], x[1, ..., 0], x[2] = math.nan, math.inf, 0
    weight, bias = (parameters.get(name or "") for name in convention.names)
    ours = convention.compute(x, weight, bias, "once", convention.eps)
    return torch.allclose(run(module, parameters, x), ours, rtol=1e-4, atol=1e-4, equal_nan=True)


def _with_inputs(module: nn.Module, convention: Convention, wide: tuple[int, ...]) -> Convention:
    """The convention with the inputs for which it reproduces the module."""

    parameters = make_parameters(convention.names, wide, seeded(2))
    weight, bias = (parameters.get(name or "") for name in convention.names)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return convention.compute(x, weight, bias, "once", convention.eps), run(module, parameters, x)

    return replace(convention, inputs=verified(both, wide))


def _gradients_close(
    module: nn.Module, convention: Convention, x: Tensor, parameters: dict[str, Tensor], dy: Tensor
) -> bool:
    leaves = {name: t.clone().requires_grad_() for name, t in parameters.items()}
    wanted = [x.requires_grad_(), *leaves.values()]
    weight, bias = (leaves.get(name or "") for name in convention.names)
    theirs = run(module, leaves, x, training=True)
    return close_with_gradients(theirs, convention.compute(x, weight, bias, "once", convention.eps), wanted, dy)


def _with_pairs(module: nn.Module, convention: Convention, wide: tuple[int, ...]) -> Convention:
    """The convention with the pairs of dtypes for which it reproduces the module, by the gain that has most."""

    def sample(x_dtype: torch.dtype, w_dtype: torch.dtype) -> Sample:
        generator = seeded(1)
        count = max(32, -(-4096 // math.prod(wide)))
        x = torch.randn(count, *wide, generator=generator)
        if convention.eps:  # a module may have another eps for another dtype
            x = torch.cat([x, convention.eps**0.5 * torch.randn(count, *wide, generator=generator)])
        x[0], x[0, ..., 0] = x[0].sign(), 40 * math.prod(wide) ** 0.5  # and a clamp
        x = x.to(x_dtype)
        parameters = {n: t.to(w_dtype) for n, t in make_parameters(convention.names, wide, generator).items()}
        weight, bias = (parameters.get(name or "") for name in convention.names)
        return run(module, parameters, x), (x, weight, bias)

    gains = ("1 + weight", "(1 + weight)") if convention.gain == "1 + weight" else (convention.gain,)
    pairs = PAIRS if convention.names.weight else [pair for pair in PAIRS if pair[0] == pair[1]]
    candidates = (replace(convention, gain=gain) for gain in gains)
    return max(
        (replace(each, pairs=verified_pairs(each, pairs, sample)) for each in candidates), key=lambda c: len(c.pairs)
    )


# ---- what is a norm, whether or not a convention reproduces it ----

MOST = 2**17
"""Elements of a parameter, or of all that would be copied: a module with more is no norm, and would take memory."""


def looks_like_a_norm(module: nn.Module) -> bool:
    """Whether larger rows give the same results, of the input's shape, and an element changes those of others.

    Tried are inputs that end in the parameters' shape, and channels in front; other inputs grow with the first one, as
    a residual does, or not, as a gate.
    """
    parameters = given(module)
    if elements_copied(module) > MOST:
        return False
    _, wide = _shapes(module)
    if any(p.dim() == 0 or nn.parameter.is_lazy(p) or p.numel() > MOST for p in parameters.values()):
        return False
    for shape in ((4, *wide), (2, wide[-1], 3, 5)):
        for together in (False, True):
            with suppress(Exception):  # not with such inputs
                if _ignores_size(module, parameters, shape, together):
                    return True
    return False


def _ignores_size(module: nn.Module, parameters: dict[str, Tensor], shape: tuple[int, ...], together: bool) -> bool:
    generator = seeded()
    values = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    x, *others = (torch.randn(shape, generator=generator) for _ in range(required_arguments(module)))
    outlier = x.clone()
    outlier.view(-1)[0] = 30 * x[0].numel() ** 0.5

    def result(scale: float, x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)  # torch.manual_seed takes 3 ms
        rest = (t * (scale if together else 1.0) for t in others)
        y = shadow(module, values, training=False).forward(scale * x, *rest)
        y = y[0] if isinstance(y, tuple | list) else y
        return y if isinstance(y, Tensor) and y.shape == x.shape else torch.zeros(shape)

    y, z, moved = result(4.0, x), result(400.0, x), result(4.0, outlier)
    same, elsewhere = torch.isclose(y, z, rtol=1e-2, atol=1e-2).all(), (y - moved).flatten()[1:]
    return bool(same and y.std() > 0 and elsewhere.abs().max() > 0.1 * y.std())
