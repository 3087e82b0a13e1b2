"""Memory safety: tensors that cannot be read or written, working buffers for which there is no memory."""

import platform
import sys

import numpy as np
import pytest
import torch

from rmsnorm.torch import (
    GRU,
    LSTM,
    add_rms_norm,
    add_rms_norm_quantized,
    bindings,
    functional,
    layer_norm,
    rms_norm,
    rms_norm_gated,
    rms_norm_quantized,
)
from rmsnorm.torch.norm import eager

OTHER_DTYPES = [
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float64", "float16", "bfloat16"),
    )
]


@pytest.fixture(params=["nodes", "python"])
def way(request, monkeypatch):
    """Through the C++ nodes, and without them."""
    if request.param == "python":
        monkeypatch.setattr(functional, "nodes", None)
    elif eager.nodes is None:
        pytest.skip(f"C++ nodes: {eager.why_no_nodes}")


def freed(*shape: int, offset: int = 0) -> torch.Tensor:
    """A tensor whose storage was given back, as FSDP does with parameters that it has flattened."""
    t = torch.ones(offset + int(np.prod(shape)))[offset:].view(shape)
    t.untyped_storage().resize_(0)
    return t


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_out_of_another_dtype_is_refused(way, norm, dtype):
    """It was written through the address of whatever call was before."""
    x, before, out = torch.randn(4, 8), torch.zeros(4, 8), torch.zeros(4, 8, dtype=dtype)
    norm(x, (8,), out=before)
    kept = before.clone()
    with pytest.raises(ValueError, match="out must have the dtype of the result"):
        norm(x + 1, (8,), out=out)
    assert torch.equal(before, kept)
    assert not out.view(torch.uint8).any()


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_out_whose_sign_is_a_flag_is_refused_where_it_is_contiguous(way, norm):
    memory = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="negative bit"):
        norm(torch.randn(2, 4), (4,), out=torch._neg_view(memory))
    assert not memory.any()


@pytest.mark.parametrize("offset", [0, 24])
def test_freed_storages_are_refused(way, offset):
    """Without an offset a freed gain counted as none, with one the kernels read at its address: the offset."""
    x, w = torch.randn(2, 8), torch.ones(8)
    gone, gain = freed(2, 8, offset=offset), freed(8, offset=offset)
    calls = {
        "input": [
            lambda: rms_norm(gone, (8,)),
            lambda: layer_norm(gone, (8,), w),
            lambda: add_rms_norm(gone, x, (8,)),
            lambda: add_rms_norm(gone, x, (8,), inplace=True),
            lambda: rms_norm_gated(gone, x, (8,)),
            lambda: rms_norm_quantized(gone, (8,)),
            lambda: add_rms_norm_quantized(gone, x, (8,)),
            lambda: torch.ops.rmsnorm.rms_norm(gone, [8], None, None, None, 1.0, False, "once"),
        ],
        "weight": [
            lambda: rms_norm(x, (8,), gain),
            lambda: rms_norm(x, (8,), gain, casting="llama"),
            lambda: layer_norm(x, (8,), gain),
            lambda: rms_norm_gated(x, x, (8,), gain),
            lambda: rms_norm_quantized(x, (8,), gain),
        ],
        "bias": [lambda: rms_norm(x, (8,), w, bias=gain), lambda: layer_norm(x, (8,), None, gain)],
        "residual": [
            lambda: add_rms_norm(x, gone, (8,)),
            lambda: add_rms_norm(x, gone, (8,), inplace=True),
            lambda: add_rms_norm_quantized(x, gone, (8,)),
        ],
        "gate": [lambda: rms_norm_gated(x, gone, (8,))],
        "out": [lambda: rms_norm(x, (8,), out=gone), lambda: layer_norm(x, (8,), out=gone)],
    }
    for name, several in calls.items():
        for call in several:
            with pytest.raises(ValueError, match=f"^{name} must have its .* elements in memory"):
                call()


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
@pytest.mark.parametrize("which", ["input", "weight", "dy"])
def test_what_a_backward_pass_needs_was_freed(way, norm, which):
    x, w = torch.randn(2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    dy = torch.randn(2, 8)
    y = norm(x, (8,), w)
    {"input": x, "weight": w, "dy": dy}[which].detach().untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"^{which} must have its .* elements in memory"):
        torch.autograd.grad(y, (x, w), dy)


