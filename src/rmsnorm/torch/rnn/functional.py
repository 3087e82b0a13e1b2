"""One layer as a function of tensors: which way it is computed, and its autograd node."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rmsnorm.torch.checks import check_memories
from rmsnorm.torch.dispatch import AUTOGRAD, COMPOSITE, OPERATOR, eager_way, graph_way, transformed
from rmsnorm.torch.operation import recorded, saveable
from rmsnorm.torch.rnn import composite, eager, ops
from rmsnorm.torch.rnn.eager import Forward
from rmsnorm.torch.rnn.spec import Parameters, RecurrentSpec, check_layer

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

    x: (N, I), the rows of one step after another; h0, c0: (B, H), c0 None for a GRU; batch_sizes: the rows of each
    step, which do not rise, as in a packed sequence; None if every step has B.
    """
    check_layer(spec.gates, spec.hidden, x, h0, c0, parameters, batch_sizes)
    if is_compiling():
        if x.is_cpu and spec.hidden and graph_way(x) == OPERATOR:
            return ops.forward(spec, x, h0, c0, parameters, batch_sizes, reverse)
        return composite.forward(spec, x, h0, c0, parameters, batch_sizes, reverse)
    x, h0, c0 = x.contiguous(), h0.contiguous(), None if c0 is None else c0.contiguous()
    way = _way(x, h0, c0, *parameters) if spec.hidden else COMPOSITE
    if way == COMPOSITE:
        check_memories(**parameters._asdict())
        return composite.forward(spec, x, h0, c0, parameters, batch_sizes, reverse)
    if way == AUTOGRAD:
        results = recorded_layer(spec, batch_sizes, reverse, x, h0, c0, *parameters)
    else:
        kept = eager.forward(spec, x, h0, c0, parameters, batch_sizes, reverse, save=False)
        results = kept[:3]
    return results[0], results[1], None if c0 is None else results[2]


def _way(x: Tensor, *others: Tensor | None) -> int:
    """The way of an eager call: kernels only if all tensors are on a CPU and of one dtype."""
    dtype = x.dtype
    if transformed() or not x.is_cpu or dtype not in _SERVED:
        return COMPOSITE
    for t in others:  # a generator would cost 2 µs
        if t is not None and t.dtype != dtype:
            return COMPOSITE
    return eager_way(x, *others)


class LayerFunction(torch.autograd.Function):
    """A layer for autograd: (out, h_n) of a GRU, (out, h_n, c_n) of an LSTM.

    x, h0 and c0 must be contiguous: a copy made here would be a constant to the second derivative.
    """

    @staticmethod
    def forward(ctx, spec, batch_sizes, reverse, x, h0, c0, *parameters):
        kept = eager.forward(spec, x, h0, c0, Parameters(*parameters), batch_sizes, reverse, save=True)
        ctx.save_for_backward(*saveable(x, h0, c0, *parameters), *kept[3:])
        ctx.spec, ctx.batch_sizes, ctx.reverse = spec, batch_sizes, reverse
        ctx.set_materialize_grads(False)
        return (kept.out, kept.h_n) if c0 is None else (kept.out, kept.h_n, kept.c_n)

    @staticmethod
    def backward(ctx, *given):
        saved, gradients = ctx.saved_tensors, (*given, None)[:3]
        inputs, kept, how = saved[:10], saved[10:], (ctx.batch_sizes, ctx.reverse)
        found: Sequence[Tensor | None]
        if is_compiling():  # compiled autograd
            found = ops.backward(ctx.spec, inputs, kept, gradients, *how)
        elif torch.is_grad_enabled() or _way(*saved, *gradients) == COMPOSITE:  # itself differentiated or mapped
            found = composite.backward(ctx.spec, inputs, *how, gradients, ctx.needs_input_grad[3:])
        else:
            x, h0, _, *parameters = inputs
            forward = Forward(x, h0, h0, *(t.contiguous() for t in kept))  # hooks on saved tensors may change strides
            dout, dh_n, dc_n = gradients
            dx, dh0, dc0, of_parameters = eager.backward(
                ctx.spec, x, h0, Parameters(*parameters), *how, forward, dout, dh_n, dc_n, ctx.needs_input_grad[3]
            )
            found = (dx, dh0, dc0, *of_parameters)
        return None, None, None, *found


recorded_layer = recorded(LayerFunction)
