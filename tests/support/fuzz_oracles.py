"""What a call of a public function must give, for fuzz_arguments.py.

An oracle takes the arguments as they are passed. It returns the right results in float64 by ``rmsnorm.reference`` (or
plain_rnn.py), or raises :class:`Refused` where the documentation does not allow the arguments. ``UNSURE`` arguments may
be refused, or give the right result.
"""

import math
from typing import Any

import numpy as np
import torch

import plain_rnn
from fuzz_reading import (
    NO,
    UNSURE,
    Left,
    Refused,
    Unknown,
    addresses,
    array,
    count,
    eps_of,
    extents,
    flag,
    flat,
    is_freed,
    is_tensor,
    must,
    parameters,
    places,
    values,
)
from rmsnorm import reference
from rmsnorm import torch as rt


def norm_oracle(kind, x, shape, weight, bias, eps, k_of, zero_centered=False, dtype=None, read=values, grads=None):
    """y of ``x`` in float64, or with ``grads`` = dy its gradients (dx, dweight, dbias)."""
    rows = flat(x, shape)
    g, b = parameters(shape, x, read, weight, bias)
    eps, k = eps_of(eps, dtype), k_of(rows.shape[-1])
    if 0 < eps < 1e-70 and kind == "layer":  # 1/√eps of a constant row is no float32
        raise Unknown
    extra = {} if kind == "layer" else {"k": k, "zero_centered": zero_centered}
    if rows.shape[-1] == 0:
        nothing = (x, *(None if t is None else np.zeros(t.shape) for t in (g, b)))
        return nothing if grads is not None else rows.reshape(x.shape)
    if grads is None:
        y = {"rms": reference.rms_norm, "layer": reference.layer_norm}[kind](rows, g, b, eps=eps, **extra)
        return y.reshape(x.shape)
    like = g if g is not None else b if b is not None and b.ndim == 2 else None
    if g is None and like is not None:  # a bias of each head alone: summed as a gain of ones would be
        like = np.zeros_like(like) if zero_centered else np.ones_like(like)
    vjp = {"rms": reference.rms_norm_vjp, "layer": reference.layer_norm_vjp}[kind]
    dx, dg, db = vjp(flat(grads, shape), rows, like, eps=eps, **extra)
    return dx.reshape(x.shape), None if g is None else dg, None if b is None else db


def out_oracle(y: np.ndarray, out: Any, input: torch.Tensor, dtype: torch.dtype, *others: Any) -> None:
    if out is None:
        return
    must(is_tensor(out) and out.shape == y.shape and out.dtype == dtype and out.device == input.device)
    values(out)
    must(not out.is_neg() and not out.requires_grad)
    mine = places(out)
    must(len(np.unique(mine)) == out.numel() * out.element_size())
    same = out.data_ptr() == input.data_ptr() and out.stride() == input.stride()
    for t in others if same else (input, *others):
        if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
            must(not np.intersect1d(mine, places(t)).size)
            UNSURE.append("whether memory is shared is found out by extents where that is too hard")


def promoted(input, casting, *others):
    must(casting in ("once", "llama"))
    dtype = input.dtype
    for t in others if casting == "llama" else ():
        dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return dtype


def rms_norm(input, normalized_shape, weight, eps, bias, p, zero_centered, casting, out=None, dy=NO):
    x = values(input)
    shape = extents(normalized_shape, x.shape)
    how = (eps, lambda n: count(n, p), flag(zero_centered), input.dtype)
    y = norm_oracle("rms", x, shape, weight, bias, *how)
    dtype = promoted(input, casting, weight, bias)
    out_oracle(y, out, input, dtype, weight, bias)
    if dy is NO:
        return [y]
    return gradients("rms", x, dy, dtype, shape, weight, bias, *how)


def gradient(dy: Any, dtype: torch.dtype) -> np.ndarray:
    """Autograd converts a gradient of another dtype, and expands it to the result's shape."""
    must(is_tensor(dy))
    if dy.dtype != dtype:
        raise Unknown
    return values(dy)


def gradients(kind, x, dy, dtype, shape, weight, bias, *how):
    grad = gradient(dy, dtype)
    must(grad.shape == x.shape)
    return list(norm_oracle(kind, x, shape, weight, bias, *how, grads=grad))


def layer_norm(input, normalized_shape, weight, bias, eps, out=None, dy=NO):
    x = values(input)
    shape = extents(normalized_shape, x.shape)
    how = (eps, lambda n: n, False, input.dtype)
    y = norm_oracle("layer", x, shape, weight, bias, *how)
    out_oracle(y, out, input, input.dtype, weight, bias)
    return [y] if dy is NO else gradients("layer", x, dy, input.dtype, shape, weight, bias, *how)


