"""Cases of rms_norm_gated, and how far its results may be from the oracle.

The tolerances are those of tolerances.py, u half an ulp of the computation's dtype, and what the gate adds: e^-|z| is
right to 6 u, so that σ(z) is to 9 u and x silu(z) to 11 u. Where that is normalised, its elements and its statistic add
11 u each: 11 ulp to y; x̂, x̂ and 1/r of the gradient's terms 22 u each. silu'(z) is right to 12 u of
σ (1 + |z| (1 − σ)), and a chain of products adds one u each. torch's own takes 1 − σ as a difference: 12 u of
σ (1 + |z|).
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from conformance import DTYPES, PARAMETER, computed_in, covering, laid_out, short
from rmsnorm import reference
from rmsnorm.spec import partial_count
from rmsnorm.torch import rms_norm_gated
from tolerances import around, check, half_ulp, rounded, smallest, ulp, wide


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    rows: int
    group: int
    groups: int
    p: float
    weight: torch.dtype | None
    eps: float | None
    norm_before_gate: bool
    layout: str
    gate_layout: str
    scale: float

    def __str__(self) -> str:
        values = (short(v) if isinstance(v, torch.dtype | None) else str(v) for v in vars(self).values())
        return "-".join(values)

    @property
    def n(self) -> int:
        return self.group * self.groups

    @property
    def how(self) -> dict:
        return {"norm_before_gate": self.norm_before_gate, "groups": self.groups, "p": self.p}

    @property
    def eps_value(self) -> float:
        return torch.finfo(computed_in(self.dtype)).eps if self.eps is None else self.eps


LAYOUTS = ("contiguous", "sliced", "transposed", "misaligned", "padded", "permuted", "expanded")
CASES = [
    Case(**c | {"rows": min(c["rows"], 500_000 // (c["group"] * c["groups"]))})  # the oracle is slow in long double
    for c in covering(
        5,
        dtype=DTYPES,
        rows=(0, 1, 2, 7, 300),
        group=(1, 2, 15, 16, 17, 64, 129, 1000, 5120),
        groups=(1, 2, 3, 8),
        p=(1.0, 0.5, 0.0625),
        weight=PARAMETER,
        eps=(None, 1e-5, 0.1),
        norm_before_gate=(False, True),
        layout=LAYOUTS,
        gate_layout=LAYOUTS,
        scale=(1.0, 8.0),
    )
]


def make_inputs(case: Case, seed: int = 0) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = laid_out(draw(case.rows, case.n).to(case.dtype), case.layout)
    z = laid_out((case.scale * draw(case.rows, case.n)).to(case.dtype), case.gate_layout).reshape(x.shape)
    dy = laid_out(draw(case.rows, case.n).to(case.dtype), case.gate_layout).reshape(x.shape)
    weight = None if case.weight is None else (draw(case.n) + 0.5).to(case.weight)
    return SimpleNamespace(x=x, z=z, dy=dy, weight=weight)


def expected(case: Case, inputs: SimpleNamespace, composite: bool) -> dict:
    compute = computed_in(case.dtype)
    a, z, dy = (wide(t, compute).reshape(case.rows, case.n) for t in (inputs.x, inputs.z, inputs.dy))
    g = None if inputs.weight is None else wide(inputs.weight, compute)
    k = partial_count(case.group, case.p)
    options = {"k": k, "eps": case.eps_value, "norm_before_gate": case.norm_before_gate, "groups": case.groups}
    u, groups = half_ulp(compute), (case.rows, case.groups, case.group)
    y = reference.rms_norm_gated(a, z, g, **options)
    da, dz, dg = reference.rms_norm_gated_vjp(dy, a, z, g, **options)

    sigma = 1 / (1 + np.exp(-z))
    s, slope = z * sigma, sigma * (1 + z * (1 - sigma))
    steep = sigma * (1 + np.abs(z) * (1 if composite else 1 - sigma))
    gain = np.ones(case.n, a.dtype) if g is None else np.abs(g)
    h = (a if case.norm_before_gate else a * s).reshape(groups)
    h_hat = reference.rms_norm(h, k=k, eps=case.eps_value)
    r = np.sqrt(np.mean(h[..., :k] ** 2, -1, keepdims=True) + case.eps_value)

    def terms(v):
        """The two terms of the norm's gradient, in absolute value."""
        v = np.abs(v).reshape(groups)
        found = (v + np.abs(h_hat) * np.sum(np.abs(h_hat) * v, -1, keepdims=True) / k) / r
        return found.reshape(a.shape)

    h_hat_flat = np.abs(h_hat).reshape(a.shape)
    summed = np.sqrt(case.group / 16)
    if case.norm_before_gate:
        slack_y = (4 + 6) * ulp(y, compute)
        slack_x = (8 + 12 + summed) * u * terms(dy * s * gain)
        slack_z = (8 + 12 + 3) * u * np.abs(dy) * h_hat_flat * gain * steep
        slack_g = (16 + 12) * u * np.abs(dy * s * h_hat_flat).sum(0)
    else:
        slack_y = (4 + 11) * ulp(y, compute)
        slack = (8 + 3 * 22 + summed) * u * terms(dy * gain)
        slack_x = slack * np.abs(s) + 11 * u * np.abs(da)
        dh = terms(dy * gain)
        slack_z = np.abs(a) * (slack * np.abs(slope) + (12 + 3) * u * dh * steep)
        slack_g = (16 + 22) * u * np.abs(dy * h_hat_flat).sum(0)
    found = {"y": around(y, slack_y + np.sqrt(case.n) * smallest(compute), case.dtype)}
    found |= {"dx": around(da, slack_x, case.dtype), "dz": around(dz, slack_z, case.dtype)}
    if g is not None:
        # The composite goes from float64 to 16 bits by way of float32, as torch does; the kernels round once.
        between = torch.promote_types(case.weight, torch.float32) if composite else case.weight
        found["dweight"] = tuple(rounded(end, case.weight) for end in around(dg, slack_g, between))
    return found


