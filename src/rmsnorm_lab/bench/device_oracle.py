"""The oracle of large cases on a CUDA device: float64 formulas there, where NumPy's oracle would take minutes."""

from dataclasses import replace

import torch
from torch import Tensor

from rmsnorm_lab.bench.cases import PLAIN, Case
from rmsnorm_lab.bench.formulas import formula
from rmsnorm_lab.bench.oracle import SUMMED, VECTORS, Array, Inputs, Oracle

ELEMENTS = 1 << 24  # computed at a time: 128 MiB in float64


def make_oracle(case: Case, inputs: Inputs) -> Oracle:
    """For the plain norms, the formulas, which the tests compare with the NumPy reference; else the NumPy reference."""
    if case.op in PLAIN:
        return DeviceOracle(case, inputs)
    return Oracle(case, {name: t.cpu() for name, t in inputs.items()})


class DeviceOracle(Oracle):
    """The right outputs of one plain norm, computed on the device that has its inputs."""

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
        case, inputs = self.case, self._inputs
        x, want = inputs["x"][rows], {}
        if case.adds:  # the sum is rounded to the input's dtype
            x = x + inputs["residual"][rows]
            want["h"] = x.double()
            case = replace(case, op="rms_norm")
        vectors = (inputs[name].double() for name in VECTORS if name in case.operands)
        leaves = [t.requires_grad_(case.backward) for t in (x.double(), *vectors)]
        y = formula(case, torch.float64)(*leaves)
        want["y"] = y.detach()
        if case.backward:
            gradients = torch.autograd.grad(y, leaves, inputs["dy"][rows].double())
            want |= zip(("dx", *SUMMED), gradients, strict=False)  # RMSNorm has no bias
            if self.case.adds:
                want["dx"] = want["dresidual"] = want["dx"] + inputs["dh"][rows].double()
        return want
