"""Cases of rms_norm_rotary, and how far its results may be from the oracle.

The tolerances are those of tolerances.py, u half an ulp of the computation's dtype, and what the rotation adds. The
norm h is right to 8 u of |x̂ g| (4 ulp). Each of the two terms |h cos| and |h sin| loses one u to the conversion of the
angle and one to the product, and their sum loses one: with the norm's, less than 12 u of |h cos| + |h' sin|. The
gradient at h loses less than 4 u of |dy cos| + |dy' sin| in the same way; the norm's gradients start from that.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from conformance import DTYPES, PARAMETER, computed_in, covering, short
from rmsnorm import reference
from rmsnorm.torch import rms_norm_rotary
from tolerances import around, check, half_ulp, rounded, smallest, wide


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    batch: tuple[int, ...]
    positions: int
    heads: tuple[int, int]
    n: int
    turned: float
    angles: torch.dtype
    angle_batch: str
    weight: torch.dtype | None
    per_head: bool
    zero_centered: bool
    eps: float | None
    layout: str
    grad_layout: str

    def __str__(self) -> str:
        values = (
            short(v) if isinstance(v, torch.dtype | None) else str(v).replace(" ", "") for v in vars(self).values()
        )
        return "-".join(values)

    @property
    def width(self) -> int:
        """rotary_dim: an even number of elements."""
        return int(self.n * self.turned) // 2 * 2

    @property
    def eps_value(self) -> float:
        return torch.finfo(computed_in(self.dtype)).eps if self.eps is None else self.eps


LAYOUTS = ("heads first", "positions first", "sliced", "padded", "apart", "expanded")
CASES = [
    Case(**c)
    for c in covering(
        6,
        dtype=DTYPES,
        batch=((), (1,), (3,), (2, 2)),
        positions=(0, 1, 2, 7, 40),
        heads=((1, 1), (4, 1), (9, 3)),
        n=(2, 6, 16, 64, 96, 128, 130, 256),
        turned=(1.0, 0.5, 0.25, 0.9),
        angles=DTYPES,
        angle_batch=("whole", "one", "none"),
        weight=PARAMETER,
        per_head=(False, True),
        zero_centered=(False, True),
        eps=(None, 1e-6, 0.1),
        layout=LAYOUTS,
        grad_layout=LAYOUTS[:-1],
    )
]


def heads_laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (…, positions, heads, n) as (…, heads, positions, n), in memory as the layout says."""
    *outer, positions, heads, n = values.shape
    if layout == "heads first":
        return values.transpose(-3, -2).contiguous()
    if layout == "expanded":
        return values[..., :1, :].expand(values.shape).transpose(-3, -2)
    if layout == "apart":  # the elements of a row do not lie together
        return values.movedim(-1, 0).contiguous().movedim(0, -1).transpose(-3, -2)
    before, after, gap = {"sliced": (heads, 2, 0), "padded": (0, 0, 1)}.get(layout, (0, 0, 0))
    room = torch.full((*outer, positions, before + heads + after, n + gap), torch.nan, dtype=values.dtype)
    view = room[..., before : before + heads, :n]
    view.copy_(values)
    return view.transpose(-3, -2)


def make_inputs(case: Case) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def rows(heads: int, layout: str) -> torch.Tensor:
        return heads_laid_out(draw(*case.batch, case.positions, heads, case.n).to(case.dtype), layout)

    def gain(heads: int) -> torch.Tensor | None:
        shape = (heads, case.n) if case.per_head else (case.n,)
        return None if case.weight is None else (draw(*shape) + 0.5).to(case.weight)

    outer = {"whole": case.batch, "one": (1,) * len(case.batch), "none": ()}[case.angle_batch]
    # Not an angle's cosine and sine: the two halves differ, and every one of the four factors is seen.
    cos, sin = (draw(*outer, case.positions, case.width).to(case.angles) for _ in range(2))
    q_heads, k_heads = case.heads
    return SimpleNamespace(
        q=rows(q_heads, case.layout),
        k=rows(k_heads, case.layout),
        cos=cos,
        sin=sin,
        q_weight=gain(q_heads),
        k_weight=gain(k_heads),
        dy_q=rows(q_heads, case.grad_layout),
        dy_k=rows(k_heads, case.grad_layout),
    )


