"""Every transform of torch, as f ↦ a function of f's three arguments; and how two results are compared."""

import torch
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx


def scalar(f):
    return lambda *given: f(*given).sin().sum()


def many(given):
    """Three examples of each; the last dimension of the gain's batch."""
    x, other, weight = given
    return torch.stack((x, 2 * x, x - 1)), torch.stack((other, -other, other.cos())), torch.stack((weight,) * 3, -1)


def dual(f):
    def tangent(*given):
        with forward_ad.dual_level():
            y = f(*(forward_ad.make_dual(t, t.cos()) for t in given))
            return forward_ad.unpack_dual(y).tangent

    return tangent


ALL = (0, 1, 2)
TRACED = {  # what Dynamo takes into a graph
    "nothing": lambda f: f,
    "grad": lambda f: grad(scalar(f), ALL),
    "vjp": lambda f: lambda *given: vjp(f, *given)[1](given[0].cos()),
    "jvp": lambda f: lambda *given: jvp(f, given, tuple(t.cos() for t in given)),
    "dual numbers": dual,
    "jacrev": lambda f: jacrev(f, ALL),
    "jacfwd": lambda f: jacfwd(f, ALL),
    "hessian": lambda f: hessian(scalar(f), ALL),
    "jacrev of jacrev": lambda f: jacrev(jacrev(scalar(f), ALL), ALL),
    "vmap": lambda f: lambda *given: vmap(f, (0, 0, None))(*many(given)[:2], given[2]),
    "vmap, also of gains": lambda f: lambda *given: vmap(f, (0, 0, -1), 1)(*many(given)),
    "vmap of grad": lambda f: lambda *given: vmap(grad(scalar(f), ALL), (0, 0, -1))(*many(given)),
    "grad of vmap": lambda f: grad(lambda *given: vmap(scalar(f), (0, 0, -1))(*many(given)).sum(), ALL),
}


def leaves(given):
    return [t.detach().clone().requires_grad_() for t in given]


def batched_gradients(f):
    def run(*given):
        given = leaves(given)
        y = f(*given)
        return torch.autograd.grad(y, given, torch.stack((y.detach(), y.detach().cos())), is_grads_batched=True)

    return run


def negative_gradient(f):
    def run(*given):
        given = leaves(given)
        y = f(*given)
        return torch.autograd.grad(y, given, torch._neg_view(-y.detach()))

    return run


def gradient_of_gradient(f):
    def run(*given):
        given = leaves(given)
        first = torch.autograd.grad(f(*given).sin().sum(), given, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), given)

    return run


def dual_gradient(f):
    """Forward over reverse: only what reaches the backward pass is dual."""

    def run(*given):
        given = leaves(given)
        y = f(*given)
        with forward_ad.dual_level():
            found = torch.autograd.grad(y, given, forward_ad.make_dual(y.detach(), y.detach().cos()))
            return [forward_ad.unpack_dual(t).tangent for t in found]

    return run


EAGER = {  # what Dynamo breaks a graph at, or leaves to Python
    "functionalize": functionalize,
    "make_fx": lambda f: lambda *given: make_fx(f)(*given)(*given),
    "make_fx of grad": lambda f: lambda *given: make_fx(grad(scalar(f), ALL))(*given)(*given),
    "make_fx, pre-dispatch": lambda f: lambda *given: make_fx(f, pre_dispatch=True)(*given)(*given),
    "negative view": lambda f: lambda *given: f(*(torch._neg_view(-t) for t in given)),
    "negative gradient": negative_gradient,
    "batched gradients": batched_gradients,
    "gradient of gradient": gradient_of_gradient,
    "dual gradient": dual_gradient,
}
TRANSFORMS = TRACED | EAGER
UNTRACED = () if torch.__version__ >= (2, 13) else ("jacfwd", "hessian", "jacrev of jacrev")
"""What Dynamo of this torch takes into no graph: of a basis for several tensors, torch before 2.13 adds up in a tensor
where each one's part begins, and Dynamo knows no number from a tensor. x.sin() fails as the norms do."""
COMPUTE = {"make_fx": "nothing", "make_fx, pre-dispatch": "nothing", "make_fx of grad": "grad"}
"""What transforms that trace have to compute; to trace torch's own operations too would take as long again."""


def wanted(transform, theirs):
    """What the transform of a function has to be, of torch's own operations."""
    return TRANSFORMS[COMPUTE.get(transform, transform)](theirs)


def same(found, expected, what):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10, msg=lambda m: f"{what}: {m}", check_stride=False)


def check_compiled(function, theirs, transforms, backend, given):
    """All transforms in one graph, against those of torch's own operations."""
    torch._dynamo.reset()

    def every(*given):
        return {k: TRACED[k](function)(*given) for k in transforms}

    found = torch.compile(every, backend=backend, fullgraph=True)(*given)
    for transform in transforms:
        same(found[transform], TRACED[transform](theirs)(*given), transform)


class Holds(torch.nn.Module):
    """A function of (x, other, weight) as the module that torch.export takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, other, weight):
        return self.function(x, other, weight)
