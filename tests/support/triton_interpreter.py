"""Triton's interpreter, corrected, with this project's kernels in it instead of the native ones, on CPU tensors.

The interpreter truncates float32 to bfloat16, and in other conversions it reads bfloat16's bits as an integer; here
both conversions use ml_dtypes. It reduces tuples element by element; here by whole arrays. It shows no races, register
spills or overflows of 32-bit addresses; for some of these see tests/triton/test_compile.py.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are decorated

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _cast(self, src, dst_type):
    to = interpreter._get_np_dtype(dst_type)
    values = src.data.view(ml_dtypes.bfloat16) if src.dtype.scalar == tl.bfloat16 else src.data
    with np.errstate(over="ignore"):
        bf16 = dst_type.scalar == tl.bfloat16
        values = values.astype(ml_dtypes.bfloat16).view(to) if bf16 else values.astype(to)
    return interpreter.TensorHandle(values, dst_type.scalar)


interpreter.InterpreterBuilder.cast_impl = _cast


def _reduce(self, input):
    """A reduction by a function of ours, by halves of whole arrays; the interpreter would call it for each element."""
    parts = [part.handle.data for part in input]
    types = [part.dtype for part in input]

    def tensors(arrays):
        return [self.to_tensor(array, of) for array, of in zip(arrays, types, strict=True)]

    with np.errstate(over="ignore", invalid="ignore"):
        while (size := parts[0].shape[self.axis]) > 1:
            halves = [np.split(part, [size // 2], axis=self.axis) for part in parts]
            low, high = zip(*halves, strict=True)
            parts = [part.handle.data for part in self.combine_fn.fn(*tensors(low), *tensors(high))]
    return tensors([part if self.keep_dims else np.squeeze(part, self.axis) for part in parts])


interpreter.ReduceOps.generic_reduce = _reduce

from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.torch import bindings, operation
from rmsnorm.torch.norm import eager
from rmsnorm.torch.triton import functions, launch, plans

assert launch.INTERPRETED

served = {}  # operation → how often a kernel has done its work


def install() -> None:
    """From now on every call of the package's functions goes to the interpreted kernels, and none to native ones.

    The plain norms go through the C++ calls where they are built, as CUDA tensors do.
    """
    counted = bindings.Kernels(*map(_counted, bindings.Kernels._fields))
    for module in (operation, eager):
        module.kernels_of = lambda t: counted
    if eager.nodes is not None:
        eager.nodes.serve("cpu", counted.norm, counted.norm_backward)
        plans.describe = eager.nodes.describe


def _counted(name):
    function = getattr(functions, name)

    def call(*args):
        done, operation = function(*args), _operation(name, args)
        served[operation] = served.get(operation, 0) + done
        return done

    return call


def _operation(name, args):
    """What a kernel of that name does with these arguments (see bindings.Kernels)."""
    if name == "norm":
        _, residual, *_ = args
        return "add_rms_norm" if residual is not None else f"{NORM_KINDS[args[6]]}_norm"
    return f"{NORM_KINDS[args[7]]}_norm_backward" if name == "norm_backward" else f"rms_norm_{name}"