def _turned(y: np.ndarray, cos: np.ndarray, sin: np.ndarray, back: bool) -> np.ndarray:
    """|y cos| + |y' sin|, y' the other one of a pair, with its own sine where a gradient is rotated back."""
    width = cos.shape[-1]
    y, cos, sin = np.abs(y), np.abs(cos), np.abs(sin)
    other = np.roll(y[..., :width] * sin, width // 2, -1) if back else np.roll(y[..., :width], width // 2, -1) * sin
    return np.concatenate([y[..., :width] * cos + other, y[..., width:]], -1)


def expected(case: Case, inputs: SimpleNamespace, composite: bool) -> dict:
    compute = computed_in(case.dtype)
    cos, sin = (np.expand_dims(wide(t, compute), -2) for t in (inputs.cos, inputs.sin))
    unit, found = half_ulp(compute), {}
    for name in ("q", "k"):
        x, dy = (np.swapaxes(wide(getattr(inputs, t), compute), -3, -2) for t in (name, f"dy_{name}"))
        weight = getattr(inputs, f"{name}_weight")
        g = None if weight is None else wide(weight, compute)
        options = {"eps": case.eps_value, "zero_centered": case.zero_centered}
        y = reference.rms_norm_rotary(x, cos, sin, g, **options)
        da, dg = reference.rms_norm_rotary_vjp(dy, x, cos, sin, g, **options)

        x_hat = np.abs(reference.rms_norm(x, eps=case.eps_value))
        gain = 1.0 if g is None else np.abs(g) + (1 if case.zero_centered else 0)
        slack = 12 * unit * _turned(x_hat * gain, cos, sin, back=False)
        found[name] = around(y, slack + np.sqrt(case.n) * smallest(compute), case.dtype)
        u = _turned(dy, cos, sin, back=True)
        r = np.sqrt(np.mean(x**2, -1, keepdims=True) + case.eps_value)
        terms = (u * gain + x_hat * np.sum(x_hat * u * gain, -1, keepdims=True) / case.n) / r
        found[f"d{name}"] = around(da, (12 + np.sqrt(case.n / 16)) * unit * terms, case.dtype)
        if weight is not None:
            # The composite goes from float64 to 16 bits by way of float32, as torch does; the kernels round once.
            between = torch.promote_types(case.weight, torch.float32) if composite else case.weight
            each = (u * x_hat).reshape(-1, *g.shape).sum(0)
            ends = around(dg, 20 * unit * each, between)
            found[f"d{name}_weight"] = tuple(rounded(end, case.weight) for end in ends)
    return found


def through(function: Callable, case: Case, inputs: SimpleNamespace) -> dict:
    names = [name for name in ("q", "k", "q_weight", "k_weight") if getattr(inputs, name) is not None]
    given = vars(inputs) | {name: getattr(inputs, name).detach().requires_grad_() for name in names}
    dy = given.pop("dy_q"), given.pop("dy_k")
    results = function(**given, eps=case.eps, zero_centered=case.zero_centered)
    gradients = torch.autograd.grad(results, [given[name] for name in names], dy)
    found = {"q": results[0].detach(), "k": results[1].detach()}
    return found | {f"d{name}": g for name, g in zip(names, gradients, strict=True)}


def conforms(case: Case, results: dict, inputs: SimpleNamespace, composite: bool = False) -> None:
    with np.errstate(all="ignore"):
        intervals = expected(case, inputs, composite)
    assert set(results) == set(intervals)
    for name, interval in intervals.items():
        of = getattr(inputs, name.removeprefix("d"))
        result = results[name]
        assert result.dtype == of.dtype, name
        assert result.shape == of.shape, name
        found = result if name.endswith("weight") else result.transpose(-3, -2)
        check(found, interval, f"{name} of {case}")


def kernels_conform(case: Case) -> None:
    """The public function on one case, forward and backward; its inputs stay as they were."""
    inputs = make_inputs(case)
    before = {name: t.clone() for name, t in vars(inputs).items() if t is not None}
    conforms(case, through(rms_norm_rotary, case, inputs), inputs)
    for name, old in before.items():
        assert torch.equal(getattr(inputs, name), old), name
