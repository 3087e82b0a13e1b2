"""The registry of normalisers: what one entry is enough for."""

import json

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms, tasks  # noqa: E402
from rmsnorm_lab.experiments.norms.base import Normaliser  # noqa: E402
from tiny_runs import TINY, corpus, language  # noqa: E402


class Softsign(Normaliser):
    """Made up: x / (1 + |x|) ⊙ gain."""

    def make_layer(self, width):
        return SoftsignLayer(width)

    def vector(self):
        return lambda x, gain: torch.nn.functional.softsign(x) * (1.0 if gain is None else gain)


class SoftsignLayer(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return torch.nn.functional.softsign(x) * self.weight


@pytest.fixture
def made_up(set_threads):
    set_threads(1)
    norm = norms.Norm("softsign", "Softsign", "#123456", "-", Softsign, tasks=tasks.TASKS)
    norms.register(norm)
    return norm


def test_a_made_up_normaliser_is_trained_timed_tabulated_and_drawn(made_up, tmp_path, capsys):
    corpus(tmp_path)
    out = tmp_path / "out"
    assert main(language(out, "--norm", "layer", "softsign", "none", seeds=1)) == 0
    said = capsys.readouterr()
    assert "Softsign, seed 0" in said.err
    rows = [line.split() for line in said.out.splitlines() if line.startswith("Softsign")]
    assert len(rows) == 4  # quality, and the times of three settings
    assert all(len(row) == 8 for row in rows[1:])  # label, ms, saved [low, high], two shares, MiB
    assert (out / "language.png").exists()
    timed = [json.loads(path.read_text())["result"] for path in out.glob("*-timing-*")]
    assert all(0 < result["profiled_share"]["softsign"] < 1 for result in timed)
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Softsign" in page
    assert "#123456" in page


def test_a_record_of_a_normaliser_that_is_not_registered_is_shown_and_not_used(made_up, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["train", "language", "--norm", "softsign", "--data", str(corpus(tmp_path)), "--steps", "2"]
    assert main([*command, "--out", str(out), "--threads", "1", "--set", *TINY]) == 0
    assert isinstance(experiments.load(out).model.norm, SoftsignLayer)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"the normaliser must be one of none, .*, dyt; got 'softsign'"):
        experiments.load(out)
    assert main(["report", str(out)]) == 0
    assert "softsign" in (out / "report.html").read_text()


@pytest.mark.parametrize("task", ["retrieval", "images"])
def test_it_serves_recurrences_and_maps_too(made_up, task):
    sizes = {"retrieval": {"features": 6, "vocabulary": 9}, "images": {"channels": 1, "classes": 4}}[task]
    network = tasks.module(task).network(tasks.recipe(task), sizes, "softsign", "rmsnorm")
    words = (torch.randn(2, 6), torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1]))
    found = network(*words) if task == "retrieval" else (network(torch.randn(2, 1, 16, 16)),)
    sum(each.sum() for each in found).backward()
    gains = [p for name, p in network.named_parameters() if "gain" in name or name.startswith("norms")]
    assert len(gains) > 1
    assert all(gain.grad is not None for gain in gains)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'rms' is taken"):
        norms.register(norms.entry("rms"))


def test_what_a_normaliser_cannot_do_is_said():
    with pytest.raises(NotImplementedError, match="DyT is no function of one vector"):
        norms.made("dyt", "rmsnorm").vector()
    with pytest.raises(NotImplementedError, match="Weight has no statistics over examples"):
        norms.made("weight", "rmsnorm").step_norm(3)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_each_task_compares_some_of_its_normalisers(task):
    assert set(norms.by_default(task)) <= set(norms.of_task(task))
    assert {"none", "layer", "rms", "prms"} <= set(norms.by_default(task))
