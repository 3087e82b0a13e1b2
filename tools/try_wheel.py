"""Whether an installed wheel computes where there is no compiler: NumPy, torch, the nodes, the command line."""

import shutil
import subprocess
import sys

import numpy as np
import torch

import rmsnorm.numpy
import rmsnorm.torch
from rmsnorm import native
from rmsnorm.torch.norm.eager import nodes, why_no_nodes

assert shutil.which("g++") is None, "try it with a PATH that has no compiler"
x = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
expected = x / np.sqrt(np.square(x, dtype=np.float64).mean(-1, keepdims=True) + 1e-6)
for y in (rmsnorm.numpy.rms_norm(x, eps=1e-6), rmsnorm.torch.rms_norm(torch.from_numpy(x), 37, eps=1e-6).numpy()):
    np.testing.assert_allclose(y, expected, rtol=1e-6)
t = torch.from_numpy(x).requires_grad_()
rmsnorm.torch.rms_norm(t, 37, eps=1e-6).sum().backward()
assert nodes is not None, why_no_nodes
assert t.grad is not None
assert native.available_levels()
subprocess.run(["rmsnorm", "info"], check=True)
print(f"rmsnorm {rmsnorm.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}: {nodes.__file__}")
