"""The paper's Table 1 and §4.2: what is measured, and that the measurement can fail."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm import reference  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.analysis import gradients, invariance, normed_layer  # noqa: E402
from rmsnorm_lab.analysis.normed_layer import Draw, Sizes  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.norms.base import Normaliser  # noqa: E402

SIZES = (Sizes(), Sizes(8, 8, 8), Sizes(9, 31, 100))


def draw(sizes=Sizes(9, 31, 20), seed=0):  # noqa: B008  # frozen
    return Draw.random(sizes, torch.Generator().manual_seed(seed))


def test_the_papers_table_is_the_papers():
    """Read off PAPER.md's Table 1 once more, as marks: a slip in either copy shows."""
    marks = {norm: "".join("✗✓"[kept] for kept in row) for norm, row in invariance.TABLE_1.items()}
    assert marks == {"batch": "✓✗✓✓✓✗", "weight": "✓✗✓✗✗✗", "layer": "✓✓✗✓✗✓", "rms": "✓✗✗✓✗✓", "prms": "✓✗✗✓✗✓"}
    assert tuple(marks) == normed_layer.IN_TABLE_1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_cell_agrees_with_the_paper_and_none_is_near_the_line(sizes, seed):
    table = invariance.measure(sizes, trials=2, seed=seed)
    assert tuple(table) == (*normed_layer.IN_TABLE_1, "none", "l2", "group", "dyt")
    for row in table.values():
        for cell in row.values():
            assert cell.agrees
            assert cell.deviation < 1e-11 or cell.deviation > 1e-3


def test_the_layers_are_the_oracles():
    case = draw()
    a = case.x_NI.numpy() @ case.w_OI.numpy().T
    g, b = case.g_O.numpy(), case.b_O.numpy()
    expected = {
        "none": a * g + b,
        "layer": reference.layer_norm(a, g, b, eps=0),
        "rms": reference.rms_norm(a, g, b, eps=0),
        "prms": reference.rms_norm(a, g, b, k=2, eps=0),  # ⌈20 / 16⌉
        "l2": reference.rms_norm(a, g / 20**0.5, b, eps=0),
        "batch": reference.layer_norm(a.T, eps=0).T * g + b,
        "group": reference.layer_norm(a.reshape(9, 4, 5), eps=0).reshape(9, 20) * g + b,
        "weight": a / np.sqrt((case.w_OI.numpy() ** 2).sum(1)) * g + b,
        "dyt": np.tanh(a / 2) * g + b,
    }
    layers = normed_layer.layers(Sizes(9, 31, 20))
    assert set(expected) == set(layers)
    for norm, y in expected.items():
        found = layers[norm].output(case, case.x_NI, case.w_OI).detach()
        np.testing.assert_allclose(found, y, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_papers():
    """§4.2: ∂L/∂W = Σ_i (R (g ⊙ u_i)) x_iᵀ with R = (1/RMS)(I − a aᵀ / (n RMS²))."""
    case = draw()
    expected = np.zeros(case.w_OI.shape)
    for x, u in zip(case.x_NI.numpy(), case.u_NO.numpy(), strict=True):
        a = case.w_OI.numpy() @ x
        rms = np.sqrt(np.mean(a * a))
        r = (np.eye(len(a)) - np.outer(a, a) / (len(a) * rms**2)) / rms
        expected += np.outer(r @ (case.g_O.numpy() * u), x)
    layer = normed_layer.layers(Sizes(9, 31, 20))["rms"]
    np.testing.assert_allclose(layer.gradient(case, case.x_NI, case.w_OI), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_follow_the_powers_that_the_paper_derives(sizes):
    found = gradients.measure(sizes, seed=1)
    exponents = {norm: (each.inputs.exponent, each.weights.exponent) for norm, each in found.items()}
    after_product = dict.fromkeys(("batch", "layer", "rms", "prms", "l2", "group"), (0, -1))
    assert exponents == {**after_product, "weight": (1, -1), "none": (1, 0), "dyt": (None, None)}
    assert all(exponents[norm] == powers for norm, powers in gradients.DERIVED.items())
    for norm, each in found.items():
        assert (each.along_weights < 1e-12) == (norm not in ("none", "dyt"))
        assert each.inputs.length[12] == pytest.approx(1)  # δ = 1
    assert found["none"].inputs.length[-1] == pytest.approx(1000)
    assert found["rms"].weights.length[-1] == pytest.approx(1e-3)


def put_for_rms(monkeypatch, function):
    """``function`` in the place of RMSNorm."""

    class Function(torch.nn.Module):
        def forward(self, a):
            return function(a)

    class Damaged(Normaliser):
        def make_layer(self, width):
            return Function()

    monkeypatch.setitem(norms.REGISTRY, "rms", replace(norms.REGISTRY["rms"], implementation=Damaged))


def test_a_wrong_normaliser_is_seen(monkeypatch, capsys):
    put_for_rms(monkeypatch, lambda a: a / (a.square().mean(1, keepdim=True) + 1e-3).sqrt())
    assert main(["invariance"]) == 1
    said = capsys.readouterr().out
    assert "27 of 30 cells are as in the paper's Table 1; ≠ marks the others" in said
    assert said.count("≠") == 4
    assert gradients.measure(Sizes(), 0)["rms"].inputs.exponent is None


def test_nan_breaks_an_invariance(monkeypatch):
    put_for_rms(monkeypatch, lambda a: a * float("nan"))
    assert not any(cell.invariant for cell in invariance.measure(Sizes(), 2, 0)["rms"].values())


def test_the_command_fits_80_columns_and_is_the_same_for_one_seed(capsys):
    assert main(["invariance"]) == 0
    first = capsys.readouterr().out
    assert "30 of 30 cells" in first
    labels = tuple(norm.label for norm in norms.REGISTRY.values() if not (norm.source or norm.layer_of))
    rows = [line for line in first.splitlines() if line.startswith(labels)]
    assert len(rows) == 2 * len(labels)
    assert max(map(len, rows)) <= 80
    assert main(["invariance"]) == 0
    assert capsys.readouterr().out == first
    assert main(["invariance", "--seed", "1"]) == 0
    assert capsys.readouterr().out != first


def test_json_and_figure(tmp_path, capsys):
    assert main(["invariance", "--json", "--plot", str(tmp_path / "g.PNG"), "--trials", "1", "--cases", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["cases"] == 9
    assert found["agrees_with_paper"] is True
    assert found["invariance"]["rms"]["weight matrix re-centring"]["invariant"] is False
    assert len(found["gradients"]["norms"]["rms"]["inputs"]["length"]) == len(found["gradients"]["deltas"])
    assert (tmp_path / "g.PNG").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--cases", "7"), "--cases must be 8 to 4096; got 7"),
        (("--inputs", "1000000"), "--inputs must be 8 to 4096"),
        (("--outputs", "31"), "must be even"),
        (("--trials", "0"), "--trials must be 1 to 1000"),
        (("--seed", "-1"), "--seed must be 0"),
        (("--plot", "g.txt"), "ends in .png, .svg, .pdf"),
        (("--plot", "nowhere/g.png"), "a folder that exists"),
    ],
)
def test_wrong_use_is_said(flags, said, capsys):
    assert main(["invariance", *flags]) == 2
    assert said in capsys.readouterr().err
