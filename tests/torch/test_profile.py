"""profile_norms finds what is called, times it in the model, and says what cannot be timed. No test asserts a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from profiled import Block, GatedNorm, Norm, X
from rmsnorm import native
from rmsnorm.timing import Spread
from rmsnorm.torch import LayerNorm, RMSNorm, profile_norms, swap_norms
from rmsnorm.torch.profile import profiler

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")


@pytest.fixture
def outputs(monkeypatch):
    """What each variant returns: they are called once, and get made times of five rounds."""
    found = {}

    def measure(timed, plan, sample, pause, drop):
        for name, call in timed.items():
            found[name] = call()
        made = {"model": 10.0, "swap_norms": 9.0, "no norms": 8.0}
        return {name: [1e6 * made.get(name, 9.5) * r for r in (1, 2, 3, 1, 2, 5)] for name in timed}

    monkeypatch.setattr(profiler, "measure", measure)
    return found


def test_a_row_for_each_distinct_norm(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.LayerNorm(16)).eval()
    found = profile_norms(model, lambda model: model(X))
    assert [(r.cls, r.n, r.rows, r.dtype, r.modules, r.calls) for r in found.norms] == [
        ("Norm", 16, (6,), "float32", 2, 2),
        ("ClampedNorm", 16, (6,), "float32", 1, 1),
        ("GatedNorm", 16, (6,), "float32", 1, 1),
        ("LayerNorm", 16, (6,), "float32", 1, 1),
    ]
    listed = {row.cls: row for row in swap_norms(model).rows}
    assert all((r.served_by, r.why) == (listed[r.cls].convention, listed[r.cls].why) for r in found.norms)
    assert found.norms[1].why
    assert not found.norms[0].why
    each = [f"without {row.cls}" for row in found.norms]
    assert list(outputs) == list(found.times_ns) == ["model", "swap_norms", "no norms", *each]


def test_a_norm_is_known_by_its_numbers(outputs):
    class Normalizer(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    class Foo(Norm):
        def forward(self, x):
            return super().forward(x).clamp(-8, 8)

    found = profile_norms(nn.Sequential(Normalizer(16, 16), Foo(), Norm()), lambda model: model(X))
    assert [(r.cls, bool(r.why)) for r in found.norms] == [("Foo", True), ("Norm", False)]


def test_the_variants_are_what_their_names_say(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Norm(), nn.Linear(16, 16), nn.LayerNorm(16)).eval()
    profile_norms(model, lambda model: model(X))
    whole = model(X)
    assert torch.equal(outputs["model"], whole)
    assert not torch.equal(outputs["swap_norms"], whole)  # other kernels
    torch.testing.assert_close(outputs["swap_norms"], whole)
    for name, left in (("no norms", {1, 3}), ("without Norm", {1}), ("without LayerNorm", {3})):
        rest = nn.Sequential(*(nn.Identity() if i in left else m for i, m in enumerate(model)))
        assert torch.equal(outputs[name], rest(X)), name


def test_shares_are_medians_of_paired_ratios(outputs):
    model = nn.Sequential(Norm(), Norm(), Norm(8))
    model.append(nn.Linear(8, 16))
    found = profile_norms(model, lambda model: model[3](model[2](model[1](model[0](X))[:, :8])))
    assert found.cost == Spread(pytest.approx(0.2), (pytest.approx(0.2),) * 2)
    assert found.swap.median == pytest.approx(0.1)
    assert found.accelerate is None
    assert [row.share.median for row in found.norms] == pytest.approx([0.05, 0.05])
    assert found.norms[0].us.median == pytest.approx(0.5e3 * 2 / 2)  # 0.5 ms × the median round, two calls
    assert found.norms[1].us.interval == pytest.approx((0.5e3, 2.5e3))
    assert (found.step_ms, found.rounds) == (20, 6)
    assert {"without Norm 1", "without Norm 2"} < found.times_ns.keys()


def test_the_table(outputs):
    found = profile_norms(nn.Sequential(Block(), nn.RMSNorm(16)), lambda model: model(X))
    lines = str(found).splitlines()
    assert lines[0].split("  ")[0] == "norm"
    assert lines[1].startswith("Norm ")
    assert lines[1].endswith("rms_norm(weight, casting=llama)")
    assert any(line.startswith("ClampedNorm") and "left: no convention" in line for line in lines)
    assert "all norms         20.0 [20.0, 20.0] %  the bound: no faster norm saves more" in lines
    assert "swap_norms saves  10.0 [10.0, 10.0] %" in lines
    assert "accelerate saves  5.0 [5.0, 5.0] %" in lines
    assert f"a step takes 20 ms: 6 rounds, threads: {torch.get_num_threads()}" in lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_left_out_keeps_the_dtype_of_its_result(outputs, dtype):
    model = nn.Sequential(Norm(), nn.Linear(16, 16))  # bfloat16 · float32 is float32
    profile_norms(model, lambda model: model(X.to(dtype)))
    assert torch.equal(outputs["no norms"], model[1](X.to(dtype).float()))


def test_a_gated_norm_left_out_keeps_the_gradient_of_its_gate(outputs):
    gate = torch.randn(6, 16, requires_grad=True)
    profile_norms(GatedNorm(), lambda model: torch.autograd.grad(model(X, gate=gate).sum(), gate)[0])
    assert torch.equal(outputs["no norms"], X)


def test_rows_of_several_numbers(outputs):
    model = nn.Sequential(Norm())
    found = profile_norms(model, lambda model: [model(X), model(X[:2]), model(X[0])])
    assert [(r.rows, r.calls) for r in found.norms] == [((1, 2, 6), 3)]
    assert "  1–6  " in str(found)


def test_torchs_own_norms_are_accelerated_meanwhile(outputs):
    model = nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 16), RMSNorm(16), LayerNorm(16))  # ours count for no F.rms_norm
    kernels = []

    def step(model):
        kernels.append(torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU"))
        return F.layer_norm(model(F.rms_norm(X, (16,))), (16,))

    found = profile_norms(model, step)
    timed = dict(zip(outputs, kernels[-len(outputs) :], strict=True))
    assert {name for name, accelerated in timed.items() if accelerated} == {"accelerate"}
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", "CPU")
    assert found.accelerate is not None
    assert [note.split(" outside")[0] for note in found.notes] == [
        "F.rms_norm is called 1 times",
        "F.layer_norm is called 1 times",
    ]


def test_a_compiled_step_is_compiled_for_each_variant(outputs):
    torch._dynamo.reset()
    model = nn.Sequential(Norm(), nn.Linear(16, 16))
    graphs = []

    def backend(graph, inputs):
        def run(*given):
            graphs.append(graph)
            return graph(*given)

        return run

    compiled = torch.compile(model, backend=backend)
    with torch._dynamo.config.patch(recompile_limit=2):
        found = profile_norms(model, lambda _: compiled(X))
    assert [(r.cls, r.n, r.calls) for r in found.norms] == [("Norm", 16, 1)]
    assert found.notes == []
    assert list(outputs) == ["model", "swap_norms", "no norms"]
    # No step ran uncompiled. The guards of torch 2.11 (Python 3.12) miss that a module's class has changed, so that
    # swap_norms may run in the model's graph; it has the same operations.
    tried, timed = graphs[:3], graphs[3:]
    assert list(map(len, (tried, timed))) == [3, 3]
    assert not any(graph in tried for graph in timed)
    assert timed[2] not in timed[:2]
    if torch.__version__ >= (2, 13):
        assert len(set(map(id, timed))) == 3
    torch.testing.assert_close(outputs["no norms"], model[1](X))
    torch.testing.assert_close(compiled(X), model(X))


def test_work_that_depends_on_the_numbers_is_not_compared(outputs):
    model = nn.Sequential(Norm())

    def step(model):
        y = 40 * X
        while y.abs().max() > 1:
            y = model(y) / 8

    found = profile_norms(model, step)
    assert found.cost is None
    assert found.swap is not None
    assert [note for note in found.notes if note.startswith("no norms: not timed, since the work depends on")]
    assert "–" in str(found)


def test_a_variant_that_fails_loses_its_own_figures_only(outputs):
    def step(model):
        y = model(X)
        assert not torch.equal(y, X), "not normalised"

    found = profile_norms(nn.Sequential(Norm()), step)
    assert list(found.times_ns) == ["model", "swap_norms"]
    assert found.notes == ["no norms: not timed, the step raises AssertionError: not normalised"]


def test_a_result_that_is_no_tensor_is_not_left_out(outputs):
    class HeadNorm(Norm):
        def forward(self, x):
            return super().forward(x), x

    found = profile_norms(nn.Sequential(HeadNorm()), lambda model: model(X))
    assert found.norms[0].share is found.norms[0].us is found.cost is None
    assert found.notes == ["HeadNorm: its result is no tensor of the input's shape, so it cannot be left out"]


def _meta():
    return nn.Sequential(nn.Linear(4, 4, device="meta"), nn.RMSNorm(4))


def _sharded():
    """As fully_shard makes it, without a process group."""
    from torch.distributed.fsdp import FSDPModule

    model = nn.Sequential(nn.RMSNorm(16), nn.Linear(16, 4))
    model[1].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    return model


@pytest.mark.parametrize(
    ("model", "step", "options", "error", "said"),
    [
        (torch.zeros(2), len, {}, TypeError, "model must be a torch.nn.Module, got Tensor"),
        (nn.RMSNorm(4), 3, {}, TypeError, "step must be callable with the model, got int"),
        (nn.RMSNorm(4), len, {"seconds": "9"}, TypeError, "seconds must be a number, got str"),
        (nn.RMSNorm(4), len, {"seconds": 0}, ValueError, "seconds must be positive and finite, got 0"),
        (nn.RMSNorm(4), len, {"rounds": 0}, ValueError, "rounds must be positive, got 0"),
        (nn.RMSNorm(4), len, {"rounds": 1.0}, TypeError, "rounds must be an int or None, got float"),
        (nn.Linear(4, 4), lambda m: m(X[:, :4]), {}, ValueError, "the step must call a norm of the model"),
        (nn.RMSNorm(4), lambda m: None, {}, ValueError, "calls none of 1"),
        (nn.LazyLinear(4), len, {}, ValueError, "weight has none yet; run the model once before"),
        (_sharded(), len, {}, NotImplementedError, "profile the model before it is sharded"),
        (_meta(), len, {}, NotImplementedError, "0.weight is on meta; move the model"),
    ],
)
def test_wrong_arguments(model, step, options, error, said):
    with pytest.raises(error, match=said):
        profile_norms(model, step, **options)
