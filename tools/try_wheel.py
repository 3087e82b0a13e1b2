"""Whether an installed wheel computes where there is no compiler; the command line too.

python tools/try_wheel.py numpy|torch|jax
"""

import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

import rmsnorm.numpy
from rmsnorm import native, reference

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 5, 37))
GAIN, BIAS = RNG.standard_normal((2, 37))
RIGHT = reference.rms_norm(X, GAIN, BIAS, eps=1e-6)
GRADIENTS = reference.rms_norm_vjp(DY, X, GAIN, eps=1e-6)[:2]


def close(found, expected) -> None:
    """float32's rounding of sums of 37 terms around 1."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def single(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays in float32."""
    return [a.astype(np.float32) for a in arrays]


def try_numpy() -> str:
    """NumPy alone."""
    assert not {"torch", "jax"} & sys.modules.keys()
    assert native.available_levels()
    x, dy, gain, bias = single(X, DY, GAIN, BIAS)
    close(rmsnorm.numpy.rms_norm(x, gain, bias, eps=1e-6), RIGHT)
    for found, expected in zip(rmsnorm.numpy.rms_norm_backward(dy, x, gain, eps=1e-6), GRADIENTS, strict=False):
        close(found, expected)
    close(rmsnorm.numpy.layer_norm(X, GAIN, BIAS), reference.layer_norm(X, GAIN, BIAS, eps=1e-5))
    return f"levels {', '.join(native.available_levels())}"


def try_torch() -> str:
    """The C++ nodes of the torch that is installed."""
    import torch

    import rmsnorm.torch
    from rmsnorm.torch.norm.eager import nodes, why_no_nodes

    assert nodes is not None, why_no_nodes
    x, dy, gain, bias = map(torch.from_numpy, single(X, DY, GAIN, BIAS))
    x.requires_grad_(), gain.requires_grad_()
    y = rmsnorm.torch.rms_norm(x, 37, gain, 1e-6, bias=bias)
    close(y.detach(), RIGHT)
    for found, expected in zip(torch.autograd.grad(y, (x, gain), dy), GRADIENTS, strict=True):
        close(found, expected)
    return f"torch {torch.__version__}, {nodes.__file__}"


def try_jax() -> str:
    """The kernels as XLA calls them."""
    import jax

    import rmsnorm.jax
    from rmsnorm.jax import kernels

    assert kernels.missing is None, kernels.missing
    x, dy, gain, bias = single(X, DY, GAIN, BIAS)

    @jax.jit
    def step(x, gain, dy):
        y, pull = jax.vjp(lambda x, gain: rmsnorm.jax.rms_norm(x, gain, bias, eps=1e-6), x, gain)
        return y, pull(dy)

    y, gradients = step(x, gain, dy)
    close(y, RIGHT)
    for found, expected in zip(gradients, GRADIENTS, strict=True):
        close(found, expected)
    return f"jax {jax.__version__}"


assert not any(map(shutil.which, ("cc", "gcc", "g++", "clang++"))), "try it with a PATH that has no compiler"
assert find_spec("rmsnorm").origin.startswith(sys.prefix), "try it with the installed wheel"
tried = {"numpy": try_numpy, "torch": try_torch, "jax": try_jax}[sys.argv[1]]()
subprocess.run(["rmsnorm", "info"], check=True)
print(f"tried: rmsnorm {version('rmsnorm')}, Python {sys.version.split()[0]}, NumPy {np.__version__}, {tried}")
