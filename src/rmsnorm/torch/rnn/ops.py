"""A layer as operators of ``torch.library``: what ``torch.compile`` and ``torch.export`` see."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsnorm.spec import MismatchError
from rmsnorm.torch.registration import Node, library, register
from rmsnorm.torch.rnn import composite, eager
from rmsnorm.torch.rnn.eager import Forward
from rmsnorm.torch.rnn.spec import Parameters, RecurrentSpec, check_layer, check_recurrent

_TENSORS = (
    "Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? gain_ih, Tensor? gain_hh, Tensor? gain_cell"
)
_HOW = "str cell, str? norm, float p, float eps, str placement, int[]? batch_sizes, bool reverse"
_KEPT = "Tensor input, Tensor state, Tensor gates, Tensor h_all, Tensor c_all"
library.define(f"recurrent({_TENSORS}, {_HOW}, bool save) -> ({', '.join(['Tensor'] * 8)})")
library.define(
    f"recurrent_backward({_TENSORS}, {_KEPT}, Tensor? dout, Tensor? dh_n, Tensor? dc_n, {_HOW}) "
    f"-> ({', '.join(['Tensor'] * 10)})"
)
_ops = torch.ops.rmsnorm


def forward(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Parameters,
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`rmsnorm.torch.rnn.functional.run_layer` as one operator."""
    how = _how(spec, batch_sizes, reverse)
    out, h_n, c_n, *_ = _ops.recurrent(x, h0, c0, *parameters, *how, torch.is_grad_enabled())
    return out, h_n, None if c0 is None else c_n


