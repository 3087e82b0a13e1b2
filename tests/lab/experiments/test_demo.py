"""``rmsnorm demo``: one table, one picture, one sentence, and what the sentence may say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from made_records import run_record  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import norms, profile  # noqa: E402
from rmsnorm_lab.experiments.demo import ROWS, better, verdict  # noqa: E402
from rmsnorm_lab.experiments.recipes import translation  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import EPS  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402
from rmsnorm_lab.experiments.record import Metric  # noqa: E402
from tiny_runs import SHORT  # noqa: E402

SMALL = [
    *("model.embedding=16", "model.hidden=16", "data.vocabulary=500", "data.stand_in_pairs=60,8,8"),
    *("train.batch=8", "train.steps=4", "train.warmup_steps=1"),
]
BITS = Metric("bits", "bits", higher_is_better=False, form=".2f")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_threads: Any) -> Path:
    set_threads(1)
    recipe = changed(translation.demo(), [*SMALL, *SHORT])
    monkeypatch.setattr(translation, "demo", lambda: recipe)
    monkeypatch.setattr(profile, "STEPS", 1)  # of three: to profile a recurrence's step takes 0.2 s
    return tmp_path / "out"


def test_one_screen_and_its_details(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--seeds", "2", "--threads", "1", "--out", str(tiny)]
    assert main([*command, "--details"]) == 0
    details = capsys.readouterr().out
    for part in (
        "time, unfused",
        "time, this project's kernels",
        "time, torch's LayerNorm",
        "data: Babel",
        "Verdict: ",
    ):
        assert part in details
    assert main(command) == 0  # the same table, from the records
    said = capsys.readouterr()
    assert said.out in details
    assert "9 of 9 were recorded" in said.err
    lines = said.out.splitlines()
    assert len(lines) <= 24
    places = [next(i for i, line in enumerate(lines) if line.startswith(label)) for label in ROWS.values()]
    assert places == sorted(places)
    figures = {
        label: lines[place].removeprefix(label).split() for label, place in zip(ROWS.values(), places, strict=True)
    }
    assert len(figures["no norm"]) == 3 + 1 + 2  # quality ± sd, ms, and two savings
    assert len(figures["LayerNorm (torch's)"]) == 3 + 1 + 1 + 1
    assert len(figures["RMSNorm (ours)"]) == 3 + 1 + 2 + 1
    assert figures["RMSNorm (torch's)"][:2] == ["as", "ours"]
    assert sum(line.startswith("Verdict: ") for line in lines) == 1
    assert (tiny / "translation.png").exists()
    assert len(list(tiny.glob("translation-*-seed*.jsonl"))) == 2 * 4
    timed = [json.loads(path.read_text())["identity"] for path in tiny.glob("translation-timing-*.jsonl")]
    assert {identity["kernels"] for identity in timed} == {"unfused", "rmsnorm", "best"}
    assert all(identity["norms"] == list(ROWS) for identity in timed)


def runs(norm: str, mean: float | None) -> list[Any]:
    return [run_record(norm, seed, None if mean is None else mean + 0.01 * (seed - 1)) for seed in range(3)]


def test_a_norm_that_diverged_is_worse_than_one_that_did_not() -> None:
    assert better(BITS, runs("rms", None), runs("layer", 2.0)) is False
    assert better(BITS, runs("rms", 2.0), runs("layer", None)) is True
    assert better(BITS, runs("rms", None), runs("layer", None)) is None


def timing(**milliseconds: float) -> Any:
    times = {name.replace("_", "-"): [value * (1 + 0.01 * n) for n in range(9)] for name, value in milliseconds.items()}
    return SimpleNamespace(result=SimpleNamespace(milliseconds=times))


@pytest.mark.parametrize(
    ("none", "layer", "rms", "times", "expected"),
    [
        (
            None,
            2.5,
            2.5,
            timing(layer=10, rms_torch=12, rms=9),
            "Verdict: This network needs a norm (diverged without, 2.50 with LayerNorm); no difference is shown "
            "between RMSNorm and LayerNorm (2.50); with our RMSNorm a step takes 10.0 % less than with torch's "
            "LayerNorm and 25.0 % less than with torch's RMSNorm.",
        ),
        (
            2.2,
            2.5,
            2.8,
            timing(layer=10, rms_torch=10, rms=11),
            "Verdict: This network learns best without a norm (2.20; 2.50 with LayerNorm); RMSNorm is worse than "
            "LayerNorm (2.80); with our RMSNorm a step takes 10.0 % more than with torch's LayerNorm and 10.0 % more "
            "than with torch's RMSNorm.",
        ),
        (
            2.5,
            2.5,
            2.2,
            timing(layer=10, rms_torch=10, rms=10),
            "Verdict: It is not shown that this network needs a norm (2.50 without, 2.50 with LayerNorm); "
            "RMSNorm is better than LayerNorm (2.20); with our RMSNorm a step takes as long as with torch's LayerNorm "
            "and as long as with torch's RMSNorm.",
        ),
    ],
)
def test_the_verdict_says_what_was_measured(
    none: float | None, layer: float, rms: float, times: Any, expected: str
) -> None:
    of = {norm: runs(norm, mean) for norm, mean in (("none", none), ("layer", layer), ("rms", rms))}
    assert verdict(of, BITS, times) == expected


@pytest.mark.parametrize("kernels", ["unfused", "rmsnorm", "best"])
def test_torchs_rms_norm_is_the_same_function(kernels: str) -> None:
    x, gain = torch.randn(7, 33), torch.randn(33)
    theirs, ours = norms.made("rms-torch", kernels), norms.made("rms", kernels)
    expected = torch.nn.functional.rms_norm(x, (33,), gain, EPS)
    for norm in (theirs, ours):
        torch.testing.assert_close(norm.vector()(x, gain), expected)
    layers = [norm.layer(33) for norm in (theirs, ours)]
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        layer.weight.data += gain
        torch.testing.assert_close(layer(x), expected)
    assert isinstance(layers[0], torch.nn.RMSNorm) == (kernels != "unfused")
    assert theirs.recurrence() is None


def test_prmsnorm_sees_enough() -> None:
    recipe = translation.demo()
    assert min(recipe.model.embedding, recipe.model.hidden) * recipe.p >= 16
