"""Recurrent cases: their inputs, a loop of torch operators for any norm, and that loop in float64 as the oracle.

The loop is the best that one can write without fused kernels: the input's product and norm for all steps at once, then
in each step one product, one norm (of each of its vectors) and the gates.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmsnorm.spec import partial_count
from rmsnorm_lab.bench.cases import EPS, Case, P
from rmsnorm_lab.bench.oracle import Inputs, WrongError
from rmsnorm_lab.recurrent_steps import gru_step, lstm_step

# Relative to the root mean square of the result. 50 steps of correct float32 code lose 2e-5.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.04}

GATES = {"gru": 3, "lstm": 4}


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Input, parameters and output gradient that all providers of a case share, under torch's names."""
    draw = torch.Generator().manual_seed(seed)
    width, hidden = GATES[case.op] * case.n, case.n

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    inputs = {
        "x": normal(case.steps, case.batch, case.features),
        "weight_ih": normal(width, case.features) / case.features**0.5,
        "weight_hh": normal(width, hidden) / hidden**0.5,
        "bias_ih": normal(width) * 0.1,
        "bias_hh": normal(width) * 0.1,
        "gain_ih": 1 + 0.3 * normal(width),
        "gain_hh": 1 + 0.3 * normal(width),
        "gain_cell": 1 + 0.3 * normal(hidden),
        "dy": normal(case.steps, case.batch, hidden),
    }
    return {name: t.to(getattr(torch, case.dtype)) for name, t in inputs.items()}


def parameter_names(case: Case) -> tuple[str, ...]:
    """The names of the parameters with ``case.norm``, in the modules' order."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if case.norm == "none":
        return names
    return (*names, "gain_ih", "gain_hh", *(("gain_cell",) if case.op == "lstm" else ()))


Normalize = Callable[[Tensor, Tensor], Tensor]


def normalizer(norm: str) -> Normalize:
    """(v, gain) ↦ v̂ ⊙ gain over the last dimension, in the framework's operators."""

    def rms(v: Tensor, gain: Tensor, p: float = 1.0) -> Tensor:
        k = partial_count(v.shape[-1], p)
        return v * torch.rsqrt(v[..., :k].square().mean(-1, keepdim=True) + EPS) * gain

    return {
        "none": lambda v, gain: v,
        "layer": lambda v, gain: F.layer_norm(v, gain.shape, gain, None, EPS),
        "rms": rms,
        "prms": lambda v, gain: rms(v, gain, P),
    }[norm]


def loop(case: Case, inputs: Inputs) -> Tensor:
    """y (steps, batch, hidden) in torch operators, step by step; the norms are where the paper has them."""
    norm, H = normalizer(case.norm), case.n
    parts = ((0, 2 * H), (2 * H, 3 * H)) if case.op == "gru" else ((0, 4 * H),)

    def normalized(side: Tensor, gain: Tensor) -> Tensor:
        if case.norm == "none":
            return side
        pieces = [norm(side[..., i:j], gain[i:j]) for i, j in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    a = normalized(F.linear(inputs["x"], inputs["weight_ih"], inputs["bias_ih"]), inputs["gain_ih"])
    weight, bias, gain = inputs["weight_hh"], inputs["bias_hh"], inputs["gain_hh"]
    h = c = a.new_zeros(a.shape[1], H)
    outputs = []
    for step in a.unbind(0):
        side = normalized(F.linear(h, weight), gain) + bias
        if case.op == "gru":
            h = gru_step((step[:, : 2 * H], step[:, 2 * H :]), (side[:, : 2 * H], side[:, 2 * H :]), h)
        else:
            h, c = lstm_step(step + side, c, lambda c: norm(c, inputs["gain_cell"]))
        outputs.append(h)
    return torch.stack(outputs)


class RecurrentOracle:
    """The right outputs of one recurrent case, by the loop in float64."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        wide = {name: t.double() for name, t in inputs.items()}
        self.case = case
        leaves = [wide[name].requires_grad_(case.backward) for name in ("x", *parameter_names(case))]
        y = loop(case, wide)
        gradients = torch.autograd.grad(y, leaves, wide["dy"]) if case.backward else ()
        self.want = (y.detach(), *gradients)

    def check(self, outputs: Sequence[Any]) -> dict[str, float]:
        names = ("y", *(f"d{name}" for name in ("x", *parameter_names(self.case)))) if self.case.backward else ("y",)
        if len(outputs) != len(names):
            raise WrongError(f"must return {len(names)} arrays ({', '.join(names)}); got {len(outputs)}")
        errors = {}
        for name, output, want in zip(names, outputs, self.want, strict=True):
            if output.shape != want.shape or not str(output.dtype).endswith(self.case.dtype):
                raise WrongError(
                    f"{name} must be {self.case.dtype} {tuple(want.shape)}; got {output.dtype} {tuple(output.shape)}"
                )
            error = float((output.detach().double() - want).square().mean().sqrt() / want.square().mean().sqrt())
            if not error <= TOLERANCE[self.case.dtype]:
                raise WrongError(f"{name} is {error:.3g} of its size off the float64 loop")
            errors[name] = error
        return errors
