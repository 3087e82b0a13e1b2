"""The oracle of large cases on a CUDA device: the float64 composite there, where NumPy's oracle would take minutes."""

import torch
from torch import Tensor

from rmsnorm_lab.bench.cases import EPS, PLAIN, Case
from rmsnorm_lab.bench.oracle import SUMMED, Array, Inputs, Oracle

ELEMENTS = 1 << 24  # worked on at a time: 128 MiB in float64


def make_oracle(case: Case, inputs: Inputs) -> Oracle:
    """The composite's for the plain norms, which the tests hold to the NumPy reference; else the NumPy reference."""
    if case.op in PLAIN:
        return DeviceOracle(case, inputs)
    return Oracle(case, {name: t.cpu() for name, t in inputs.items()})


class DeviceOracle(Oracle):
    """The right outputs of one plain norm, where its inputs are."""

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
        from rmsnorm.spec import check_spec
        from rmsnorm.torch import composite

        case, inputs = self.case, self._inputs
        weight, shape = inputs["weight"].double(), (case.n,)
        x, want = inputs["x"][rows], {}
        if case.adds:  # the sum is rounded to the input's dtype
            x = x + inputs["residual"][rows]
            want["h"] = x.double()
        x = x.double()
        dy = inputs["dy"][rows].double() if case.backward else None
        if case.op == "layer_norm":
            bias = inputs["bias"].double()
            want["y"] = composite.layer_norm(x, shape, weight, bias, EPS)
            if dy is not None:
                found = composite.layer_norm_backward(dy, x, weight, bias, check_spec(shape, EPS))
        else:
            want["y"] = composite.rms_norm(x, shape, weight, EPS, p=case.p)
            if dy is not None:
                found = composite.rms_norm_backward(dy, x, weight, None, check_spec(shape, EPS, case.p))
        if dy is not None:
            want |= {name: t for name, t in zip(("dx", *SUMMED), found, strict=True) if t is not None}
            if case.adds:
                want["dx"] = want["dresidual"] = want["dx"] + inputs["dh"][rows].double()
        return want