@pytest.mark.parametrize("which", ["input", "gate", "weight", "dy"])
def test_what_the_gated_backward_pass_needs_was_freed(which):
    x, z, w = (torch.randn(2, 8, requires_grad=True), torch.randn(2, 8), torch.randn(8, requires_grad=True))
    dy = freed(2, 8, offset=8) if which == "dy" else torch.randn(2, 8)
    y = rms_norm_gated(x, z, (8,), w)
    if which != "dy":
        {"input": x, "gate": z, "weight": w}[which].detach().untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"^{which} must have its .* elements in memory"):
        torch.autograd.grad(y, (x, w), dy)


@pytest.mark.parametrize("layer", [GRU, LSTM])
def test_parameters_and_states_of_a_recurrence_were_freed(layer):
    x, module = torch.randn(3, 2, 4), layer(4, 8)
    state = freed(1, 2, 8, offset=16)
    for call in (
        lambda: module(freed(3, 2, 4, offset=8)),
        lambda: module(x, (state, state) if layer is LSTM else state),
    ):
        with pytest.raises(ValueError, match=r"must have its .* elements in memory"):
            call()
    for name, p in list(module.named_parameters()):
        module._parameters[name] = torch.nn.Parameter(freed(*p.shape, offset=4))
        with pytest.raises(ValueError, match=name.removesuffix("_l0") + " must have its"):
            module(x)
        module._parameters[name] = p


def test_storages_that_are_not_freed():
    """Zeros that are nowhere, and tensors without elements, have no memory either."""
    torch.testing.assert_close(rms_norm(torch._efficientzerotensor((2, 8)), (8,), None, 1e-5), torch.zeros(2, 8))
    assert rms_norm(torch.empty(0, 8), (8,), torch.ones(8)).shape == (0, 8)
    assert rms_norm(torch.empty(2, 0), (0,), torch.ones(0)).shape == (2, 0)
    f = torch.func.functionalize(lambda t: rms_norm(t, (8,)))
    x = torch.randn(2, 8)
    torch.testing.assert_close(f(x), rms_norm(x, (8,)))


def test_a_hook_may_change_what_was_saved(way):
    """The node's dimensions are the input's; what a hook gives back may have fewer."""
    x, dy = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.detach().flatten()[:8]):
        y = rms_norm(x, (3, 8))
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever torch says; it must not read beyond what there is
        torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize("layer", [GRU, LSTM])
def test_a_recurrence_of_one_element(layer):
    """The sum's gradient of one element is expanded: it has stride 0."""
    torch.manual_seed(3)
    module = layer(3, 1)
    for name, p in list(module.named_parameters()):
        if name.startswith("gain"):
            setattr(module, name, torch.nn.Parameter(torch.ones(2 * p.numel())[::2]))
    x = torch.randn(1, 1, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x)
    expected = module.double()
    (wanted,) = torch.autograd.grad(expected(x.double())[0].sum(), x)
    torch.testing.assert_close(dx, wanted, rtol=1e-5, atol=1e-6)


