"""The kernels as operators of ``torch.library``: what ``torch.compile`` and ``torch.export`` see.

``torch.ops.rmsnorm.*`` are defined for CPU and CUDA by the kernels, elsewhere by the composite, with fakes, autograd
of first and second order, and a batching rule. A result has the strides that ``torch.empty_like`` gives its input's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmsnorm.spec import check_spec
from rmsnorm.torch import checks, composite, eager

library = torch.library.Library("rmsnorm", "DEF")
_NAMES = "float? eps, float p, bool zero_centered, str casting"
library.define(f"rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, {_NAMES}) -> Tensor")
library.define(
    "rms_norm_backward(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    f"Tensor? plus, bool[] wants, {_NAMES}) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    f"{_NAMES}) -> (Tensor, Tensor)"
)
library.define(
    "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float? eps) -> Tensor"
)
library.define(
    "layer_norm_backward(Tensor dy, Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
    "bool[] wants, float? eps) -> (Tensor, Tensor, Tensor)"
)
_ops = torch.ops.rmsnorm


# ---- what the public functions call while a graph is being captured ----


def rms_norm(input, normalized_shape, weight, eps, *, bias, p, zero_centered, casting):
    """:func:`rmsnorm.torch.rms_norm` as one operator."""
    return _ops.rms_norm(input, _list(normalized_shape), weight, bias, eps, p, zero_centered, casting)


def layer_norm(input, normalized_shape, weight, bias, eps):
    """:func:`rmsnorm.torch.layer_norm` as one operator."""
    return _ops.layer_norm(input, _list(normalized_shape), weight, bias, eps)


def add_rms_norm(input, residual, normalized_shape, weight, eps, *, bias, p, zero_centered, casting):
    """:func:`rmsnorm.torch.add_rms_norm` as one operator."""
    return _ops.add_rms_norm(input, residual, _list(normalized_shape), weight, bias, eps, p, zero_centered, casting)


def _list(normalized_shape: int | Sequence[int]) -> list[int]:
    return [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)


# ---- implementations: kernels on CPU and CUDA, the composite elsewhere ----


def given(outputs, inputs):
    """Gradients laid out as what they are of. An operator's schema has no absent tensors: an empty one instead."""
    like = next((t for t in outputs if t is not None), inputs[0])
    return tuple(
        like.new_empty(0) if t is None else eager.laid_out(t, of) for t, of in zip(outputs, inputs, strict=True)
    )


def _rms_norm_kernel(input, shape, weight, bias, *how):
    return eager.rms_norm(input, shape, weight, bias, *how)


def _rms_norm_backward_kernel(dy, input, shape, weight, bias, plus, wants, *how):
    return given(eager.rms_norm_backward(dy, input, shape, weight, bias, wants, plus, *how), (input, weight, bias))


def _add_rms_norm_kernel(input, residual, shape, weight, bias, *how):
    return eager.add_rms_norm(input, residual, shape, weight, bias, *how)


def _layer_norm_kernel(input, shape, weight, bias, eps):
    return eager.layer_norm(input, shape, weight, bias, eps)


def _layer_norm_backward_kernel(dy, input, shape, weight, bias, wants, eps):
    return given(eager.layer_norm_backward(dy, input, shape, weight, bias, eps, wants), (input, weight, bias))


def _keywords(bias, p, zero_centered, casting):
    return {"bias": bias, "p": p, "zero_centered": zero_centered, "casting": casting}


def _rms_norm_any(input, shape, weight, bias, eps, *how):
    return eager.laid_out(composite.rms_norm(input, shape, weight, eps, **_keywords(bias, *how)), input)


def _rms_norm_backward_any(dy, input, shape, weight, bias, plus, wants, eps, *how):
    spec = check_spec(shape, eps, *how)
    dx, dweight, dbias = composite.rms_norm_backward(dy, input, weight, bias, spec, wants)
    return given((dx if plus is None or dx is None else dx + plus, dweight, dbias), (input, weight, bias))


def _add_rms_norm_any(input, residual, shape, weight, bias, eps, *how):
    normed, new = composite.add_rms_norm(input, residual, shape, weight, eps, **_keywords(bias, *how))
    return eager.laid_out(normed, input), eager.laid_out(new, residual)


def _layer_norm_any(input, shape, weight, bias, eps):
    return eager.laid_out(composite.layer_norm(input, shape, weight, bias, eps), input)


def _layer_norm_backward_any(dy, input, shape, weight, bias, wants, eps):
    spec = check_spec(shape, eps)
    return given(composite.layer_norm_backward(dy, input, weight, bias, spec, wants), (input, weight, bias))


# ---- fakes: shapes and dtypes, and the errors of wrong arguments ----


def _fake(input, shape, weight, bias, dtype=None):
    checks.check_tensors(tuple(shape), input, weight, bias)
    return torch.empty_like(input, dtype=dtype)


def _rms_norm_fake(input, shape, weight, bias, eps, *how):
    casting = _checked(eps, *how)
    return _fake(input, shape, weight, bias, eager.output_dtype(input, weight, bias, casting))


def _add_rms_norm_fake(input, residual, shape, weight, bias, eps, *how):
    checks.check_alike("residual", residual, input)
    casting, dtype = _checked(eps, *how), input.dtype
    if dtype == residual.dtype:
        dtype = eager.output_dtype(input, weight, bias, casting)
    return _fake(input, shape, weight, bias, dtype), _fake(residual, shape, None, None)


def _layer_norm_fake(input, shape, weight, bias, eps):
    _checked(eps)
    return _fake(input, shape, weight, bias)


def _checked(eps, *how):
    """The casting, all else being checked; the shape is left out, since its extents may be symbols here."""
    return check_spec(1, eps, *how).casting


