"""A whole layer on the native kernels: one matrix product and one kernel a step, forward and backward.

The product of the input is taken before the loop, and the products that give gradients of weights after it: one over
all steps instead of one a step. The native kernel of a step does the rest: both sides' norms, the gates and the new
state. Of a small layer one native call takes all steps, products included.
"""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.torch import bindings
from rmsnorm.torch.norm.composite import compute_dtype
from rmsnorm.torch.rnn.products import in_one_call, product, step_product
from rmsnorm.torch.rnn.spec import Parameters, RecurrentSpec


class Forward(NamedTuple):
    """The results of a forward pass, and what a backward pass needs of it; tensors that do not exist are empty."""

    out: Tensor  # (N, H): N rows, those of all steps
    h_n: Tensor  # (B, H)
    c_n: Tensor  # (B, H)
    input: Tensor  # (N, G·H): a
    state: Tensor  # (N, G·H): c, or a + c
    gates: Tensor  # (N, G·H)
    h_all: Tensor  # (N + B, H): the states before and after every step; of ragged batches (N, H), those before
    c_all: Tensor  # (N + B, H); of ragged batches (2·N, H), before and then after


def _order(
    rows: int, batch: int, batch_sizes: tuple[int, ...] | None, reverse: bool, *slabs: Tensor
) -> list[tuple[int, int, tuple[Tensor, ...]]]:
    """(first row, rows, their views of the slabs) of each step, in the order of the recurrence.

    A slab has N rows. Its views are made at once, in a third of the time that single slices take.
    """
    if rows == 0:
        return []
    sizes = [batch] * (rows // batch) if batch_sizes is None else list(batch_sizes)
    views = zip(*(slab.split(sizes) for slab in slabs), strict=True)
    steps = list(zip(accumulate(sizes, initial=0), sizes, views, strict=False))
    return steps[::-1] if reverse else steps


def _at_once(weight_hh: Tensor, rows: int, batch: int, batch_sizes: tuple[int, ...] | None) -> int:
    """How many steps a layer has if one native call takes all of them; 0 if each is a call, between products."""
    steps = rows // batch if rows and batch_sizes is None else 0
    return steps if in_one_call(weight_hh, batch, steps) else 0


def _before_and_after(all_: Tensor, rows: int, batch: int, uniform: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states before and after each row's step, within what a forward pass has kept."""
    if not uniform:
        return all_[:rows], all_[rows:]
    first, second = all_[:rows], all_[batch:]
    return (second, first) if reverse else (first, second)


def _wide(t: Tensor | None, otherwise: float, width: int, dtype: torch.dtype) -> Tensor:
    if t is None:
        return torch.full((width,), otherwise, dtype=dtype, device="cpu")
    return t.detach().to(dtype).contiguous()


def _steps(
    spec: RecurrentSpec,
    parameters: Parameters,
    input: Tensor,
    state: Tensor,
    gates: Tensor | None,
    h: tuple[Tensor, Tensor],
    c: tuple[Tensor | None, Tensor | None],
) -> tuple[Any, tuple[Tensor, ...]]:
    """The native kernels bound to a layer's tensors; and the tensors made here, which the kernels do not keep alive."""
    where, width, dtype = spec.where, spec.gates * spec.hidden, compute_dtype(state.dtype)
    wide = (
        _wide(parameters.gain_ih, 1.0, width, dtype),
        _wide(parameters.gain_hh, 1.0, width, dtype),
        _wide(None if where.bias_inside else parameters.bias_ih, 0.0, width, dtype),
        _wide(parameters.bias_hh, 0.0, width, dtype),
        _wide(parameters.gain_cell, 1.0, spec.hidden, dtype),
    )
    steps = bindings.recurrent_steps(
        spec.gates,
        spec.hidden,
        spec.norm == "layer",
        spec.eps,
        [(*segment, spec.count(segment)) for segment in where.input],
        [(*segment, spec.count(segment)) for segment in where.state],
        spec.count((0, 1)) if where.cell else 0,
        where.update_bias,
        bool(bindings.FLAGS & native.OWN_THREADS),
        *map(bindings.handle, (None if where.joint else input, state, *h, *c, gates, *wide)),
    )
    return steps, wide


def forward(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Parameters,
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
    save: bool,
) -> Forward:
    """All steps of a layer, without autograd.

    x: (N, I), the rows of one step after another; h0, c0: (B, H); batch_sizes: the rows of each step, None if all have
    B; save: whether to keep what :func:`backward` needs.
    """
    rows, batch, hidden, width = x.shape[0], h0.shape[0], spec.hidden, spec.gates * spec.hidden
    uniform, where = batch_sizes is None, spec.where
    weight_ih, weight_hh, bias_ih = parameters.weight_ih, parameters.weight_hh, parameters.bias_ih
    input = product(x, weight_ih.detach(), bias_ih.detach() if bias_ih is not None and where.bias_inside else None)
    state = x.new_empty((rows if save else batch, width))
    gates = x.new_empty((rows, width)) if save else None

    def states(start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept, and the states before and after each row's step within it."""
        if not uniform:
            kept = x.new_empty((2 * rows, hidden))
        else:
            kept = x.new_empty((rows + batch, hidden))
            (kept[rows:] if reverse else kept[:batch]).copy_(start)
        return kept, *_before_and_after(kept, rows, batch, uniform, reverse)

    h_all, h_before, h_after = states(h0)
    c_all, c_before, c_after = (x.new_empty(0), None, None) if c0 is None else states(c0)
    steps, _keep = _steps(spec, parameters, input, state, gates, (h_before, h_after), (c_before, c_after))
    at_once = _at_once(weight_hh, rows, batch, batch_sizes)
    if at_once:
        added, matrix = input if where.joint else None, weight_hh.detach().contiguous()
        steps.forward_layer(bindings.handle(matrix), bindings.handle(added), at_once, batch, reverse)
    order = [] if at_once else _order(rows, batch, batch_sizes, reverse, h_before, state if save else h_before)
    from_state = step_product(weight_hh.detach(), batch, len(order))
    # If lengths differ, rows whose sequence has ended keep their state: (before, after, current) of h and of c.
    running: list[tuple[Tensor, Tensor, Tensor]] = []
    if not uniform:
        running.append((h_before, h_after, h0.clone()))
        if c0 is not None and c_before is not None and c_after is not None:
            running.append((c_before, c_after, c0.clone()))
    for row, count, (of_h, of_state) in order:
        end = row + count
        for before, _, now in running:
            before[row:end].copy_(now[:count])
        to = of_state if save else state[:count]
        from_state.write(of_h, to)
        if where.joint:
            to += input[row:end]
        steps.forward(row, count, row if save else 0)
        for _, after, now in running:
            now[:count].copy_(after[row:end])

    def last(start: Tensor | None, after: Tensor | None, at: int) -> Tensor:
        if start is None or after is None:
            return x.new_empty(0)
        if running:
            return running[at][2]
        return ((after[:batch] if reverse else after[rows - batch :]) if rows else start).clone()

    if not uniform and save:
        h_all = h_before
    # A caller may change the outputs in place, so they share no memory with what the backward pass needs.
    out = h_after.clone() if save or not uniform else h_after
    h_n, c_n = last(h0, h_after, 0), last(c0, c_after, 1)
    return Forward(out, h_n, c_n, input, state, x.new_empty(0) if gates is None else gates, h_all, c_all)


def backward(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    parameters: Parameters,
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
    kept: Forward,
    dout: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    wants_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None, Parameters]:
    """dx, dh0, dc0 and the gradients of the parameters."""
    rows, batch, hidden, width = x.shape[0], h0.shape[0], spec.hidden, spec.gates * spec.hidden
    uniform, where, lstm = batch_sizes is None, spec.where, spec.cell == "LSTM"
    h_before = _before_and_after(kept.h_all, rows, batch, uniform, reverse)[0]
    c = _before_and_after(kept.c_all, rows, batch, uniform, reverse) if lstm else (None, None)
    steps, _keep = _steps(spec, parameters, kept.input, kept.state, kept.gates, (h_before, h_before), c)

    def of_state(given: Tensor | None) -> Tensor:
        if given is None:
            return x.new_zeros((batch, hidden))
        return given.clone(memory_format=torch.contiguous_format)

    dh = of_state(dh_n)
    dc = of_state(dc_n) if lstm else None
    dstate = x.new_empty((rows, width))
    dinput = dstate if where.joint else torch.empty_like(dstate)
    dout = None if dout is None else dout.contiguous()
    tensors = (dout, None if where.joint else dinput, dstate, dh, dc)
    steps.prepare_backward(*map(bindings.handle, tensors), where.bias_inside)
    at_once = _at_once(parameters.weight_hh, rows, batch, batch_sizes)
    if at_once:
        matrix = parameters.weight_hh.detach().contiguous()  # it lives as long as the call: a handle may be an address
        steps.backward_layer(bindings.handle(matrix), at_once, reverse)
    order = [] if at_once else _order(rows, batch, batch_sizes, reverse, dstate)
    through = step_product(parameters.weight_hh.detach().t(), batch, len(order))
    for row, count, (of_dstate,) in reversed(order):
        steps.backward(row, count)
        through.add(of_dstate, dh if count == batch else dh[:count])

    sums = torch.empty(4 * width + hidden, dtype=torch.float64, device=x.device)
    steps.sums(bindings.handle(sums))
    dgain_ih, dgain_hh, dbias_ih, dbias_hh, dgain_cell = sums.split([width] * 4 + [hidden])
    if where.joint:
        dbias_ih = dinput.sum(0, dtype=torch.float64)
    summed = zip((dbias_ih, dbias_hh, dgain_ih, dgain_hh, dgain_cell), parameters[2:], strict=True)
    gradients = Parameters(
        dinput.t().mm(x),
        dstate.t().mm(h_before),
        *(None if p is None else g.to(p.dtype, copy=True) for g, p in summed),
    )
    return product(dinput, parameters.weight_ih.detach().t()) if wants_x else None, dh, dc, gradients