NO_MEMORY = """
import resource
import torch
import rmsnorm.torch  # hands torch's threads over
from rmsnorm import native

own = OWN
torch.set_num_threads(2)
kernels, flags = native.kernels, native.OWN_THREADS if own else 0
H = 1 << 20  # a row's working buffer: 4 MiB and more
x, z, y, dz = (torch.full((2, H), 0.5) for _ in range(4))
q, scale, gain = torch.empty((2, H), dtype=torch.int8), torch.empty(2, 1), torch.ones(H)
few, rows = 1 << 16, 16  # 256 KiB, and for the backward pass two tasks of 8 rows
ones, zeros = torch.ones(4 * few), torch.zeros(4 * few)

def steps(gates):
    input, state, slab, dinput, dstate = (torch.full((rows, gates * few), 0.1) for _ in range(5))
    h, after, c, c_after, dh, dc = (torch.full((rows, few), 0.1) for _ in range(6))
    g, b, all_gates = ones[: gates * few], zeros[: gates * few], [(0, gates, gates * few)]
    cells = (c, c_after) if gates == 4 else (None, None)
    tensors = (input, state, h, after, *cells, slab, g, g, b, b, ones[:few])
    made = kernels.recurrent_steps(gates, few, False, 1e-5, all_gates, all_gates, 0, 0.0, own, *tensors)
    made.prepare_backward(None, dinput, dstate, dh, dc if gates == 4 else None, False)
    return made, (input, state, slab, dinput, dstate, h, after, c, c_after, dh, dc, g, b)

lstm, gru = steps(4), steps(3)
few = 256  # the packed matrix has a MiB
wide, matrix = steps(4), torch.zeros(4 * few, few)

def gated_backward(norm_first):
    return kernels.gated_backward(y, x, z, None, y, dz, None, (H,), None, 1.0, 1, norm_first, flags)

calls = {
    "gated": lambda: kernels.gated(x, z, gain, y, (H,), None, 1.0, 1, False, flags),
    "gated backward": lambda: gated_backward(False),
    "gated backward, norm first": lambda: gated_backward(True),
    "quantised": lambda: kernels.quantized(x, None, gain, q, scale, None, (H,), None, 1.0, flags),
    "LSTM step": lambda: lstm[0].forward(0, rows, 0),
    "LSTM backward": lambda: lstm[0].backward(0, rows),
    "GRU backward": lambda: gru[0].backward(0, rows),
    "LSTM layer": lambda: wide[0].forward_layer(matrix, None, 1, rows, False),
    "LSTM layer backward": lambda: wide[0].backward_layer(matrix, 1, False),
}
for call in calls.values():  # starts the threads
    assert call() is not False
vm = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
everything = resource.getrlimit(resource.RLIMIT_AS)
for name, call in calls.items():
    resource.setrlimit(resource.RLIMIT_AS, (vm + (1 << 17), everything[1]))
    try:
        call()
        found = "no error"
    except MemoryError as error:
        found = str(error)
    resource.setrlimit(resource.RLIMIT_AS, everything)
    assert found.startswith("rmsnorm found no memory for a working buffer of "), (name, found)
    assert call() is not False, name  # the threads are still there
print("all")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit to the address space, as Linux has it")
@pytest.mark.parametrize("pool", ["own", "torch"])
def test_no_memory_for_a_working_buffer(run_python, pool):
    """What a thread throws reaches the caller: it was swallowed by torch's threads, and would have ended ours."""
    if pool == "torch" and not bindings.shares_torch_threads:
        pytest.skip("torch before 2.10 does not lend its threads")
    source = NO_MEMORY.replace("OWN", str(pool == "own"), 1)
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "RMSNORM_NUM_THREADS": "2"}
    assert run_python(source, **settings).strip() == "all"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets glibc's allocator")
def test_results_in_memory_that_the_allocator_has_kept(run_python):
    """Large results are streamed past the caches where their pages are there, and have the same bits."""
    source = """
import torch
from rmsnorm.torch import add_rms_norm, rms_norm
x, other, weight = torch.randn(2100, 4096), torch.randn(2100, 4096), torch.randn(4096)
rows = [slice(row, row + 300) for row in range(0, 2100, 300)]
expected = torch.cat([rms_norm(x[some], (4096,), weight) for some in rows])
sums = torch.cat([add_rms_norm(x[some], other[some], (4096,), weight)[0] for some in rows])
places = set()
for _ in range(3):  # the second and the third in the memory of the first
    y = rms_norm(x, (4096,), weight)
    normed, total = add_rms_norm(x, other, (4096,), weight)
    assert torch.equal(y, expected)
    assert torch.equal(normed, sums) and torch.equal(total, x + other)
    places.add(y.data_ptr())
    del y, normed, total
print(len(places))
"""
    keep = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
    assert int(run_python(source, GLIBC_TUNABLES=keep)) < 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets glibc's allocator")
