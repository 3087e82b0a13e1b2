"""What the recurrent modules share: they hold parameters, and run one layer in one direction."""

import math

import torch
from torch import Tensor, nn

from rmsnorm.torch.rnn import checks
from rmsnorm.torch.rnn.functional import run_layer
from rmsnorm.torch.rnn.spec import Parameters, check_recurrent, parameter_shapes

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

    # Fixed at construction: the parameters depend on them.
    norm = property(lambda self: self.spec.norm)
    p = property(lambda self: self.spec.p)
    eps = property(lambda self: self.spec.eps)
    placement = property(lambda self: self.spec.placement)

    def _register(self, suffix: str, input_size: int, device: Device, dtype: torch.dtype | None) -> None:
        where = self.spec.where
        present = {"bias_ih": self.bias, "bias_hh": self.bias}
        present |= {"gain_ih": bool(where.input), "gain_hh": bool(where.state), "gain_cell": where.cell}
        for role, shape in parameter_shapes(self.spec.gates, self.hidden_size, input_size).items():
            if present.get(role, True):
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(role + suffix, parameter)

    def reset_parameters(self) -> None:
        """Weights and biases uniform in ±1/√hidden_size, as in torch; gains 1."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gain"):
                nn.init.ones_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def _parameters_of(self, suffix: str) -> Parameters:
        return Parameters._make([getattr(self, role + suffix, None) for role in Parameters._fields])

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

    def extra_repr(self) -> str:
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        shown = [f"{self.input_size}, {self.hidden_size}"]
        shown += [f"{n}={getattr(self, n)}" for n, value in defaults.items() if getattr(self, n, value) != value]
        shown += [f"norm={self.norm!r}"]
        shown += [f"p={self.p}"] if self.p != 1.0 else []
        shown += [f"eps={self.eps}", f"placement={self.placement!r}"] if self.norm else []
        return ", ".join(shown)
