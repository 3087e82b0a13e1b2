"""Which convention reproduces a norm with a gate, by its numbers."""

import inspect
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from rmsnorm.torch.swap.conventions import PAIRS, Names
from rmsnorm.torch.swap.gated import ACTIVATIONS, GatedConvention
from rmsnorm.torch.swap.samples import (
    TOLERANCE,
    Sample,
    close_with_gradients,
    make_parameters,
    make_rows,
    named_eps,
    seeded,
    verified_pairs,
)
from rmsnorm.torch.swap.shadow import Left, given, run
from rmsnorm.torch.swap.shapes import verified


def takes_a_gate(module: nn.Module) -> bool:
    """Whether forward can be called with a second argument."""
    try:
        inspect.signature(type(module).forward).bind(module, None, None)
    except (TypeError, ValueError):
        return False
    return True


def judge_gated(module: nn.Module) -> GatedConvention:
    """The convention that reproduces ``module``; Left says why there is none."""
    parameters = given(module)
    if len(parameters) != 1 or next(iter(parameters.values())).dim() != 1:
        raise Left("its forward takes more than an input, and it has not one gain")
    ((name, p),) = parameters.items()
    n = p.shape[0]
    for activation in ACTIVATIONS:
        try:
            eps, eps_name = _eps(module, name, n, activation)
        except Left:
            continue
        for groups in _groups(module, n):
            for norm_before_gate in (True, False):
                convention = GatedConvention(Names(name, None), eps, eps_name, n, groups, norm_before_gate, activation)
                if _reproduces(module, convention):
                    return _with_pairs(module, _with_inputs(module, convention))
    raise Left("no convention with a gate reproduces its results")


def _eps(module: nn.Module, name: str, n: int, activation: str) -> tuple[float, str | None]:
    """As without a gate, whose value is known here."""
    x, gate = torch.zeros(1, 2, n), torch.full((1, 2, n), 40.0)
    x[..., ::2], x[..., 1::2] = 1e-15, -1e-15
    factor = ACTIVATIONS[activation](gate)[..., 0].double()

    def measure(module: nn.Module) -> float:
        y = run(module, {name: torch.ones(n)}, x, gate)
        return ((factor * x[..., 0].double() / y[..., 0].double()) ** 2).mean().item()

    return named_eps(module, measure, smallest=(1e-15 * factor.max().item()) ** 2)


def _groups(module: nn.Module, n: int) -> Iterator[int]:
    """One; or an integer of the module's, as the number of groups or of a group's elements."""
    numbers = {v for v in vars(module).values() if isinstance(v, int) and not isinstance(v, bool) and 1 < v < n}
    yield from sorted({1} | {g for v in numbers if n % v == 0 for g in (v, n // v)})


def _arguments(convention: GatedConvention, seed: int, wide: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Input, gate and gain."""
    generator = seeded(seed)
    n = convention.n
    x = make_rows((n,), generator) if wide else torch.randn(max(32, -(-4096 // n)), n, generator=generator)
    if wide and convention.eps:
        x = torch.cat([x, convention.eps**0.5 * torch.randn(8, n, generator=generator)])
    gate = 3 * torch.randn(x.shape, generator=generator)
    weight = make_parameters(convention.names, (n,), generator)[convention.names.weight or ""]
    return x[None], gate[None], weight


def _reproduces(module: nn.Module, convention: GatedConvention) -> bool:
    """In float32: results in both modes, and gradients once."""
    name = convention.names.weight or ""
    if not _close(module, convention, *_arguments(convention, 0)):
        return False
    x, gate, weight = (t.requires_grad_() for t in _arguments(convention, 1, wide=False))
    theirs, ours = run(module, {name: weight}, x, gate), convention.compute(x, gate, weight, "once", convention.eps)
    dy = torch.randn(x.shape, generator=seeded(2))
    return close_with_gradients(theirs, ours, [x, gate, weight], dy)


def _close(module: nn.Module, convention: GatedConvention, x: Tensor, gate: Tensor, weight: Tensor) -> bool:
    ours = convention.compute(x, gate, weight, "once", convention.eps).double()
    for training in (False, True):
        theirs = run(module, {convention.names.weight or "": weight}, x, gate, training=training)
        if theirs.dtype != torch.float32 or not ((theirs - ours).abs() <= TOLERANCE * ours.abs() + 1e-30).all():
            return False
    return True


def _with_inputs(module: nn.Module, convention: GatedConvention) -> GatedConvention:
    """The convention with the inputs for which it reproduces the module."""

    gate, weight = (torch.randn(convention.n, generator=seeded(seed)) for seed in (4, 5))

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.empty_like(x).copy_(gate)
        ours = convention.compute(x, gates, weight, "once", convention.eps)
        return ours, run(module, {convention.names.weight or "": weight}, x, gates)

    return replace(convention, inputs=verified(both, (convention.n,)))


def _with_pairs(module: nn.Module, convention: GatedConvention) -> GatedConvention:
    """The convention with the pairs of dtypes for which it reproduces the module."""

    def sample(x_dtype: torch.dtype, w_dtype: torch.dtype) -> Sample:
        x, gate, weight = _arguments(convention, 3, wide=False)
        x, gate, weight = x.to(x_dtype), gate.to(x_dtype), weight.to(w_dtype)
        return run(module, {convention.names.weight or "": weight}, x, gate), (x, gate, weight)

    return replace(convention, pairs=verified_pairs(convention, PAIRS, sample))
