"""A layer as a loop of torch's operations: any device, transform and order of derivative.

The norms are this package's functions, so that their kernels serve where a device has them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmsnorm.torch import functional
from rmsnorm.torch.norm.composite import compute_dtype
from rmsnorm.torch.rnn.spec import RecurrentSpec, Segments


def _normalize(spec: RecurrentSpec, x: Tensor, segments: Segments, gain: Tensor | None) -> Tensor:
    """x̂ ⊙ gain in the computation dtype, with one statistic for each segment."""
    x = x.to(compute_dtype(x.dtype))
    if not segments:
        return x
    parts = []
    for first, last in segments:
        part = x[..., first * spec.hidden : last * spec.hidden]
        g = None if gain is None else gain[first * spec.hidden : last * spec.hidden]
        if spec.norm == "layer":
            parts.append(functional.layer_norm(part, part.shape[-1], g, None, spec.eps))
        else:
            parts.append(functional.rms_norm(part, part.shape[-1], g, spec.eps, p=spec.p))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def step(
    spec: RecurrentSpec, a: Tensor, h: Tensor, c: Tensor | None, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """The next (h, c) from a = W_ih x + b_ih, or from W_ih x if b_ih is added after the norm."""
    _, weight_hh, bias_ih, bias_hh, gain_ih, gain_hh, gain_cell = parameters
    where = spec.where
    state = torch.nn.functional.linear(h, weight_hh)  # type: ignore[arg-type]
    if where.joint:
        a, state = torch.zeros_like(a), a + state
    a = _normalize(spec, a, where.input, gain_ih)
    a = a if where.bias_inside else _plus(a, bias_ih)
    state = _plus(_normalize(spec, state, where.state, gain_hh), bias_hh)
    if c is None:
        a_r, a_z, a_n = a.chunk(3, -1)
        s_r, s_z, s_n = state.chunk(3, -1)
        reset, update = torch.sigmoid(a_r + s_r), torch.sigmoid(a_z + s_z + where.update_bias)
        fresh = torch.tanh(a_n + reset * s_n)
        return (fresh + update * (h.to(fresh.dtype) - fresh)).to(h.dtype), None
    i, f, g, o = (a + state).chunk(4, -1)
    new = (torch.sigmoid(f) * c.to(f.dtype) + torch.sigmoid(i) * torch.tanh(g)).to(c.dtype)
    seen = _normalize(spec, new, ((0, 1),) if where.cell else (), gain_cell)
    return (torch.sigmoid(o) * torch.tanh(seen)).to(h.dtype), new


def forward(
    spec: RecurrentSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Sequence[Tensor | None],
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, h_n, c_n) of all steps; the arguments are those of :func:`rmsnorm.torch.rnn.eager.forward`."""
    weight_ih, _, bias_ih, *_ = parameters
    batch = h0.shape[0]
    if batch_sizes is None:
        batch_sizes = (batch,) * (x.shape[0] // batch if batch else 0)
    a = torch.nn.functional.linear(x, weight_ih, bias_ih if spec.where.bias_inside else None)  # type: ignore[arg-type]
    sides = a.split(list(batch_sizes)) if batch_sizes else ()
    outputs: list[Tensor] = []
    h, c = h0, c0
    for side in reversed(sides) if reverse else sides:
        count = side.shape[0]
        new_h, new_c = step(spec, side, h[:count], None if c is None else c[:count], parameters)
        outputs.append(new_h)
        if count < batch:  # sequences that have ended (or, in reverse, not begun) keep their state
            new_h = torch.cat((new_h, h[count:]))
            new_c = None if new_c is None or c is None else torch.cat((new_c, c[count:]))
        h, c = new_h, new_c
    if not outputs:
        return h0.new_zeros((x.shape[0], spec.hidden)), h.clone(), None if c is None else c.clone()
    return torch.cat(outputs[::-1] if reverse else outputs), h, c


def backward(
    spec: RecurrentSpec,
    inputs: Sequence[Tensor | None],
    batch_sizes: tuple[int, ...] | None,
    reverse: bool,
    gradients: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of :func:`forward` as a differentiable expression, for those inputs that need one.

    By torch.func.vjp: inputs may depend on one another (a state on the input), need not require a gradient, and may
    belong to a transform.
    """
    places = [i for i, (t, need) in enumerate(zip(inputs, needs, strict=True)) if need and t is not None]

    def outputs(*wanted: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        for i, t in zip(places, wanted, strict=True):
            given[i] = t
        x, h0, c0, *parameters = given
        results: Sequence[Tensor | None] = forward(spec, x, h0, c0, parameters, batch_sizes, reverse)  # type: ignore[arg-type]
        return tuple(y for y, dy in zip(results, gradients, strict=False) if dy is not None and y is not None)

    pull = torch.func.vjp(outputs, *[inputs[i] for i in places])[1]
    found = dict(zip(places, pull(tuple(dy for dy in gradients if dy is not None)), strict=True))
    return [found.get(i) for i in range(len(inputs))]