def gradients_fake(input, weight, bias, wants):
    wanted = [t if w else None for t, w in zip((input, weight, bias), wants, strict=True)]
    like = next((t for t in wanted if t is not None), input)
    return tuple(like.new_empty(0) if t is None else torch.empty_like(t) for t in wanted)


def _rms_norm_backward_fake(dy, input, shape, weight, bias, plus, wants, eps, *how):
    return gradients_fake(input, weight, bias, wants)


def _layer_norm_backward_fake(dy, input, shape, weight, bias, wants, eps):
    return gradients_fake(input, weight, bias, wants)


# ---- autograd: the forward operators by the backward operators, those by the composite ----


def wanted(gradients, wants):
    return (g if w else None for g, w in zip(gradients, wants, strict=True))


def _save_rms_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(input, weight, bias)


def _rms_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.rms_norm_backward(dy, input, ctx.shape, weight, bias, None, wants, *ctx.how)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None, None, None, None


def _save_add_rms_norm(ctx, inputs, output):
    input, residual, ctx.shape, weight, bias, *ctx.how = inputs
    ctx.save_for_backward(output[1], weight, bias)
    ctx.dtypes = input.dtype, residual.dtype


def _add_rms_norm_autograd(ctx, dnormed, dnew):
    x, weight, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wants = [needs[0] or needs[1], needs[3], needs[4]]
    if ctx.dtypes[0] != ctx.dtypes[1]:
        dnormed = dnormed.to(x.dtype)
    gradients = _ops.rms_norm_backward(dnormed, x, ctx.shape, weight, bias, dnew, wants, *ctx.how)
    dsum, dweight, dbias = wanted(gradients, wants)
    dinput = dsum.to(ctx.dtypes[0]) if needs[0] else None
    return dinput, dsum if needs[1] else None, None, dweight, dbias, None, None, None, None


def _save_layer_norm(ctx, inputs, output):
    input, ctx.shape, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(input, weight, bias)


def _layer_norm_autograd(ctx, dy):
    input, weight, bias = ctx.saved_tensors
    wants = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _ops.layer_norm_backward(dy, input, ctx.shape, weight, bias, wants, ctx.eps)
    dx, dweight, dbias = wanted(gradients, wants)
    return dx, None, dweight, dbias, None


def save_inputs(ctx, inputs, output):
    tensors = {i: a for i, a in enumerate(inputs) if isinstance(a, Tensor)}
    ctx.places, ctx.inputs = list(tensors), [None if i in tensors else a for i, a in enumerate(inputs)]
    ctx.save_for_backward(*tensors.values())


def differentiated(expression: Callable, wants_at: int) -> Callable:
    """The autograd of a backward operator: its composite is built anew and differentiated."""

    def backward(ctx, *grads):
        args = list(ctx.inputs)
        with torch.enable_grad():
            for place, t in zip(ctx.places, ctx.saved_tensors, strict=True):
                args[place] = t.view_as(t)  # an alias, so that the search below ends here even if dy depends on x
            outputs = expression(*args)
        pairs = [(y, g) for y, g, w in zip(outputs, grads, args[wants_at], strict=True) if w and g is not None]
        pairs = [(y, g) for y, g in pairs if y.requires_grad]
        sources = [i for i in ctx.places if ctx.needs_input_grad[i]]
        result: list[Tensor | None] = [None] * len(args)
        if pairs and sources:
            ys, gs = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                ys, [args[i] for i in sources], gs, create_graph=torch.is_grad_enabled(), allow_unused=True
            )
            for i, g in zip(sources, found, strict=True):
                result[i] = g
        return tuple(result)

    return backward


# ---- batching: one call an example; vmap itself goes to the composite, only captured graphs come here ----


def _batched(operator: Callable) -> Callable:
    def rule(info, in_dims, *args):
        def example(i):
            return (a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))

        in_dims = tuple(d if isinstance(a, Tensor) else None for a, d in zip(args, in_dims, strict=True))
        outputs = [operator(*example(i)) for i in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(torch.stack(o) for o in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    return rule


def register(
    name: str, kernels: Callable, any_device: Callable, fake: Callable, backward: Callable, save: Callable
) -> None:
    library.impl(name, kernels, "CPU")
    library.impl(name, kernels, "CUDA")
    library.impl(name, any_device, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rmsnorm::{name}", fake, lib=library)
    torch.library.register_autograd(f"rmsnorm::{name}", backward, setup_context=save, lib=library)
    if hasattr(torch.library, "register_vmap"):  # torch >= 2.5
        torch.library.register_vmap(f"rmsnorm::{name}", _batched(getattr(_ops, name)), lib=library)


register("rms_norm", _rms_norm_kernel, _rms_norm_any, _rms_norm_fake, _rms_norm_autograd, _save_rms_norm)
register(
    "add_rms_norm",
    _add_rms_norm_kernel,
    _add_rms_norm_any,
    _add_rms_norm_fake,
    _add_rms_norm_autograd,
    _save_add_rms_norm,
)
register("layer_norm", _layer_norm_kernel, _layer_norm_any, _layer_norm_fake, _layer_norm_autograd, _save_layer_norm)
register(
    "rms_norm_backward",
    _rms_norm_backward_kernel,
    _rms_norm_backward_any,
    _rms_norm_backward_fake,
    differentiated(_rms_norm_backward_any, wants_at=6),
    save_inputs,
)
register(
    "layer_norm_backward",
    _layer_norm_backward_kernel,
    _layer_norm_backward_any,
    _layer_norm_backward_fake,
    differentiated(_layer_norm_backward_any, wants_at=5),
    save_inputs,
)
