"""The oracle of large cases on a CUDA device: float64 formulas there, where NumPy's oracle would take minutes."""

from dataclasses import replace

import torch
from torch import Tensor

from rmsnorm_lab.bench.cases import PLAIN, Case
from rmsnorm_lab.bench.formulas import formula
from rmsnorm_lab.bench.oracle import SUMMED, VECTORS, Array, Inputs, Oracle

OPS = (*PLAIN, "rms_norm_heads", "rms_norm_gated")
ELEMENTS = 1 << 24  # computed at a time: 128 MiB in float64


def make_oracle(case: Case, inputs: Inputs) -> Oracle:
    """The formulas, which the tests compare with the NumPy reference; that itself for codes and what is in place."""
    if case.op in OPS:
        return DeviceOracle(case, inputs)
    return Oracle(case, {name: t.cpu() for name, t in inputs.items()})


class DeviceOracle(Oracle):
    """The right outputs of one norm, computed on the device that has its inputs."""

    def _compute(self) -> dict[str, Array]:
        some = torch.as_tensor(self._rows, device=self._inputs["x"].device)
        want = {name: t for name, t in self._of(some).items() if name not in SUMMED}
        if self.case.backward:
            step = max(1, ELEMENTS // self.case.n)
            for begin in range(0, self.case.rows, step):
                for name, t in self._of(slice(begin, begin + step)).items():
                    if name in SUMMED:
                        want[name] = want[name] + t if name in want else t
        return {name: t.cpu().numpy() for name, t in want.items()}

    def _of(self, rows: Tensor | slice) -> dict[str, Tensor]:
        """The outputs of these rows in float64, and these rows' part of the sums over rows."""
        case, want = self.case, {}
        took = {name: t if name in VECTORS else t[rows] for name, t in self._inputs.items()}
        if case.adds:  # the sum is rounded to the input's dtype
            took["x"] = took["x"] + took["residual"]
            want["h"] = took["x"].double()
            case = replace(case, op="rms_norm")
        leaves = {name: took[name].double().requires_grad_(case.backward) for name in case.operands}
        given = dict(leaves)
        if case.heads is not None:
            row = torch.arange(case.rows, device=took["x"].device)[rows]
            given["weight"] = leaves["weight"][row % case.heads]
        y = formula(case, torch.float64)(*given.values())
        want["y"] = y.detach()
        if case.backward:
            gradients = torch.autograd.grad(y, tuple(leaves.values()), took["dy"].double())
            want |= zip((f"d{name}" for name in leaves), gradients, strict=True)
            if self.case.adds:
                want["dx"] = want["dresidual"] = want["dx"] + took["dh"].double()
        return want
