"""Tensors that the C++ kernels do not serve, and a source tree in which no C++ was built."""

import importlib.util
import warnings
from types import SimpleNamespace

import pytest
import torch

from rmsnorm import cli, native
from rmsnorm.torch import bindings, dispatch

UNBUILT = """
import importlib.util as u
find = u.find_spec
u.find_spec = lambda name, *a: None if name.startswith("rmsnorm.native._") else find(name, *a)
import torch, rmsnorm
from rmsnorm import cli, native
assert native.missing
from rmsnorm.torch import RMSNorm, add_rms_norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_quantized

import composites
x, w = torch.randn(5, 3, 16, requires_grad=True), torch.randn(16, requires_grad=True)
y = rms_norm(x, (16,), w, p=0.5)
assert torch.equal(y, composites.rms_norm(x, (16,), w, p=0.5))
assert all(g is not None for g in torch.autograd.grad(y.sum(), (x, w)))
with torch.no_grad():
    assert torch.equal(layer_norm(x, (16,), w), composites.layer_norm(x, (16,), w))
    out = torch.empty(5, 3, 16)
    assert rms_norm(x, (16,), w, out=out) is out
    a, r = x.clone(), x.clone()
    add_rms_norm(a, r, (16,), w, inplace=True)
    rms_norm_gated(x, x, (16,), w), rms_norm_quantized(x, (16,), w)
RMSNorm(16)(x).sum().backward()
assert rms_norm(x.transpose(0, 2), (5,)).shape == (16, 3, 5)
try:
    rms_norm(torch.ones(2, 8), (9,))
except ValueError as error:
    assert "normalized_shape" in str(error)
compiled = torch.compile(rms_norm, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x, (16,), w), rms_norm(x, (16,), w))
y = torch.ops.rmsnorm.rms_norm(x, [16], w, None, None, 1.0, False, "once")
torch.testing.assert_close(y, rms_norm(x, (16,), w))
assert cli.main(["info"]) == 0

import numpy as np
from rmsnorm.numpy import rms_norm
try:
    rms_norm(np.ones((2, 8)))
except ImportError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("no kernels, and no error")
"""


def test_without_the_native_module_torch_takes_the_composite_and_everything_says_why(run_python):
    said = run_python(UNBUILT)
    assert "kernels     none: the C++ kernels are not built" in said
    assert "torch cpu: composite (why: the C++ kernels are not built" in said
    assert "numpy: nothing" in said


def test_each_device_has_its_own_kernels(monkeypatch):
    """A CUDA tensor never reaches the native ones, nor a CPU tensor Triton's."""
    functions = SimpleNamespace(connect=lambda nodes: None)
    monkeypatch.setattr(bindings, "_unconnected", [])
    monkeypatch.setattr(dispatch, "triton", lambda device: functions)
    monkeypatch.setattr(dispatch, "why_no_triton", None)
    x = torch.ones(2, 8)
    on_cuda = SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda", 1))
    assert bindings.kernels_of(on_cuda) is functions
    assert bindings.kernels_of(x) is bindings._CPU is not bindings._NONE
    assert bindings.kernels_of(x.to("meta")) is bindings._NONE
    monkeypatch.setattr(dispatch, "why_no_triton", "it is a test")
    assert bindings.kernels_of(on_cuda) is bindings._NONE


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, dispatch.Way.KERNEL),
        ({"requires_grad": True}, dispatch.Way.AUTOGRAD),
        ({"is_neg": lambda: True}, dispatch.Way.COMPOSITE),
    ],
)
def test_the_way_of_a_cuda_tensor(changed, expected, monkeypatch):
    ordinary = {"is_cuda": True, "requires_grad": False, "is_neg": lambda: False}
    x = SimpleNamespace(**(ordinary | changed))
    monkeypatch.setattr(dispatch, "_ORDINARY", (SimpleNamespace,))
    monkeypatch.setattr(dispatch, "why_no_triton", None)
    assert dispatch._way(x, None, None) == expected
    if expected == dispatch.Way.AUTOGRAD:
        with torch.no_grad():
            assert dispatch._way(x, None, None) == dispatch.Way.KERNEL
    with torch.autograd.forward_ad.dual_level():
        assert dispatch._way(x, None, None) == dispatch.Way.COMPOSITE
    monkeypatch.setattr(dispatch, "why_no_triton", "it is a test")
    assert dispatch._way(x, None, None) == dispatch.Way.COMPOSITE


