"""What importing the package loads and starts, and the names that it has."""

import os

import pytest

import rmsnorm.torch


def test_importing_loads_and_starts_nothing_else(run_python):
    assert (
        run_python("import sys, rmsnorm; print(sorted({'torch', 'jax', 'numpy'} & set(sys.modules)))").strip() == "[]"
    )
    numpy_only = "import sys, rmsnorm.numpy; print(sorted({'torch', 'jax'} & set(sys.modules)))"
    assert run_python(numpy_only).strip() == "[]"
    source = """
import os, sys, torch
before = len(os.listdir("/proc/self/task")), set(sys.modules)
import rmsnorm.torch
assert len(os.listdir("/proc/self/task")) == before[0], "a thread was started"
assert "triton" not in set(sys.modules) - before[1], "triton was imported"
assert "torch._dynamo" not in set(sys.modules) - before[1], "the compiler was imported"
assert "torch._inductor" not in set(sys.modules) - before[1], "the compiler was imported"
rmsnorm.torch.RMSNorm(64)(torch.randn(300, 64)).sum().backward()
assert not [name for name in sys.modules if name.startswith("rmsnorm.torch.triton")]
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc to count threads in")
    run_python(source)


def test_public_names():
    functions = {"rms_norm", "layer_norm", "add_rms_norm", "rms_norm_gated", "rms_norm_quantized"}
    functions |= {"add_rms_norm_quantized", "rms_norm_rotary"}
    norms, networks = {"RMSNorm", "LayerNorm", "RMSNormGated"}, {"GRU", "LSTM", "GRUCell", "LSTMCell"}
    models = {"accelerate", "profile_norms", "swap_norms"}
    assert set(rmsnorm.torch.__all__) == functions | norms | networks | models
    for name in rmsnorm.torch.__all__:
        assert getattr(rmsnorm.torch, name).__doc__
