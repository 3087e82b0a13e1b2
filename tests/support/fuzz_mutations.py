"""How fuzz_arguments.py changes an argument: (random numbers, the argument, the others) -> something else."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fuzz_reading import ARRAYS

# ---- tensors ----


def other_dtype(r, t, others):
    dtype = r.choice(DTYPES)
    if dtype in (torch.quint8, torch.qint8, torch.qint32):
        return torch.quantize_per_tensor(t.detach().float(), 0.1, 0, dtype)
    try:
        return t.to(dtype)
    except (RuntimeError, NotImplementedError):  # no conversion
        return torch.empty(t.shape, dtype=dtype)


def other_extent(r, t, others):
    shape = list(t.shape) or [1]
    shape[r.randrange(len(shape))] = r.choice([0, 1, 2, 7])
    return torch.randn(shape).to(t.dtype)


def other_rank(r, t, others):
    ways = [t[None], t[..., None], t.flatten(), t.new_ones(()), t.reshape((1,) * (64 - t.dim()) + t.shape)]
    return r.choice([*ways, t.reshape((1,) * 3 + t.shape), t.reshape((1,) * 70 + t.shape)])


def same_values_elsewhere(r, t, others):
    """The same numbers, strided, at another offset, with a flag for the sign."""
    if t.dim() == 0:
        return t.clone()
    room = torch.full((2 * t.numel() + 3,), float("nan"), dtype=t.dtype)
    ways = [
        lambda: t.mT.contiguous().mT if t.dim() > 1 else t.clone(),
        lambda: torch.stack([t, t], -1)[..., 0],
        lambda: torch.stack([t, t], 0)[1],
        lambda: torch.cat([t, t], -1)[..., t.shape[-1] :],
        lambda: room[3 : 3 + t.numel()].view(t.shape).copy_(t),
        lambda: torch._neg_view(-t),
        lambda: torch.complex(t.float(), -t.float()).conj().imag.to(t.dtype) if t.dtype == torch.float32 else t.clone(),
        lambda: t.clone().requires_grad_(),
        lambda: torch.nn.Parameter(t.clone(), requires_grad=False),
        lambda: t.clone().as_strided(
            t.shape, [s if e > 1 else r.choice([0, 1, 99]) for e, s in zip(t.shape, t.stride(), strict=True)]
        ),
    ]
    return r.choice(ways)()


def repeated_values(r, t, others):
    """Elements that are one place in memory: expanded, or windows that overlap."""
    if t.numel() == 0:
        return t
    window = torch.randn(sum(t.shape) + 8).to(t.dtype).as_strided(t.shape, (1,) * t.dim())
    return r.choice([t.reshape(-1)[:1].expand(t.shape), window, t[:1].expand(t.shape) if t.dim() else t])


def inference(t):
    with torch.inference_mode():
        return t.clone()


def freed(t):
    t = torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape)
    t.untyped_storage().resize_(0)
    return t


class Subclass(torch.Tensor):
    pass


def elsewhere(r, t, others):
    """Devices, layouts and kinds of tensor that the kernels do not know."""
    if t.is_neg() or t.requires_grad:
        return t
    ways = [
        lambda: t.to("meta"),
        lambda: t.to_sparse(),
        lambda: t.float().to_mkldnn(),
        lambda: t.as_subclass(Subclass),
        lambda: torch._subclasses.FakeTensorMode().from_tensor(t),
        lambda: (
            torch.nested.nested_tensor(list(t), layout=torch.jagged) if t.dim() > 1 and t.shape[0] else t.to("meta")
        ),
        lambda: torch._efficientzerotensor(t.shape, dtype=t.dtype),
        lambda: inference(t),
        lambda: freed(t),
    ]
    return r.choice(ways)()


def no_tensor(r, t, others):
    ways = [
        None,
        "tensor",
        1.0,
        3,
        [1.0] * 4,
        object(),
        torch.Size([2]),
        np.ones(4, np.float32),
        torch.float32,
        float("nan"),
    ]
    return r.choice(ways)


def shared(r, t, others):
    """Another argument itself, or a view that overlaps it or lies beside it in one storage."""
    tensors = [o for o in others if isinstance(o, torch.Tensor) and o.numel()]
    if not tensors:
        return t
    o = r.choice(tensors)
    room = o.untyped_storage().nbytes() // o.element_size()
    at = min(max(0, o.storage_offset() + r.choice([0, 1, -1, 4, o.numel()])), max(0, room - t.numel()))
    ways = [lambda: o, lambda: o.clone(), lambda: o.view(o.shape)]
    if t.numel() <= room:
        ways += [lambda: torch.as_strided(o.detach(), t.shape, t.contiguous().stride(), at)] * 3
    return r.choice(ways)()


def plain_number(r, value, others):
    numbers = [0, 1, -1, 0.0, 1e-300, 1e300, 0.5, 1.5, float("nan"), float("inf"), -1e-6, 10**400, 2**63, 2**70, True]
    return r.choice(
        [
            *numbers,
            None,
            "0.5",
            "once",
            "",
            [],
            [0.5],
            (),
            1j,
            np.float32(0.25),
            np.int64(2),
            object(),
            torch.tensor(0.25),
        ]
    )


def shape_like(r, value, others):
    full = (value,) if isinstance(value, int) else tuple(value)
    wrong = [
        (),
        [],
        -1,
        0,
        2**63,
        2**70,
        (*full, 1),
        full[1:],
        (1, *full),
        [-1],
        None,
        "8",
        8.0,
        [8.0],
        [None],
        (2**40, 2**40),
    ]
    right = [
        list(full),
        torch.Size(full) if full else (),
        full[0] if len(full) == 1 else full,
        tuple(np.int64(e) for e in full),
    ]
    return r.choice([*wrong, *right, *right])


# ---- arrays ----


def array_layout(r, a, others):
    if a.ndim == 0:
        return a
    unaligned = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype) if a.nbytes else a.ravel()
    unaligned = unaligned.reshape(a.shape)
    if a.nbytes:
        unaligned[...] = a
    ways = [
        lambda: np.asfortranarray(a),
        lambda: a[::-1],
        lambda: a[..., ::-1],
        lambda: np.repeat(a, 2, -1)[..., ::2],
        lambda: np.broadcast_to(a.ravel()[:1], a.shape) if a.size else a,
        lambda: unaligned,
        lambda: a.astype(a.dtype.newbyteorder()) if a.dtype in ARRAYS[:3] else a.copy(),
        lambda: np.ma.masked_array(a),
        lambda: a.view(np.matrix) if a.ndim == 2 else a.copy(),
        lambda: a.tolist(),
        lambda: (
            np.lib.stride_tricks.as_strided(a.copy(), a.shape, [a.itemsize] * a.ndim)
            if a.ndim > 1 and a.size
            else a.copy()
        ),
    ]
    return r.choice(ways)()


def array_dtype(r, a, others):
    codes = [
        "?",
        "b",
        "B",
        "h",
        "i",
        "q",
        "Q",
        "e",
        "f",
        "d",
        "g",
        "F",
        "D",
        "M8[s]",
        "m8[s]",
        "O",
        "S4",
        "U4",
        "i4,f4",
    ]
    dtype = r.choice([np.dtype(c) for c in codes] + list(ARRAYS))
    try:
        return a.astype(dtype)
    except (TypeError, ValueError):
        return np.zeros(a.shape, dtype)


def array_shape(r, a, others):
    shape = list(a.shape) or [1]
    shape[r.randrange(len(shape))] = r.choice([0, 1, 2, 7])
    ways = [
        np.ones(shape, a.dtype),
        a[None],
        a[..., None],
        a.ravel(),
        np.ones((), a.dtype),
        a.reshape((1,) * (60 - a.ndim) + a.shape),
    ]
    return r.choice(ways)


def array_shared(r, a, others):
    arrays = [o for o in others if isinstance(o, np.ndarray)]
    return r.choice([*arrays, *(o[::-1] for o in arrays if o.ndim), *(o.T for o in arrays)]) if arrays else a


def read_only(r, a, others):
    a = a.copy()
    a.flags.writeable = False
    return a


def axis_like(r, value, others):
    return r.choice(
        [0, -1, 1, 5, -9, (0, 1), (0, 0), (1, 0), [], [0], None, "0", 0.0, 2**70, (-1, -2), True, np.int64(-1)]
    )


def bool_like(r, value, others):
    return r.choice([not value, 1, 0, None, "yes", 2, [], np.bool_(True), 1.0])


def word(r, value, others):
    return r.choice(["once", "llama", "twice", "", None, 1, b"once"])


DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)
TENSOR = [
    other_dtype,
    other_extent,
    other_rank,
    same_values_elsewhere,
    same_values_elsewhere,
    repeated_values,
    elsewhere,
    no_tensor,
    shared,
]
ARRAY = [array_layout, array_layout, array_dtype, array_shape, array_shared, read_only, no_tensor]


def changed(r: random.Random, arguments: dict[str, Any]) -> tuple[str, str, Any]:
    """(which argument, how, its new value)."""
    name = r.choice([n for n in arguments if n not in ("module", "cell")])
    value = arguments[name]
    others = [v for n, v in arguments.items() if n != name]
    if name == "normalized_shape":
        how: Callable = shape_like
    elif name == "axis":
        how = axis_like
    elif name == "casting":
        how = word
    elif isinstance(value, bool):
        how = bool_like
    elif isinstance(value, torch.Tensor):
        how = r.choice(TENSOR)
    elif isinstance(value, np.ndarray):
        how = r.choice(ARRAY)
    elif name == "dtype":
        return name, "another dtype", r.choice([*DTYPES, None, "int8", np.int8])
    elif value is None or isinstance(value, list):
        how = no_tensor
    else:
        how = plain_number
    return name, how.__name__, how(r, value, others)