def test_why_there_is_no_triton(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in dispatch._why_no_triton()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in dispatch._why_no_triton()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for version, served in (
        ("3.5.1", False),
        ("3.6.0", True),
        ("3.6.0+git12", True),
        ("3.10.0", True),
        ("4.0.0", True),
    ):
        monkeypatch.setattr(dispatch.metadata, "version", lambda name, version=version: version)
        assert (dispatch._why_no_triton() is None) is served


ON_CUDA = SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda", 1))


@pytest.fixture
def broken_triton(monkeypatch):
    """A Triton whose first kernel does not compile, beside a device."""
    pytest.importorskip("triton")
    from rmsnorm.torch.triton import functions

    def broken(device):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(functions, "check", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(dispatch, "why_no_triton", None)
    monkeypatch.setattr(dispatch, "_triton", None)


def test_a_triton_that_does_not_run_warns_once_and_serves_nothing(broken_triton):
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        assert bindings.kernels_of(ON_CUDA) is bindings._NONE
    assert "C compiler" in dispatch.why_no_triton
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bindings.kernels_of(ON_CUDA) is bindings._NONE


def test_a_first_call_while_a_graph_is_captured_says_nothing_about_later_ones(monkeypatch):
    """The driver loads no kernel then. The device that is tried is the tensor's."""
    pytest.importorskip("triton")
    from rmsnorm.torch.triton import functions

    seen = []
    monkeypatch.setattr(functions, "check", seen.append)
    monkeypatch.setattr(functions, "connect", seen.append)
    monkeypatch.setattr(dispatch, "why_no_triton", None)
    monkeypatch.setattr(dispatch, "_triton", None)
    monkeypatch.setattr(bindings, "_unconnected", ["the nodes"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(UserWarning, match="a CUDA graph is being captured; run the step once before"):
        assert bindings.kernels_of(ON_CUDA) is bindings._NONE
    assert dispatch.why_no_triton is None
    assert not seen
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert bindings.kernels_of(ON_CUDA) is functions
    assert bindings.kernels_of(ON_CUDA) is functions
    assert seen == [ON_CUDA.device, "the nodes"]


def test_info_tries_a_kernel(broken_triton, capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert "torch cuda: composite (why: Triton does not run here: RuntimeError: Failed to find C compiler" in said


def test_a_kernel_that_does_not_compile_warns_once_and_is_declined(monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from rmsnorm.torch.triton import launch, norms, plans

    def refuse(*args, **options):
        raise ValueError("ptxas: out of registers")

    monkeypatch.setattr(triton, "compile", refuse)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(launch, "target", lambda device: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(plans, "plans", {})
    x = torch.randn(3, 24)
    tensors = x, None, None, None, torch.empty_like(x), None
    call = norms.plan_forward, False, tensors, (24,), None, 1.0, native.FRESH
    with pytest.warns(UserWarning, match="forward_kernel does not compile: ValueError: ptxas"):
        assert not plans._serve(*call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not plans._serve(*call)
    with pytest.raises(launch.NotCompiled):  # what the first use of a device would be told
        norms.plan_forward(False, tensors, (24,), None, 1.0, native.FRESH, 16)


def test_a_compiled_graph_without_operators(run_python):
    """With them: test_compiled.py."""
    run_python(
        """
import torch
from rmsnorm.torch import rms_norm
seen = []
def backend(graph, inputs):
    seen.extend(str(node.target) for node in graph.graph.nodes)
    return graph
x = torch.randn(64, 1024, dtype=torch.float64)  # of which no size is an expression by itself
torch.compile(lambda x: rms_norm(x, (1024,)), backend=backend, fullgraph=True)(x)
assert seen and not [target for target in seen if "rmsnorm" in target], seen
""",
        RMSNORM_COMPILE="decompose",
    )


def test_the_words_for_compiled_graphs(monkeypatch):
    for word, decomposed in (("", False), ("operator", False), ("decompose", True)):
        monkeypatch.setenv("RMSNORM_COMPILE", word)
        assert dispatch._decomposed() is decomposed
    monkeypatch.setenv("RMSNORM_COMPILE", "fast")
    with pytest.raises(ImportError, match="RMSNORM_COMPILE must be operator or decompose, got 'fast'"):
        dispatch._decomposed()
