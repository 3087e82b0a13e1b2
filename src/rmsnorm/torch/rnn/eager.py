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


def _steps(
    spec: RecurrentSpec,
    parameters: Parameters,
    input: Tensor,
    state: Tensor,
    gates: Tensor | None,
    h: tuple[Tensor, Tensor],
    c: tuple[Tensor | None, Tensor | None],
) -> Any:
    """The native kernels bound to a layer's tensors, which must be contiguous and outlive them."""
    where = spec.where
    _, _, bias_ih, bias_hh, gain_ih, gain_hh, gain_cell = parameters
    bias_ih = None if where.bias_inside else bias_ih
    tensors = (None if where.joint else input, state, *h, *c, gates, gain_ih, gain_hh, bias_ih, bias_hh, gain_cell)
    own_threads = bool(bindings.FLAGS & native.OWN_THREADS)
    return bindings.recurrent_steps(*spec.native, own_threads, *map(bindings.handle, tensors))


def _contiguous(parameters: Parameters) -> Parameters:
    return Parameters._make([None if t is None else t.contiguous() for t in parameters])


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
    parameters = _contiguous(parameters)
    weight_ih, weight_hh, bias_ih = parameters.weight_ih, parameters.weight_hh, parameters.bias_ih
    input = product(x, weight_ih, bias_ih if where.bias_inside else None)
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
    steps = _steps(spec, parameters, input, state, gates, (h_before, h_after), (c_before, c_after))
    # If lengths differ, rows whose sequence has ended keep their state: (before, after, current) of h and of c.
    running: list[tuple[Tensor, Tensor, Tensor]] = []
    if not uniform:
        running.append((h_before, h_after, h0.clone()))
        if c0 is not None and c_before is not None and c_after is not None:
            running.append((c_before, c_after, c0.clone()))
    at_once = _at_once(weight_hh, rows, batch, batch_sizes)
    if at_once:
        added = input if where.joint else None
        steps.forward_layer(bindings.handle(weight_hh), bindings.handle(added), at_once, batch, reverse)
    else:
        order = _order(rows, batch, batch_sizes, reverse, h_before, state if save else h_before)
        from_state = step_product(weight_hh, batch, len(order))
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
    parameters = _contiguous(parameters)
    h_before = _before_and_after(kept.h_all, rows, batch, uniform, reverse)[0]
    c = _before_and_after(kept.c_all, rows, batch, uniform, reverse) if lstm else (None, None)
    steps = _steps(spec, parameters, kept.input, kept.state, kept.gates, (h_before, h_before), c)

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
    weight_ih, weight_hh, *vectors = parameters
    at_once = _at_once(weight_hh, rows, batch, batch_sizes)
    if at_once:
        steps.backward_layer(bindings.handle(weight_hh), at_once, reverse)
    else:
        order = _order(rows, batch, batch_sizes, reverse, dstate)
        through = step_product(weight_hh.t(), batch, len(order))
        for row, count, (of_dstate,) in reversed(order):
            steps.backward(row, count)
            through.add(of_dstate, dh if count == batch else dh[:count])

    dvectors = [None if t is None else torch.empty_like(t) for t in vectors]
    dbias_ih, dbias_hh, dgain_ih, dgain_hh, dgain_cell = dvectors
    of_steps = (dgain_ih, dgain_hh, None if where.joint else dbias_ih, dbias_hh, dgain_cell)
    steps.sums(*map(bindings.handle, of_steps))
    if where.joint and dbias_ih is not None:
        dbias_ih.copy_(dinput.sum(0, dtype=torch.float64))
    gradients = Parameters(dinput.t().mm(x), dstate.t().mm(h_before), *dvectors)
    return product(dinput, weight_ih.t()) if wants_x else None, dh, dc, gradients
