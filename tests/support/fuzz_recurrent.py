"""The recurrences as fuzz_arguments.py calls them: layers and cells, and the operators that captured graphs hold."""

import random
from functools import partial
from typing import Any

import torch

import fuzz_oracles as oracles
from fuzz_targets import FLOATS, Target, draw, operator
from rmsnorm import torch as rt

ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh", "gain_cell")


def of_recurrent(r: random.Random, layer: type) -> dict[str, Any]:
    dtype, hidden = r.choice(FLOATS[:2]), r.choice([1, 3, 8])
    torch.manual_seed(r.randrange(1 << 30))
    module = layer(4, hidden, norm=r.choice(["rms", "layer", None]), eps=0.1).to(dtype)
    d = {"module": module, "input": draw(r, 3, 2, 4, dtype=dtype), "h": draw(r, 1, 2, hidden, dtype=dtype)}
    if layer is rt.LSTM:
        d["c"] = draw(r, 1, 2, hidden, dtype=dtype)
    name = r.choice([n for n, _ in module.named_parameters()])
    d[name] = draw(r, *module.get_parameter(name).shape, dtype=dtype)
    return d


def of_cell(r: random.Random, cell: type) -> dict[str, Any]:
    d = of_recurrent(r, rt.GRU if cell is rt.GRUCell else rt.LSTM)
    states = {n: d[n][0] for n in ("h", "c") if n in d}
    return {"cell": cell, "module": d["module"], "input": d["input"][0]} | states


def of_operator(r: random.Random, backward: bool = False) -> dict[str, Any]:
    """The forward pass's arguments; or the backward pass's, with what a forward pass has kept."""
    d = of_recurrent(r, r.choice([rt.GRU, rt.LSTM]))
    module, lstm, dtype = d["module"], "c" in d, d["input"].dtype
    sizes = r.choice([None, [2, 2, 2], [3, 2, 1]])
    batch = sizes[0] if sizes else 2
    tensors = {"x": d["input"].reshape(6, 4), "h0": draw(r, batch, module.hidden_size, dtype=dtype)}
    tensors["c0"] = draw(r, batch, module.hidden_size, dtype=dtype) if lstm else None
    for role in ROLES:
        p = getattr(module, role + "_l0", None)
        tensors[role] = None if p is None else p.detach().clone()
    how = {"cell": module.cell, "norm": module.norm, "p": module.p, "eps": module.eps, "placement": module.placement}
    how |= {"batch_sizes": sizes, "reverse": r.random() < 0.5}
    if not backward:
        return tensors | how | {"save": r.random() < 0.5}
    out, h_n, _, *kept = torch.ops.rmsnorm.recurrent(**tensors, **how, save=True)
    named = dict(zip(("input", "state", "gates", "h_all", "c_all"), kept, strict=True))
    outer = {"dout": torch.ones_like(out), "dh_n": torch.ones_like(h_n), "dc_n": torch.ones_like(h_n) if lstm else None}
    return tensors | named | outer | how


def through_module(module, input, h, c=None, **parameter):
    """The layer with one parameter replaced, and put back."""
    ((name, given),) = parameter.items()
    old = module._parameters[name]
    if not isinstance(given, torch.Tensor):
        raise TypeError("torch refuses such a parameter")
    module._parameters[name] = given
    try:
        out, last = module(input, h if not isinstance(module, rt.LSTM) else None if h is None and c is None else (h, c))
    finally:
        module._parameters[name] = old
    return [out, *(last if isinstance(last, tuple) else (last,))]


def through_cell(cell, module, input, h, c=None):
    """A cell with a layer's parameters."""
    dtype = module.weight_ih_l0.dtype
    made = cell(module.input_size, module.hidden_size, norm=module.norm, eps=module.eps, dtype=dtype)
    made.load_state_dict({name.removesuffix("_l0"): p for name, p in module.state_dict().items()})
    found = made(input, (h, c) if cell is rt.LSTMCell else h)
    return list(found) if isinstance(found, tuple) else [found]


TARGETS = [
    Target("GRU", through_module, partial(of_recurrent, layer=rt.GRU), oracles.recurrent),
    Target("LSTM", through_module, partial(of_recurrent, layer=rt.LSTM), oracles.recurrent),
    Target("GRUCell", through_cell, partial(of_cell, cell=rt.GRUCell), oracles.cell),
    Target("LSTMCell", through_cell, partial(of_cell, cell=rt.LSTMCell), oracles.cell),
    Target("ops.recurrent", partial(operator, "recurrent"), of_operator, oracles.anything),
    Target(
        "ops.recurrent_backward",
        partial(operator, "recurrent_backward"),
        partial(of_operator, backward=True),
        oracles.anything,
    ),
]
