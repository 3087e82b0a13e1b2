"""What the recurrent modules share: they hold parameters, and run one layer in one direction."""

import math

import torch
from torch import Tensor, nn

from rmsnorm.torch.rnn import checks
from rmsnorm.torch.rnn.functional import run_layer
from rmsnorm.torch.rnn.spec import GATES, Parameters, check_recurrent

Device = torch.device | str | None


class Recurrent(nn.Module):
    """What layers and cells share: one set of parameters for each layer and direction, under torch's names."""

    cell: str
    least_size = 1

    def _configure(
        self, input_size: int, hidden_size: int, bias: bool, norm: str | None, p: float, eps: float, placement: str
    ) -> None:
        self.input_size = checks.check_size("input_size", input_size, self.least_size)
        self.hidden_size = checks.check_size("hidden_size", hidden_size, self.least_size)
        self.bias = checks.check_flag("bias", bias)
        self.spec = check_recurrent(self.cell, hidden_size, norm, p, eps, placement)

    def __prepare_scriptable__(self) -> None:
        raise NotImplementedError(
            f"torch.jit.script does not compile {type(self).__name__}; use torch.export or torch.jit.trace"
        )

    # What the kernels are asked to do is fixed at construction.
    norm = property(lambda self: self.spec.norm)
    p = property(lambda self: self.spec.p)
    eps = property(lambda self: self.spec.eps)
    placement = property(lambda self: self.spec.placement)

    def _register(self, suffix: str, input_size: int, device: Device, dtype: torch.dtype | None) -> None:
        width, where = GATES[self.cell] * self.hidden_size, self.spec.where
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (width, input_size),
            "weight_hh": (width, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (width,), "bias_hh": (width,)}
        shapes |= {"gain_ih": (width,)} if where.input else {}
        shapes |= {"gain_hh": (width,)} if where.state else {}
        shapes |= {"gain_cell": (self.hidden_size,)} if where.cell else {}
        for role, shape in shapes.items():
            self.register_parameter(role + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Weights and biases uniform in ±1/√hidden_size, as torch has them; gains 1."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gain"):
                nn.init.ones_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def _parameters_of(self, suffix: str) -> Parameters:
        return Parameters._make(getattr(self, role + suffix, None) for role in Parameters._fields)

    def _run(
        self,
        suffix: str,
        x: Tensor,
        states: list[Tensor],
        batch_sizes: tuple[int, ...] | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """One layer in one direction; states: h, or h and c, (B, H) each."""
        parameters = self._parameters_of(suffix)
        if checks.autocast_enabled(x):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, states = x.to(dtype), [s.to(dtype) for s in states]
            parameters = Parameters._make(None if t is None else t.to(dtype) for t in parameters)
        h0, c0 = states[0], states[1] if len(states) > 1 else None
        out, h_n, c_n = run_layer(self.spec, x, h0, c0, parameters, batch_sizes, reverse)
        return out, [h_n] if c_n is None else [h_n, c_n]

    def _said(self) -> list[str]:
        said = [f"{self.input_size}, {self.hidden_size}"]
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        said += [f"{n}={getattr(self, n)}" for n, u in usual.items() if getattr(self, n, u) != u]
        said += [f"norm={self.norm!r}"]
        said += [f"p={self.p}"] if self.p != 1.0 else []
        said += [f"eps={self.eps}", f"placement={self.placement!r}"] if self.norm else []
        return said

    def extra_repr(self) -> str:
        return ", ".join(self._said())