def through(function: Callable, case: Case, inputs: SimpleNamespace) -> dict:
    leaves = [t.detach().requires_grad_() for t in (inputs.x, inputs.z, inputs.weight) if t is not None]
    y = function(leaves[0], leaves[1], (case.n,), *leaves[2:3] or [None], case.eps, **case.how)
    gradients = torch.autograd.grad(y, leaves, inputs.dy)
    return dict(zip(("y", "dx", "dz", "dweight"), (y.detach(), *gradients), strict=False))


def conforms(case: Case, results: dict, inputs: SimpleNamespace, composite: bool = False) -> None:
    with np.errstate(all="ignore"):
        intervals = expected(case, inputs, composite)
    assert set(results) == set(intervals)
    for name, interval in intervals.items():
        dtype = case.weight if name == "dweight" else case.dtype
        assert results[name].dtype == dtype
        assert results[name].shape == (inputs.weight if name == "dweight" else inputs.x).shape
        check(results[name], interval, f"{name} of {case}")


def kernels_conform(case: Case) -> None:
    """The public function on one case, forward and backward; its inputs stay as they were."""
    inputs = make_inputs(case)
    before = [t.clone() for t in (inputs.x, inputs.z, inputs.dy)]
    conforms(case, through(rms_norm_gated, case, inputs), inputs)
    for t, old in zip((inputs.x, inputs.z, inputs.dy), before, strict=True):
        assert torch.equal(t, old)


def silu_is_right(z: torch.Tensor) -> None:
    """silu(z) of a row or of rows, and of what is not finite: a row of ones is its own norm at eps = 0, exactly."""
    x = torch.ones_like(z)
    y = rms_norm_gated(x, z, z.shape[-1:], None, 0.0, norm_before_gate=True)
    exact = reference.rms_norm_gated(wide(x), wide(z), eps=0.0, norm_before_gate=True)
    compute = computed_in(z.dtype)
    slack = 6 * ulp(exact, compute) + 128 * smallest(compute)
    check(y, around(exact, slack, z.dtype), "silu")
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 0.0], dtype=z.dtype)
    found = rms_norm_gated(torch.ones_like(special), special, (5,), None, 0.0, norm_before_gate=True)
    torch.testing.assert_close(found, torch.nn.functional.silu(special), equal_nan=True, rtol=0, atol=0)
