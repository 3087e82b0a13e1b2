"""A layer as operators of ``torch.library``: what ``torch.compile`` and ``torch.export`` see."""

import torch
from torch import Tensor

from rmsnorm.torch.rnn import composite, eager
from rmsnorm.torch.rnn.eager import Forward, Parameters
from rmsnorm.torch.rnn.placement import RecurrentSpec, check_recurrent

_library = torch.library.Library("rmsnorm", "FRAGMENT")
_TENSORS = (
    "Tensor x, Tensor h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? gain_ih, Tensor? gain_hh, Tensor? gain_cell"
)
_HOW = "str cell, str? norm, float p, float eps, str placement, int[]? batch_sizes, bool reverse"
_KEPT = "Tensor input, Tensor state, Tensor gates, Tensor h_all, Tensor c_all"
_library.define(f"recurrent({_TENSORS}, {_HOW}, bool save) -> ({', '.join(['Tensor'] * 8)})")
_library.define(
    f"recurrent_backward({_TENSORS}, {_KEPT}, Tensor? dout, Tensor? dh_n, Tensor? dc_n, {_HOW}) "
    f"-> ({', '.join(['Tensor'] * 10)})"
)
_ops = torch.ops.rmsnorm


def layer(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Parameters,
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`rmsnorm.torch.rnn.layer.run_layer` as one operator."""
    how = (spec.cell, spec.norm, spec.p, spec.eps, spec.placement)
    sizes = None if batch_sizes is None else list(batch_sizes)
    out, h_n, c_n, *_ = _ops.recurrent(x, h0, c0, *parameters, *how, sizes, reverse, torch.is_grad_enabled())
    return out, h_n, None if c0 is None else c_n


def _spec(hidden: int, how: tuple) -> tuple[RecurrentSpec, tuple[int, ...] | None, bool]:
    cell, norm, p, eps, placement, batch_sizes, reverse = how
    spec = check_recurrent(cell, hidden, norm, p, eps, placement)
    return spec, None if batch_sizes is None else tuple(batch_sizes), reverse


def _distinct(results: Forward) -> tuple[Tensor, ...]:
    """An operator's outputs must not share memory: views of what is kept are copied."""
    seen: set[int] = set()
    outputs = []
    for t in results:
        storage = t.untyped_storage().data_ptr()
        outputs.append(t.clone() if storage and storage in seen else t)
        seen.add(storage)
    return tuple(outputs)


def _recurrent_cpu(x, h0, c0, *rest):
    parameters, how, save = Parameters(*rest[:7]), rest[7:-1], rest[-1]
    spec, batch_sizes, reverse = _spec(h0.shape[1], how)
    c0 = None if c0 is None else c0.contiguous()
    kept = eager.forward(spec, x.contiguous(), h0.contiguous(), c0, parameters, batch_sizes, reverse, save)
    if not save:
        kept = Forward(*kept[:3], *(x.new_empty(0) for _ in range(5)))
    return _distinct(kept)


def _recurrent_backward_cpu(x, h0, c0, *rest):
    parameters, kept, gradients, how = Parameters(*rest[:7]), rest[7:12], rest[12:15], rest[15:]
    spec, batch_sizes, reverse = _spec(h0.shape[1], how)
    forward = Forward(x, h0, h0, *(t.contiguous() for t in kept))
    dx, dh0, dc0, of_parameters = eager.backward(
        spec, x.contiguous(), h0, parameters, batch_sizes, reverse, forward, *gradients
    )
    return tuple(x.new_empty(0) if g is None else g for g in (dx, dh0, dc0, *of_parameters))


def _recurrent_fake(x, h0, c0, *rest):
    how, save = rest[7:-1], rest[-1]
    spec, batch_sizes, _ = _spec(1, how)  # the extents may be symbols here
    rows, batch, hidden = x.shape[0], h0.shape[0], h0.shape[1]
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
    ctx.how = inputs[10:17]
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dh_n, dc_n, *_):
    inputs, kept = ctx.saved_tensors[:10], ctx.saved_tensors[10:]
    gradients = _ops.recurrent_backward(*inputs, *kept, dout, dh_n, dc_n if inputs[2] is not None else None, *ctx.how)
    given = (
        g if t is not None and need else None
        for g, t, need in zip(gradients, inputs, ctx.needs_input_grad, strict=False)
    )
    return *given, *[None] * 8


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:10], *inputs[15:18])
    ctx.how = inputs[18:]


def _backward_of_backward(ctx, *given):
    """By the composite, as an expression of the inputs and of the gradients that came in."""
    saved = ctx.saved_tensors
    inputs, gradients = saved[:10], saved[10:]
    spec, batch_sizes, reverse = _spec(inputs[1].shape[1], ctx.how)
    needs = [t is not None for t in inputs]
    wanted = [t for t in (*inputs, *gradients) if t is not None and t.requires_grad]
    with torch.enable_grad():
        outputs = composite.backward(spec, inputs, batch_sizes, reverse, gradients, needs)
        used = [(y, dy) for y, dy in zip(outputs, given, strict=True) if y is not None and dy is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in used], wanted, [dy for _, dy in used], create_graph=True, allow_unused=True
            )
        )
    second = [next(found) if t is not None and t.requires_grad else None for t in (*inputs, *gradients)]
    return *second[:10], *[None] * 5, *second[10:], *[None] * 7


for _name, _cpu, _fake, _autograd, _setup in (
    ("recurrent", _recurrent_cpu, _recurrent_fake, _backward, _save),
    ("recurrent_backward", _recurrent_backward_cpu, _recurrent_backward_fake, _backward_of_backward, _save_backward),
):
    _library.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"rmsnorm::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"rmsnorm::{_name}", _autograd, setup_context=_setup, lib=_library)
