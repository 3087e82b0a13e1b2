"""``rmsnorm compare --timing-only``: step times without training, in the paper's size on drawn inputs."""

import json

import pytest

torch = pytest.importorskip("torch")
for package in ("lightning_fabric", "tokenizers", "sacrebleu", "sklearn", "jinja2", "scipy", "rich"):
    pytest.importorskip(package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm.torch import GRU  # noqa: E402
from rmsnorm_lab.experiments import profile, step_budget, store, tasks, timing_only  # noqa: E402
from rmsnorm_lab.experiments.learner import Learner, Setup  # noqa: E402
from rmsnorm_lab.experiments.models.recurrent import LoopGRU  # noqa: E402
from rmsnorm_lab.experiments.paper import PUBLISHED  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402
from rmsnorm_lab.experiments.step_budget import needed  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402

SMALL = {
    "translation": "model.embedding=8 model.hidden=6 data.vocabulary=300 data.max_length=9 train.batch=4",
    "transformer": "model.width=8 model.feed_forward=8 model.heads=2 model.layers=1 train.batch=200 "
    "data.vocabulary=300",
    "images": "model.widths=8,8 train.batch=4",
    "retrieval": "model.width=8 model.word_width=4 train.batch=4",
    "reading": "model.width=8 model.word_width=8 model.read_width=8 data.vocabulary=50 data.longest=9 train.batch=4",
}
OF_PAPER = ["--size", "paper", "--timing-only", "--timing-rounds", "1", "--threads", "1"]
SETTINGS = ["unfused", "rmsnorm", "best"]


def timed(task, out, *more):
    return main(["compare", task, *OF_PAPER, "--out", str(out), "--set", *SMALL[task].split(), *more])


def identities(out):
    return {record.identity.kernels: record.identity for record in store.load(out)}


@pytest.mark.parametrize("task", SMALL)
def test_every_task_of_the_paper(task, tmp_path, capsys):
    assert timed(task, tmp_path) == 0
    captured = capsys.readouterr()
    shape = {"images": "CIFAR-10", "retrieval": "COCO", "reading": "CNN"}.get(task, "WMT14 En-De")
    heading = f"time {task} · inputs drawn at random in the shape of {shape} (seed 0) · paper size · nothing is trained"
    assert captured.out.splitlines()[0] == captured.err.splitlines()[0] == heading
    assert f"\ninputs drawn at random in the shape of {shape} (seed 0); nothing was trained" in captured.out
    assert f"paper: {PUBLISHED[task].where}; seconds: of {PUBLISHED[task].seconds_of}" in captured.out
    lines = captured.out.splitlines()
    of_rms = next(place for place, line in enumerate(lines) if line.startswith("RMSNorm"))
    assert lines[of_rms + 1].split("  paper")[1].split() == [
        *PUBLISHED[task].seconds["rms"].split(),
        "s",
        *PUBLISHED[task].saved["rms"].split(),
    ]
    for path in tmp_path.glob("*.jsonl"):
        content = json.loads(path.read_text())
        assert content["kind"] == "timing"
        assert content["source_name"].startswith("inputs drawn at random")
        assert content["identity"]["source"]["details"]["inputs"] == "drawn at random"
        assert content["result"]["memory"] >= max(content["result"]["peak_memory"].values())
    assert sorted(identities(tmp_path)) == sorted(SETTINGS)
    assert all(set(each.norms) == set(PUBLISHED[task].seconds) for each in identities(tmp_path).values())
    assert not list(tmp_path.glob("*.png"))

    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert '<span class="stand-in">inputs drawn at random</span>' in page
    assert "stand-in data</span>" not in page
    assert "Nothing was trained; " in page
    assert f"paper {PUBLISHED[task].seconds['rms']} s" in page
    assert f"rmsnorm compare {task} --size paper " in page
    assert " --timing-only --threads 1 --set " in page

    capsys.readouterr()
    assert main(["report", str(tmp_path), "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith(f"**{task}, times alone, paper size, inputs drawn at random")
    unit = {"images": "an epoch", "retrieval": "100 steps", "reading": "100 steps"}.get(task, "1,000 steps")
    assert table[2].startswith(f"| norm | paper: s of {unit} | paper: saved, % | in operators: ms a step | saved, % |")
    row = next(line for line in table if line.startswith("| RMSNorm |")).split(" | ")
    assert row[1:3] == [PUBLISHED[task].seconds["rms"], PUBLISHED[task].saved["rms"]]


def test_the_same_command_measures_what_is_missing(tmp_path, capsys, monkeypatch):
    assert timed("retrieval", tmp_path, "--norm", "layer", "rms") == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    next(iter(before)).unlink()
    measured = []
    original = step_budget.measure
    monkeypatch.setattr(step_budget, "measure", lambda *args: measured.append(args) or original(*args))
    assert timed("retrieval", tmp_path, "--norm", "layer", "rms") == 0
    assert len(measured) == 1
    assert "2 of 3 were recorded" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert after.keys() == before.keys()
    assert sum(after[path] == before[path] for path in before) >= 2
    assert timed("retrieval", tmp_path, "--norm", "layer", "rms", "--overwrite") == 0
    assert len(measured) == 4


def test_with_kernels_recurrences_have_torchs_biases():
    task = tasks.drawn("translation", changed(tasks.recipe("translation", "paper"), SMALL["translation"].split()))
    unfused, *others = timing_only.jobs(task, Setup(), ["layer", "rms"])
    assert unfused.identity.biases is None
    assert unfused.task.recipe.model.biases == "paper"
    for job in others:
        assert job.identity.biases == "alike"
        assert job.identity.model["biases"] == "paper"  # so that all three are of one experiment
        layer = job.task.model("rms", job.setup.kernels).encoder.directions[0]
        assert isinstance(layer, GRU)
    assert isinstance(unfused.task.model("rms", "unfused").encoder.directions[0], LoopGRU)
    assert task.recipe.model.biases == "paper"


def test_a_batch_that_is_taken_in_parts_is_timed_by_one_of_them(tmp_path, capsys):
    recipe = timing_only.changed(tasks.recipe("transformer", "paper"), None)
    assert (recipe.train.batch, recipe.train.accumulate) == (3125, 1)
    assert (recipe.timing.seconds, recipe.timing.rounds) == (timing_only.SECONDS, 60)
    assert main(["compare", "language", *OF_PAPER, "--out", str(tmp_path), "--norm", "rms", "--set", *TINY]) == 0
    out = capsys.readouterr().out
    assert "a step: 16 rows of 32 characters, one of the 4 parts of the recipe's 64" in out
    assert "LayerNorm was not timed" in out


def test_the_other_sizes_take_their_stand_in_or_the_users_data(tmp_path, capsys):
    more = ["--timing-only", "--timing-rounds", "1", "--threads", "1", "--norm", "rms", "--out", str(tmp_path)]
    assert main(["compare", "language", *more, "--set", *TINY]) == 0
    assert "time language · stand-in: Python" in capsys.readouterr().out
    data = ["--data", str(corpus(tmp_path))]
    assert main(["compare", "language", "--size", "paper", *data, *more, "--set", *TINY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["timing_only"]
    assert found["source"]["name"] == "words.txt"
    assert "inputs" not in found["source"]["details"]
    assert list(found["time"]) == SETTINGS
    assert [each["norm"] for each in found["time"]["best"]["rows"]] == ["rms"]


def test_your_own_norm(tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text("def halved(width):\n    return lambda x: x / 2\n")
    assert timed("retrieval", tmp_path / "runs", "--norm", "layer", f"{own}:halved") == 0
    printed = capsys.readouterr().out
    assert f": {own}:halved, the same module with all kernels" in printed
    assert "rounds: 1 in each setting, whatever time they take" in printed
    assert printed.count("its recurrences are loops in every table") == 1
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert f"--norm layer {own}:halved --timing-only" in (tmp_path / "runs" / "report.html").read_text()


@pytest.mark.parametrize(
    "flags",
    ["--seeds 2", "--steps 5", "--checkpoint-every 1", "--sweep-lr 0.1", "--timing-rounds 0", "--sweep-p 0.5"],
)
def test_what_has_no_effect_is_refused(flags, tmp_path, capsys):
    assert main(["compare", "language", "--timing-only", "--out", str(tmp_path), *flags.split()]) == 2
    flag = flags if flags == "--timing-rounds 0" else flags.split()[0]
    assert f"--timing-only trains nothing and times; got {flag} too." in capsys.readouterr().err


class Told:
    def __init__(self):
        self.done = []

    def advance(self, done, taken=1):
        assert taken == done - (self.done[-1] if self.done else 0)
        self.done.append(done)

    def doing(self, what):
        pass


def tiny(**timing):
    values = [f"timing.{name}={value}" for name, value in timing.items()]
    return tasks.drawn("language", changed(tasks.recipe("language", "paper"), [*TINY, "train.accumulate=1", *values]))


@pytest.mark.parametrize(
    ("timing", "rounds"),
    [
        ({"seconds": 1e-9}, 3),
        ({"seconds": 1e-9, "fewest": 5}, 5),
        ({"seconds": 1e-9, "rounds": 2}, 2),
        ({"seconds": 1e9, "rounds": 4}, 4),
    ],
)
def test_rounds_end_with_the_time(timing, rounds):
    told = Told()
    result = step_budget.measure(tiny(warmup_rounds=1, **timing), Setup(), ["layer", "rms"], told)
    assert {norm: len(times) for norm, times in result.milliseconds.items()} == {"layer": rounds, "rms": rounds}
    assert told.done == sorted(told.done)
    assert told.done[0] > 0
    assert told.done[-1] <= step_budget.WHOLE


def test_the_time_left_is_known_from_the_first_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(step_budget, "monotonic", lambda: now[0])
    told = Told()
    progress = step_budget._Progress(tiny(seconds=80).recipe.timing, 4, told)
    for _ in range(40):
        now[0] += 2.0
        progress.step()
    assert told.done == [25 * step for step in range(1, 41)]  # 80 s are ten rounds of 8 s


def test_networks_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    made = []

    class Spy(Learner):
        def __init__(self, task, setup, norm, seed):
            made.append(norm)
            super().__init__(task, setup, norm, seed)

    monkeypatch.setattr(step_budget, "Learner", Spy)
    monkeypatch.setattr(step_budget, "available", lambda device: 1 << 20)
    with pytest.raises(Exception, match=r"timing 3 normalisers of language together takes 0\.\d GiB of memory; 0\.\d"):
        step_budget.measure(tiny(seconds=1), Setup(), ["none", "layer", "rms"], Told())
    assert made == ["none"]


def test_memory_of_several_networks():
    profiles = [profile.Profile(None, 10, 7), profile.Profile(None, 30, 8)]
    assert needed(profiles, 2) == 7 + 8 + 22
    assert needed(profiles, 4) == 7 + 3 * 8 + 22


def test_a_profiled_network_is_as_it_was():
    task = tiny(seconds=1)
    learner = Learner(task, Setup("unfused"), "rms", 0)
    first = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.start_optimizer()
    assert all(torch.equal(a, b) for a, b in zip(first, learner.model.parameters(), strict=True))
    before = [dict(vars(module)) for module in learner.network().modules()]
    found = profile.of(learner, task.batch(0, 0), 1)
    assert [dict(vars(module)) for module in learner.network().modules()] == before
    weights = 4 * sum(parameter.numel() for parameter in learner.model.parameters())
    assert 3 * weights <= found.held < 3.2 * weights  # and Adam's two moments
    assert found.peak_memory > found.held + weights  # and the gradients