def summed(input: torch.Tensor, residual: torch.Tensor) -> np.ndarray:
    must(values(input).shape == values(residual).shape)
    total = (input.to(torch.promote_types(input.dtype, residual.dtype)) + residual).to(residual.dtype)
    return total.detach().clone().double().numpy()


def add_rms_norm(input, residual, normalized_shape, weight, eps, bias, p, zero_centered, casting, inplace=False):
    must(casting in ("once", "llama"))
    x, s = values(input), summed(input, residual)
    how = (eps, lambda n: count(n, p), flag(zero_centered), residual.dtype)
    y = norm_oracle("rms", s, extents(normalized_shape, x.shape), weight, bias, *how)
    if inplace:
        promoted(input, casting, weight, bias)
        written = (input, residual)
        must(not any(t.requires_grad for t in (*written, weight, bias) if t is not None))
        for i, t in enumerate(written):
            mine = places(t)
            must(len(np.unique(mine)) == t.numel() * t.element_size())
            for other in (*written[i + 1 :], weight, bias):
                if other is not None and other.untyped_storage().data_ptr() == t.untyped_storage().data_ptr():
                    must(not np.intersect1d(mine, places(other)).size)
                    UNSURE.append("extents")
        if input.dtype == residual.dtype and promoted(input, casting, weight, bias) != input.dtype:
            raise Refused
    return [y, s]


