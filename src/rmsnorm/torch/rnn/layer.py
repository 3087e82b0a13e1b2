"""Which way a layer goes: kernels, operators of a captured graph, or the loop of torch operators."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.native import AUTOGRAD, COMPOSITE
from rmsnorm.torch.kernels import captured, gate
from rmsnorm.torch.rnn import composite, eager, ops
from rmsnorm.torch.rnn.eager import Parameters
from rmsnorm.torch.rnn.placement import RecurrentSpec

_SERVED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def run_layer(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Parameters,
    batch_sizes: tuple[int, ...] | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, h_n, c_n) of one layer in one direction.

    x: (N, I), the rows of all steps one behind the other; h0, c0: (B, H), c0 None for a GRU; batch_sizes: the rows of
    each step, falling, as in a packed sequence; None where every step has B.
    """
    if is_compiling():
        if x.is_cpu and spec.hidden and captured(x):
            return ops.layer(spec, x, h0, c0, parameters, batch_sizes, reverse)
        return composite.layer(spec, x, h0, c0, parameters, batch_sizes, reverse)
    way = _way(x, h0, c0, parameters) if spec.hidden else COMPOSITE
    if way == COMPOSITE:
        return composite.layer(spec, x, h0, c0, parameters, batch_sizes, reverse)
    if way == AUTOGRAD:
        results = eager.LayerFunction.apply(spec, batch_sizes, reverse, x, h0, c0, *parameters)
    else:
        c0 = None if c0 is None else c0.contiguous()
        kept = eager.forward(spec, x.contiguous(), h0.contiguous(), c0, parameters, batch_sizes, reverse, save=False)
        results = kept[:3]
    return results[0], results[1], None if c0 is None else results[2]


def _way(x: Tensor, h0: Tensor, c0: Tensor | None, parameters: Parameters) -> int:
    tensors = [t for t in (x, h0, c0, *parameters) if t is not None]
    if not x.is_cpu or x.dtype not in _SERVED or any(t.dtype != x.dtype for t in tensors):
        return COMPOSITE
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return COMPOSITE
    ways = {gate(t, None, None) for t in tensors}
    return COMPOSITE if COMPOSITE in ways else max(ways)