def backward(
    spec: RecurrentSpec,
    inputs: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs as one operator."""
    found = _ops.recurrent_backward(*inputs, *kept, *gradients, *_how(spec, batch_sizes, reverse))
    return tuple(g if t is not None else None for g, t in zip(found, inputs, strict=True))


def _how(spec: RecurrentSpec, batch_sizes: tuple[int, ...] | None, reverse: bool) -> tuple:
    sizes = None if batch_sizes is None else list(batch_sizes)
    return spec.cell, spec.norm, spec.p, spec.eps, spec.placement, sizes, reverse


def _spec(hidden: int, how: tuple) -> tuple[RecurrentSpec, tuple[int, ...] | None, bool]:
    cell, norm, p, eps, placement, batch_sizes, reverse = how
    spec = check_recurrent(cell, hidden, norm, p, eps, placement)
    return spec, None if batch_sizes is None else tuple(batch_sizes), reverse


def _checked(x: Tensor, h0: Tensor, c0: Tensor | None, parameters: Sequence[Tensor | None], how: tuple) -> Any:
    """The specification; an operator may be called with anything."""
    if h0.dim() != 2:
        raise MismatchError(f"h0 must be (batch, hidden), got shape {tuple(h0.shape)}")
    spec, batch_sizes, reverse = _spec(h0.shape[1], how)
    check_layer(spec.gates, spec.hidden, x, h0, c0, parameters, batch_sizes)
    if (c0 is None) == (spec.cell == "LSTM"):
        raise MismatchError(f"c0 must be given for an LSTM and for no GRU, got {'None' if c0 is None else 'one'}")
    return spec, batch_sizes, reverse


def _distinct(results: Forward) -> tuple[Tensor, ...]:
    """An operator's outputs must not share memory, so views of what is kept are copied."""
    seen: set[int] = set()
    outputs = []
    for t in results:
        storage = t.untyped_storage().data_ptr()
        outputs.append(t.clone() if storage and storage in seen else t)
        seen.add(storage)
    return tuple(outputs)


def _recurrent_cpu(x, h0, c0, *rest):
    parameters, how, save = Parameters(*rest[:7]), rest[7:-1], rest[-1]
    spec, batch_sizes, reverse = _checked(x, h0, c0, parameters, how)
    c0 = None if c0 is None else c0.contiguous()
    kept = eager.forward(spec, x.contiguous(), h0.contiguous(), c0, parameters, batch_sizes, reverse, save)
    if not save:
        kept = Forward(*kept[:3], *(x.new_empty(0) for _ in range(5)))
    return _distinct(kept)


def _recurrent_backward_cpu(x, h0, c0, *rest):
    parameters, kept, gradients, how = Parameters(*rest[:7]), rest[7:12], rest[12:15], rest[15:]
    spec, batch_sizes, reverse = _checked(x, h0, c0, parameters, how)
    forward = Forward(x, h0, h0, *(t.contiguous() for t in kept))
    dx, dh0, dc0, of_parameters = eager.backward(
        spec, x.contiguous(), h0, parameters, batch_sizes, reverse, forward, *gradients
    )
    return tuple(x.new_empty(0) if g is None else g for g in (dx, dh0, dc0, *of_parameters))


def _recurrent_expression(x, h0, c0, *rest):
    """Nothing is kept for a backward pass: autograd and transforms see the expression itself."""
    spec, batch_sizes, reverse = _checked(x, h0, c0, rest[:7], rest[7:-1])
    out, h_n, c_n = composite.forward(spec, x, h0, c0, rest[:7], batch_sizes, reverse)
    return out, h_n, x.new_empty(0) if c_n is None else c_n, *(x.new_empty(0) for _ in range(5))


def _recurrent_backward_expression(x, h0, c0, *rest):
    inputs, gradients = (x, h0, c0, *rest[:7]), rest[12:15]
    spec, batch_sizes, reverse = _checked(x, h0, c0, rest[:7], rest[15:])
    found = composite.backward(spec, inputs, batch_sizes, reverse, gradients, [t is not None for t in inputs])
    return tuple(x.new_empty(0) if g is None else g for g in found)


def _recurrent_fake(x, h0, c0, *rest):
    how, save = rest[7:-1], rest[-1]
    spec, batch_sizes, _ = _spec(1, how)  # the extents may be symbols here
    rows, batch, hidden = x.shape[0], h0.shape[0], h0.shape[1]
    check_layer(spec.gates, hidden, x, h0, c0, rest[:7], batch_sizes)
    width = spec.gates * hidden
    uniform, lstm = batch_sizes is None, c0 is not None

    def make(*shape):
        return x.new_empty(shape)

    state = (make(rows, hidden), make(batch, hidden), make(batch, hidden) if lstm else make(0))
    if not save:
        return *state, *(make(0) for _ in range(5))
    h_all = make(rows + batch, hidden) if uniform else make(rows, hidden)
    c_all = make(0) if not lstm else make(rows + batch, hidden) if uniform else make(2 * rows, hidden)
    return *state, make(rows, width), make(rows, width), make(rows, width), h_all, c_all


def _recurrent_backward_fake(x, h0, c0, *rest):
    return tuple(
        x.new_empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in (x, h0, c0, *rest[:7])
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:10], *output[3:])
    ctx.how, ctx.kept = inputs[10:17], inputs[17]
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dh_n, dc_n, *_):
    inputs, kept = ctx.saved_tensors[:10], ctx.saved_tensors[10:]
    if not ctx.kept:  # a program that was exported under no_grad
        spec, batch_sizes, reverse = _spec(inputs[1].shape[1], ctx.how)
        incoming = (dout, dh_n, dc_n if inputs[2] is not None else None)
        return *composite.backward(spec, inputs, batch_sizes, reverse, incoming, ctx.needs_input_grad[:10]), *[None] * 8
    gradients = _ops.recurrent_backward(*inputs, *kept, dout, dh_n, dc_n if inputs[2] is not None else None, *ctx.how)
    given = (
        g if t is not None and need else None
        for g, t, need in zip(gradients, inputs, ctx.needs_input_grad, strict=False)
    )
    return *given, *[None] * 8


register("recurrent", _recurrent_cpu, _recurrent_expression, _recurrent_fake, Node(_save, _backward), anywhere=False)
register(
    "recurrent_backward",
    _recurrent_backward_cpu,
    _recurrent_backward_expression,
    _recurrent_backward_fake,
    anywhere=False,
)