def gated(input, gate, normalized_shape, weight, eps, norm_before_gate, groups, p, dy=NO):
    x, z = values(input), values(gate)
    must(x.shape == z.shape)
    shape = extents(normalized_shape, x.shape)
    n = math.prod(shape)
    if type(groups) is not int:
        UNSURE.append("something like an int")
    must(not isinstance(groups, (bool, str)) and hasattr(groups, "__index__") and groups >= 1 and n % groups == 0)
    if groups > max(n, 1):
        raise Unknown
    w = None if weight is None else values(weight)
    must(w is None or w.shape == shape)
    how = {"k": count(n // groups, p), "eps": eps_of(eps, input.dtype), "norm_before_gate": flag(norm_before_gate)}
    grad = None if dy is NO else gradient(dy, input.dtype)
    must(grad is None or grad.shape == x.shape)
    if n == 0:
        return [x] if grad is None else [x, x, w]
    a, b, g = flat(x, shape), flat(z, shape), None if w is None else w.ravel()
    if grad is None:
        return [reference.rms_norm_gated(a, b, g, groups=int(groups), **how)]
    da, dz, dg = reference.rms_norm_gated_vjp(flat(grad, shape), a, b, g, groups=int(groups), **how)
    return [da, dz, None if w is None else dg]


def quantized(input, normalized_shape, weight, eps, dtype, p):
    must(isinstance(dtype, torch.dtype) and dtype in (torch.int8, torch.float8_e4m3fn))
    x = values(input)
    y = norm_oracle(
        "rms", x, extents(normalized_shape, x.shape), weight, None, eps, lambda n: count(n, p), False, input.dtype
    )
    return [y]  # codes times scale


def quantized_sum(input, residual, normalized_shape, weight, eps, dtype, p):
    s = summed(input, residual)
    (y,) = quantized(torch.from_numpy(s).to(residual.dtype), normalized_shape, weight, eps, dtype, p)
    return [y, s]


def numpy_quantized(x, weight, axis, eps, dtype, p, residual=NO):
    try:
        name = np.dtype(dtype).name
    except Exception as error:
        raise Refused from error
    must(name in ("int8", "float8_e4m3fn"))
    return numpy_norm("rms", x, weight, None, axis, eps, p, residual=residual)  # codes times scale


def recurrent(module, input, h, c=None, **parameter):
    x = values(input)
    must(input.dtype == module.weight_ih_l0.dtype and x.ndim == 3 and x.shape[-1] == module.input_size)
    states = []
    for s in (h, c) if isinstance(module, rt.LSTM) else (h,):
        if s is not None:
            must(values(s).shape == (1, x.shape[1], module.hidden_size) and s.dtype == input.dtype)
            s = torch.from_numpy(values(s))
        states.append(torch.zeros(1, x.shape[1], module.hidden_size, dtype=torch.float64) if s is None else s)
    for name, p in parameter.items():
        usual = isinstance(p, torch.Tensor) and p.dtype == input.dtype
        if not usual or values(p).shape != module.get_parameter(name).shape:
            raise Unknown  # parameters are the module's own
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise Unknown
    wide = type(module)(module.input_size, module.hidden_size, norm=module.norm, p=module.p, eps=module.eps).double()
    wide.load_state_dict({k: parameter.get(k, v).detach() for k, v in module.state_dict().items()})
    with torch.no_grad():
        h, c = states if len(states) == 2 else (states[0], None)
        found = plain_rnn.run(wide, torch.from_numpy(x), [x.shape[0]] * x.shape[1], h, c)
    return [t.numpy() for t in found if t is not None]


def cell(cell, module, input, h, c=None):
    must(input is not None)
    layered = [None if t is None else torch.from_numpy(values(t)).to(t.dtype)[None] for t in (input, h, c)]
    if any(t is not None and t.dim() != 3 for t in layered):
        raise Unknown
    return [t[0] for t in recurrent(module, *layered)[1:]]


def anything(**arguments):
    """An operator that only the layers call: whatever it is given, it must not do harm.

    Freed tensors are left out: torch's own clone() of one, which the operator calls, ends the process.
    """
    raise Left if any(is_freed(t) for t in arguments.values()) else Unknown


def numpy_norm(kind, x, weight, bias, axis, eps, p=1.0, zero_centered=False, out=None, residual=NO, dy=NO):
    """NumPy's functions: forward, with a residual, or backward (``dy``; then ``bias`` says whether there was one)."""
    given, x = x, array(x)
    if type(axis) not in (int, tuple):
        UNSURE.append("something like an axis")
    try:
        axes = (axis,) if hasattr(axis, "__index__") else tuple(axis)
        axes = tuple(sorted(a.__index__() % x.ndim for a in axes if -x.ndim <= a.__index__() < x.ndim or must(False)))
    except Refused:
        raise
    except Exception as error:
        raise Refused from error
    must(axes and len(set(axes)) == len(axes))
    dtype = np.asarray(given).dtype.newbyteorder("=")
    results = []
    if residual is not NO:
        r, stream = array(residual), np.asarray(residual).dtype
        must(r.shape == x.shape)
        x = (x.astype(np.float64) + r).astype(np.float32 if np.float64 not in (dtype, stream) else np.float64)
        x = x.astype(stream).astype(np.float64)
        results.append(x)
        dtype = stream.newbyteorder("=")

    def back_again(t):
        return np.moveaxis(t, range(-len(axes), 0), axes)

    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = np.moveaxis(x, axes, last)
    shape = moved.shape[moved.ndim - len(axes) :]
    how = (eps, lambda n: count(n, p), flag(zero_centered), dtype, array)
    if dy is not NO:
        must(array(dy).shape == x.shape)
        grad = np.moveaxis(array(dy), axes, last)
        one = np.zeros(shape if weight is None else array(weight).shape) if flag(bias) else None
        dx, dg, db = norm_oracle(kind, moved, shape, weight, one, *how, grads=grad)
        return [back_again(dx), dg, db]
    y = back_again(norm_oracle(kind, moved, shape, weight, bias, *how))
    if out is not None:
        must(isinstance(out, np.ndarray) and out.shape == y.shape and out.dtype == dtype and out.flags.writeable)
        must(len(np.unique(addresses(out))) == out.nbytes)
        if any(isinstance(t, np.ndarray) and np.may_share_memory(out, t) for t in (weight, bias)):
            raise Unknown
        must(
            not isinstance(given, np.ndarray)
            or out is given
            or not np.may_share_memory(out, given)
            or UNSURE.append(1) is None
        )
    return [y, *results]


def module_oracle(kind, input, normalized_shape, eps, p=1.0, zero_centered=False, casting="once", bias=False):
    x = values(input)
    must(casting in ("once", "llama"))
    flag(bias)
    how = (eps, lambda n: count(n, p), flag(zero_centered), input.dtype)
    if casting == "llama":
        UNSURE.append("the dtype of the gain")
    return [norm_oracle(kind, x, extents(normalized_shape, x.shape), None, None, *how)]


def of_operator(oracle, **arguments):
    """torch converts an operator's arguments by its schema, and asks for a list where functions take an int too."""
    UNSURE.append("a schema")
    try:
        return oracle(**arguments)
    except Refused:
        tensors = ("input", "residual", "gate", "dy", "q", "k", "cos", "sin")
        if any(not isinstance(arguments[n], torch.Tensor) for n in tensors if n in arguments):
            raise Unknown from None
        usual = {
            "eps": (float, int),
            "p": (float,),
            "zero_centered": (bool,),
            "norm_before_gate": (bool,),
            "groups": (int,),
        }
        if any(type(arguments[n]) not in types for n, types in usual.items() if n in arguments):
            raise Unknown from None
        if type(arguments.get("casting", "")) is not str or not isinstance(
            arguments.get("normalized_shape", ()), tuple
        ):
            raise Unknown from None
        raise


def operator_gradients(oracle, plus=None, wants=None, **arguments):
    if plus is not None or not isinstance(wants, list) or len(wants) != 3 or not all(type(w) is bool for w in wants):
        raise Unknown
    bias = arguments["bias"]
    usual = type(bias) is torch.Tensor and bias.device.type == "cpu" and not is_freed(bias)
    if bias is not None and not usual:  # its memory is not read
        raise Unknown
    found = of_operator(oracle, **arguments)
    return [g if w else None for g, w in zip(found, wants, strict=True)]
