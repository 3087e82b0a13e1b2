"""How an operator of ``torch.library`` is made from kernels and a torch expression that computes the same.

Where ops.cpp was built, it defines the operators and serves usual calls on CPU tensors without entering Python. What it
leaves (gradients, transforms, layouts to be copied, wrong arguments) goes to an operator of the same name with an
underscore, which has what this file registers for the CPU.

``torch.library.register_autograd`` has no forward mode (it drops tangents without an error), and its nodes have no
``setup_context``, without which ``torch.func`` refuses them. So the Autograd key gets a function of ours: under forward
mode and under transforms the operator is its expression, which torch differentiates and maps over by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from rmsnorm.spec import check_same
from rmsnorm.torch.bindings import FAKE, load_operators
from rmsnorm.torch.dispatch import forward_mode, transformed
from rmsnorm.torch.onnx import exporting
from rmsnorm.torch.operation import Operation, Tensors, Wants, run, run_composite, wanted
from rmsnorm.torch.schemas import SCHEMAS

library = torch.library.Library("rmsnorm", "FRAGMENT")
why_no_operators = load_operators()
"""Why the CPU's operators go through Python. None: ops.cpp has them."""


class Node(NamedTuple):
    """The autograd of a forward operator: (ctx, inputs, output) and (ctx, *gradients) as torch.library takes them."""

    save: Callable[..., None]
    backward: Callable[..., tuple]


def register(
    name: str, kernels: Callable, expression: Callable, fake: Callable, node: Node | None = None, anywhere: bool = True
) -> None:
    """Defines what the operator ``name`` does for each key of the dispatcher; its schema is in schemas.py, or known to
    the library.

    kernels: on CPU and CUDA; expression: the same in torch's operations; fake: shapes and dtypes; node: how it is
    differentiated, None where that is done through the expression (backward operators); anywhere: whether the
    expression serves other devices too.
    """
    in_cpp = not why_no_operators and name in SCHEMAS
    if not in_cpp and name in SCHEMAS:
        library.define(name + SCHEMAS[name])
    operator = getattr(torch.ops.rmsnorm, name).default
    expression, fake = _on_one_device(operator, expression), _on_one_device(operator, fake)
    autograd = _autograd(operator, expression, node)
    if in_cpp:
        library.define(f"_{name}{SCHEMAS[name]}")
        library.impl(f"_{name}", autograd, "AutogradCPU", with_keyset=True)
    library.impl(f"_{name}" if in_cpp else name, kernels, "CPU")
    if anywhere:
        library.impl(name, kernels, "CUDA")
        library.impl(name, expression, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rmsnorm::{name}", fake, lib=library)
    library.impl(name, autograd, "Autograd", with_keyset=True)
    library.impl(name, expression, "FuncTorchBatched")
    # An entry in torch's table of decompositions would do the same, but fake tensors of symbolic sizes and Inductor
    # (where the environment sets CI) read that table too, and fail.
    torch.library.register_torch_dispatch(
        f"rmsnorm::{name}", ProxyTorchDispatchMode, _expanded(expression), lib=library
    )


def _expanded(expression: Callable) -> Callable:
    """How a graph is traced over the operator: as one node, and as its expression for ``torch.onnx.export``."""

    def trace(mode, operator, types, args, kwargs):
        if not exporting():
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            return expression(*args)

    return trace


def _on_one_device(operator: Any, function: Callable) -> Callable:
    """``function``, of tensors on one device. A meta tensor among others takes a call to the fake, whose results on a
    real device would be uninitialised memory; the kernels check what they decline."""
    names = [argument.name for argument in operator._schema.arguments]

    def checked(*args):
        (of, first), *others = ((name, t) for name, t in zip(names, args, strict=True) if isinstance(t, Tensor))
        for name, t in others:
            check_same(name, t.device, of, first.device, "device")
        return function(*args)

    return checked


def _autograd(operator: Any, expression: Callable, node: Node | None) -> Callable:
    def below(keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    differentiable = (lambda *args: expression(*args[:-1])) if node is None else _function(operator, node, below)

    def choose(keyset, *args):
        if transformed():
            _refuse_in_graphs(operator)
            return expression(*args)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return differentiable(*args, keyset)
        return below(keyset, args)

    return choose


def _function(operator: Any, node: Node, below: Callable) -> Callable:
    """The node as an autograd.Function of (*args, keyset)."""

    def forward(ctx, *args):
        *inputs, keyset = args
        output = below(keyset, inputs)
        node.save(ctx, inputs, output)
        return output

    def backward(ctx, *gradients):
        return *node.backward(ctx, *gradients), None

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(operator.name().replace("::", "_"), (torch.autograd.Function,), members)
    return function.apply


def _refuse_in_graphs(operator: Any) -> None:
    """Dual numbers in a compiled graph: when it runs, nothing but the graph knows that its level was entered."""
    dual = forward_mode() and torch._C._functorch.peek_interpreter_stack() is None
    if dual and torch._guards.TracingContext.try_get() is not None:
        raise NotImplementedError(
            f"torch.ops.{operator.name().replace('::', '.')} takes no dual numbers of a level that is entered within "
            "a compiled function; call the function of rmsnorm.torch, or use torch.func.jvp"
        )


# ---- families of operations ----


def register_operation(
    name: str,
    operation: Operation,
    parse: Callable[..., tuple],
    specs: tuple[Callable[..., Any], Callable[..., Any]],
    node: Node | None = None,
    kernels: Callable[..., Tensors] = run,
) -> None:
    """:func:`register` of an operation.

    parse: (make, *the operator's arguments) → (spec, tensors, *wants); specs: how a spec is made, and how in a graph,
    where extents may be symbols; kernels: (operation, spec, tensors, *wants) → results.
    """
    make, make_fake = specs

    def served(*args):
        spec, tensors, *wants = parse(make, *args)
        return _outputs(kernels(operation, spec, tensors, *wants), tensors, *wants)

    def expression(*args):
        spec, tensors, *wants = parse(make, *args)
        return _outputs(run_composite(operation, spec, tensors, *wants), tensors, *wants)

    def fake(*args):
        spec, tensors, *wants = parse(make_fake, *args)
        operation.check(spec, *tensors)
        return _outputs(operation.attempt(FAKE, spec, tensors, *(wants or [None])) or (), tensors, *wants)

    register(name, served, expression, fake, node)


def _outputs(results: Tensors, tensors: Tensors, wants: Wants | None = None) -> Any:
    """A forward operator's results without those that its operation lacks; a backward operator's, where an empty tensor
    takes the place of what is not wanted: a schema has no absent tensors."""
    if wants is None:
        given = tuple(t for t in results if t is not None)
        return given if len(given) > 1 else given[0]
    results = wanted(results, wants)
    like = next((t for t in results if t is not None), tensors[0])
    return tuple(like.new_empty(0) if t is None else t for t in results)
