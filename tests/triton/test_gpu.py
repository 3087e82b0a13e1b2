"""On a CUDA device (`make gpu`): what no interpreter shows. Without a device these tests are skipped."""

from types import SimpleNamespace

import pytest
import torch

import composites
import gated_cases
import quantized_cases
from conformance import CASES, EAGER, Case, make_inputs
from rmsnorm.torch import (
    RMSNorm,
    add_rms_norm,
    layer_norm,
    rms_norm,
    rms_norm_gated,
    rms_norm_quantized,
)
from tolerances import check, expected

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make gpu"),
]


@pytest.fixture(autouse=True)
def _served(request):
    """Triton's kernels run here, or each test fails: the composite must not serve in their place."""
    from rmsnorm.torch import dispatch

    assert dispatch.triton() is not None, dispatch.why_no_triton


def on_cuda(t):
    """The tensor with its whole memory, so that strides and offset are the same."""
    if t is None:
        return None
    whole = torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)
    return torch.as_strided(whole.cuda(), t.shape, t.stride(), t.storage_offset())


@pytest.mark.parametrize("n", [64, 128, 1000, 1023, 4096, 5120, 16384, 16385, 131072])
@pytest.mark.parametrize("operation", ["rms_norm", "layer_norm", "add_rms_norm"])
def test_every_length(n, operation):
    case = Case(
        operation,
        torch.bfloat16,
        n,
        max(3, 300_000 // n),
        weight=torch.float32,
        bias=torch.float32 if operation == "layer_norm" else None,
        residual=torch.bfloat16 if operation == "add_rms_norm" else None,
    )
    test_conformance(case)


@pytest.mark.parametrize("n", [8192, 16385, 131072])
@pytest.mark.parametrize("p", [0.25, 0.004])
def test_prmsnorm_at_every_kind_of_length(n, p):
    """In long rows a kernel of its own serves the first k elements, unless k is too large."""
    test_conformance(Case("rms_norm", torch.bfloat16, n, 37, weight=torch.float32, p=p))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("n", [64, 128, 1000, 1023, 4096, 8192, 16384, 16385])
def test_gated_at_every_length(n, norm_first):
    case = gated_cases.Case(torch.bfloat16, 40, n, 2, 0.5, torch.float32, 1e-5, norm_first, "sliced", "contiguous", 2.0)
    test_gated(case)


@pytest.mark.parametrize("code", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_long_quantized_rows(code):
    x = torch.randn(3, 131072, device="cuda")
    (q, scale), (codes, wanted) = (
        rms_norm_quantized(x, (131072,), dtype=code),
        composites.rms_norm_quantized(x, (131072,), dtype=code),
    )
    torch.testing.assert_close(scale, wanted, rtol=2e-6, atol=0)
    assert (q.float() != codes.float()).float().mean() < 0.01


def test_a_row_and_a_gradient_do_not_depend_on_the_run():
    x, w = (
        torch.randn(5000, 1536, device="cuda", requires_grad=True),
        torch.randn(1536, device="cuda", requires_grad=True),
    )
    dy = torch.randn_like(x)
    y = rms_norm(x, (1536,), w)
    assert torch.equal(rms_norm(x[17:18], (1536,), w), y[17:18])
    one, other = (torch.autograd.grad(rms_norm(x, (1536,), w), (x, w), dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rare_rows():
    for exponent in (-130, -60, 0, 60, 126):
        x = torch.randn(4, 3000, device="cuda").clamp_(-3.9, 3.9) * 2.0**exponent  # 4 · 2^126 is infinite
        y = rms_norm(x, (3000,), eps=0.0)
        torch.testing.assert_close(y.square().mean(-1), torch.ones(4, device="cuda"), rtol=1e-4, atol=0)


def test_in_a_cuda_graph():
    x, w = torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16), torch.randn(2048, device="cuda")
    leaf, gain = x.clone().requires_grad_(), w.clone().requires_grad_()
    dy = torch.randn_like(x)

    def step():
        y = rms_norm(leaf, (2048,), gain)
        return y, *torch.autograd.grad(y, (leaf, gain), dy)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaf.copy_(torch.randn_like(x))
    graph.replay()
    for found, wanted in zip(captured, step(), strict=True):
        assert torch.equal(found, wanted)


def test_under_autocast():
    norm, linear = RMSNorm(256, device="cuda"), torch.nn.Linear(256, 256, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = norm(linear(torch.randn(8, 256, device="cuda")))
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert norm.weight.grad.dtype == torch.float32


def test_compiled():
    x, w = torch.randn(33, 512, device="cuda", requires_grad=True), torch.randn(512, device="cuda", requires_grad=True)
    compiled = torch.compile(lambda x, w: rms_norm(x * 2, (512,), w) + 1, fullgraph=True)
    y, wanted = compiled(x, w), rms_norm(x * 2, (512,), w) + 1
    torch.testing.assert_close(y, wanted)
    dy = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(wanted, (x, w), dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_on_another_stream_and_in_place():
    stream = torch.cuda.Stream()
    x, residual = torch.randn(1000, 1024, device="cuda"), torch.randn(1000, 1024, device="cuda")
    wanted = add_rms_norm(x, residual, (1024,))
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        add_rms_norm(x, residual, (1024,), inplace=True)
    stream.synchronize()
    assert torch.equal(x, wanted[0])
    assert torch.equal(residual, wanted[1])


def test_packed_heads_without_a_copy():
    packed = torch.randn(2, 50, 3, 8, 128, device="cuda", dtype=torch.bfloat16)
    q, gain = packed[:, :, 0].transpose(1, 2), torch.randn(128, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = rms_norm(q, (128,), gain)
    assert torch.cuda.max_memory_allocated() - before <= y.numel() * 2 + 512
    torch.testing.assert_close(y, composites.rms_norm(q, (128,), gain), rtol=2e-2, atol=1e-3)


def test_zero_rows_leave_the_device_well():
    x = torch.empty(0, 64, device="cuda", requires_grad=True)
    w = torch.randn(64, device="cuda", requires_grad=True)
    rms_norm(x, (64,), w).sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))
    torch.cuda.synchronize()


def test_more_elements_than_32_bits_count():
    n, rows = 4096, 2**31 // 4096 + 3
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * n:
        pytest.skip("needs 21 GiB of GPU memory")
    x = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16).normal_()
    y = rms_norm(x, (n,))
    assert torch.equal(y[-3:], rms_norm(x[-3:].clone(), (n,)))
    assert torch.isfinite(layer_norm(x[-3:], (n,))).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_device_that_is_not_the_current_one():
    x = torch.randn(7, 64, device="cuda:1", requires_grad=True)
    y = rms_norm(x, (64,))
    y.sum().backward()
    torch.testing.assert_close(y, composites.rms_norm(x, (64,)))


# ---- the cases of all backends: many kernels that nothing has compiled before, so they come last ----


@pytest.mark.parametrize("case", [case for case in CASES if case.rows], ids=str)
def test_conformance(case):
    inputs = make_inputs(case)
    results = EAGER.run(case, SimpleNamespace(**{name: on_cuda(t) for name, t in vars(inputs).items()}))
    results = {name: t.cpu() for name, t in results.items()}
    stream = results.pop("s", None)
    # Where the kernels decline, the composite serves: sums that it takes in another order.
    for name, interval in expected(case, inputs, stream, composite=True).items():
        check(results[name], interval, f"{name} of {case}")


@pytest.mark.parametrize("case", [case for case in gated_cases.CASES if case.rows], ids=str)
def test_gated(case):
    inputs = gated_cases.make_inputs(case)
    moved = SimpleNamespace(**{name: on_cuda(t) for name, t in vars(inputs).items()})
    results = gated_cases.through(rms_norm_gated, case, moved)
    # What the kernels decline is torch's: its tolerances.
    gated_cases.conforms(case, {name: t.cpu() for name, t in results.items()}, inputs, composite=True)


@pytest.mark.parametrize("case", [case for case in quantized_cases.CASES if case["rows"]], ids=str)
def test_quantized(case):
    def function(x, shape, weight, *args, **options):
        q, scale = rms_norm_quantized(on_cuda(x), shape, on_cuda(weight), *args, **options)
        return q.cpu(), scale.cpu()

    quantized_cases.conforms(function, case)
    quantized_cases.every_code_and_every_tie(function, case["code"])
    quantized_cases.rows_without_a_scale(function, case["code"])