def test_gradients_in_memory_that_the_allocator_has_kept(run_python):
    """The same of dx: beside a trained gain and without one, in both orders of elements, in rows that begin at any
    element, and where the first k elements, which have another formula, end within a vector: that was a crash."""
    source = """
import torch
from rmsnorm.torch import layer_norm, rms_norm
kept = torch.ones(2**27)  # 512 MiB whose pages stay
low, high = kept.data_ptr(), kept.data_ptr() + kept.nbytes
del kept
CASES = ((torch.float32, 4096, 1), (torch.float32, 64, 1), (torch.bfloat16, 8192, 1), (torch.float32, 4095, 1))
PARTIAL = ((torch.float32, 4096, 0.3), (torch.bfloat16, 8192, 0.3), (torch.float16, 4097, 0.1))
for dtype, n, p in (*CASES, *PARTIAL, (torch.float64, 4096, 0.01)):
    rows = 22 * 2**20 // n // dtype.itemsize // 18 * 18
    x, dy, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, n), (rows, n), (n,), (n,)))

    def gradient(function, some, *trained):
        given = x[some].requires_grad_()
        y = function(given, n, *(t.clone().requires_grad_() for t in trained), **({} if p == 1 else {"p": p}))
        return torch.autograd.grad(y, given, dy[some])[0]

    norms = (rms_norm, (weight,)), (layer_norm, (weight, bias)), (rms_norm, ())
    for function, trained in norms if p == 1 else norms[::2]:
        parts = [slice(row, row + rows // 18) for row in range(0, rows, rows // 18)]
        expected = torch.cat([gradient(function, some, *trained) for some in parts])
        for _ in range(2):  # y and dx take turns in the same few places
            dx = gradient(function, slice(None), *trained)
            assert torch.equal(dx, expected), (function, dtype, n, p)
            assert low <= dx.data_ptr() < high - dx.nbytes, "the pages of dx may not be there"
            del dx
print("all")
"""
    keep = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
    assert run_python(source, GLIBC_TUNABLES=keep).strip() == "all"


@pytest.mark.parametrize(
    ("dtype", "n", "first", "gap"),
    [
        *((torch.float32, 4096, 0, 0), (torch.float32, 4096, 3, 0), (torch.float32, 4095, 0, 2)),
        (torch.float32, 70, 0, 0),
        *((torch.bfloat16, 8192, 0, 0), (torch.bfloat16, 8160, 0, 32), (torch.bfloat16, 8192, 1, 0)),
        *((torch.float16, 4097, 5, 0), (torch.float64, 2049, 1, 7)),
    ],
    ids=str,
)
def test_large_results_in_given_memory(dtype, n, first, gap):
    """They are streamed past the caches, except in place. Rows and results may begin at any element."""
    rows = 36 * 2**20 // n // dtype.itemsize // 18 * 18
    x, weight, bias = torch.randn(rows, n).to(dtype), torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    memory = torch.full((first + rows * (n + gap) + 8,), 7.0, dtype=dtype)
    out = memory[first : first + rows * (n + gap)].view(rows, n + gap)[:, :n]
    parts = range(0, rows, rows // 18)
    calls = (rms_norm, {"weight": weight}), (rms_norm, {"weight": weight, "bias": bias}), (rms_norm, {})
    for norm, given in (*calls, (layer_norm, {"weight": weight, "bias": bias})):
        expected = torch.cat([norm(x[row : row + rows // 18], n, **given) for row in parts])
        assert norm(x, n, **given, out=out) is out
        assert torch.equal(out, expected)
        out.copy_(x)
        assert torch.equal(norm(out, n, **given, out=out), expected)
    out.fill_(7)
    assert (memory == 7).all()
