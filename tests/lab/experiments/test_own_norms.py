"""A norm of the user's own: found, checked, trained beside the built-in ones, and found again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)

from own_norms import RMS, said, written  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import arguments, norms, tasks  # noqa: E402
from rmsnorm_lab.experiments.data.subwords import END, PAD  # noqa: E402
from tiny_runs import TINY, corpus, language, result  # noqa: E402

DOCS = Path(__file__).parents[3] / "docs" / "experiments.md"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, set_threads, tmp_path):
    """Files are named from the current folder."""
    set_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def of_docs():
    """The example of docs/experiments.md, as a file."""
    section = DOCS.read_text(encoding="utf-8").partition("## Your own norm\n")[2]
    return written(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])


def test_the_documented_norm_is_trained_timed_tabulated_drawn_and_reported(tmp_path, capsys):
    of_docs()
    corpus(tmp_path)
    out = tmp_path / "out"
    command = language(out, "--norm", "layer", "my_norm.py:MyNorm", "none", seeds=1)
    before = set(norms.REGISTRY)
    assert main(command) == 0
    said = capsys.readouterr()
    (name,) = norms.REGISTRY.keys() - before
    assert re.fullmatch(r"MyNorm@[0-9a-f]{8}", name)
    assert f"{name}, seed 0" in said.err
    rows = [line.split() for line in said.out.splitlines() if line.startswith(f"{name} ")]
    assert len(rows) == 4  # quality, and the times of three settings
    assert f"{name}: my_norm.py:MyNorm, the same module with all kernels" in said.out
    (run,) = out.glob("language-MyNorm@*")
    record = json.loads(run.read_text())
    assert (record["identity"]["norm"], record["norm_source"]) == (name, "my_norm.py:MyNorm")
    timed = [json.loads(path.read_text()) for path in out.glob("*-timing-*")]
    assert all(each["identity"]["norms"] == ["none", "layer", name] for each in timed)
    assert all(0 < each["result"]["profiled_share"][name] < 1 for each in timed)

    assert main(command) == 0  # nothing is done again
    assert "5 of 6 were recorded" not in capsys.readouterr().err
    norms.REGISTRY.pop(name)
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert f"{name} is my_norm.py:MyNorm" in page
    assert norms.entry(name).colour in page


def test_an_edited_norm_is_another_one(tmp_path, capsys):
    written()
    corpus(tmp_path)
    out = tmp_path / "out"
    command = language(out, "--norm", "my_norm.py:Same", "--timing-rounds", "0", seeds=1)
    assert main(command) == 0
    before = result(out)
    written(RMS.replace("eps=1e-5)", "eps=1e+5)", 1))
    assert main(command) == 0
    assert "already" not in capsys.readouterr().err
    runs = sorted(out.glob("*.jsonl"))
    assert len(runs) == 2
    after = [json.loads(path.read_text())["result"]["quality"] for path in runs]
    assert before[0] in after
    assert after[0] != after[1]
    written()
    assert main(command) == 0
    assert "1 of 1 were recorded" in capsys.readouterr().err


TRAIN = ["train", "language", "--threads", "1", "--steps", "2", "--data", "words.txt", "--set", *TINY]


def test_a_kept_run_finds_its_norm_again_and_refuses_another(tmp_path, capsys):
    path = written()
    corpus(tmp_path)
    assert main([*TRAIN, "--norm", "my_norm.py:Same", "--out", "out"]) == 0
    norms.REGISTRY.popitem()
    run = experiments.load("out")
    assert isinstance(run.model.norm, torch.nn.RMSNorm)
    assert main(["evaluate", "out", "--data", "words.txt"]) == 0
    assert main(["sample", "out", "--length", "3"]) == 0
    written(RMS + "\n")
    with pytest.raises(UserError, match=r"trained with the norm my_norm\.py:Same as Same@\w{8}; .* has changed"):
        experiments.load("out")
    path.unlink()
    capsys.readouterr()
    assert main(["evaluate", "out", "--data", "words.txt"]) == 2
    assert re.search(r"norm my_norm\.py:Same, which must be there .* 'my_norm\.py' cannot: No such file", said(capsys))


INPUTS = {
    "language": (torch.tensor([[1, 2, 3, 4]]),),
    "transformer": (torch.tensor([[5, 6, END], [7, END, PAD]]), torch.tensor([[8, END], [9, END]])),
    "translation": (torch.tensor([[5, 6, END], [7, END, PAD]]), torch.tensor([[8, END], [9, END]])),
    "reading": (
        torch.tensor([[3, 4, 5], [6, 7, 0]]),
        torch.tensor([3, 2]),
        torch.tensor([[2, 4], [3, 0]]),
        torch.tensor([2, 1]),
    ),
    "retrieval": (torch.randn(2, 6), torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1])),
    "images": (torch.randn(2, 1, 16, 16),),
}
SIZES = {"vocabulary": 11, "features": 6, "channels": 1, "classes": 4}


def network(task, norm):
    torch.manual_seed(5)
    return tasks.module(task).network(tasks.recipe(task), SIZES, norm, "unfused")


@pytest.mark.parametrize("norm", ["Same", "Deep", "plain"])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_it_normalises_what_rmsnorm_does_in_every_task(task, norm):
    """One that equals RMSNorm gives RMSNorm's network; the weights of the rest are the same whatever it draws."""
    written()
    own, built_in = network(task, norms.of_user(f"my_norm.py:{norm}")), network(task, "rms")
    others = dict(built_in.named_parameters())
    for name, parameter in own.named_parameters():
        if parameter.ndim > 1 and name in others:
            assert torch.equal(parameter, others.pop(name))
    assert all(parameter.ndim == 1 for parameter in others.values())  # gains
    found, expected = (model.eval()(*INPUTS[task]) for model in (own, built_in))
    if task != "images":  # there a norm of one's own takes the channels, and the built-in ones the positions
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found = found if isinstance(found, tuple) else (found,)
    sum(each.square().sum() for each in found).backward()
    assert all(parameter.grad is not None for parameter in own.parameters())


def test_images_are_normalised_over_the_channels_of_a_position():
    written()
    layer = norms.made(norms.of_user("my_norm.py:Same"), "rmsnorm").channels(5, spatial=True)
    x = torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(5.0))
        expected = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() + torch.arange(5.0)[:, None, None]
        torch.testing.assert_close(layer(x), expected)
    assert layer.normalises


def test_norms_of_one_network_start_differently_and_in_training_mode():
    written("import torch\ndef Drawn(width):\n    return torch.nn.Sequential(torch.nn.Linear(width, width))\n")
    made = norms.made(norms.of_user("my_norm.py:Drawn"), "best")
    before = torch.get_rng_state()
    first, second = made.layer(3), made.layer(3)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first[0].weight, second[0].weight)
    assert first.training


def test_statistics_start_where_the_norm_starts_them():
    written(
        "import torch\nclass X(torch.nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.register_buffer('seen', torch.zeros(()))\n    def forward(self, x):\n"
        "        self.seen += 1\n        return x * 1\n"
    )
    assert norms.made(norms.of_user("my_norm.py:X"), "best").layer(3).seen == 0


def test_a_file_may_have_a_comma_in_its_name():
    written(name="a,b.py")
    written()
    assert [name.split("@")[0] for name in arguments.norms_of(["a,b.py:Same"], "language")] == ["Same"]
    found = arguments.norms_of(["rms,my_norm.py:Deep", "./a,b.py:plain"], "language")
    assert [name.split("@")[0] for name in found] == ["rms", "Deep", "plain"]


def test_a_norm_in_a_package(tmp_path):
    written("from mine.inside import Other as MyNorm\nstray = 3\n", "mine/__init__.py")
    written(RMS + "Other = Same\n", "mine/inside.py")
    name = norms.of_user("mine:MyNorm")
    assert isinstance(norms.made(name, "best").layer(4), torch.nn.RMSNorm)
    written(RMS + "Other = Deep\n", "mine/inside.py")
    code = "from rmsnorm_lab.experiments import norms; print(norms.of_user('mine:MyNorm'))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"MyNorm@\w{8}\n", again.stdout)
    assert again.stdout.strip() != name


def test_the_documented_norm_has_the_invariances_that_it_has_on_paper(capsys):
    of_docs()
    assert main(["invariance", "--trials", "1", "--norm", "my_norm.py:MyNorm"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("MyNorm@"))
    assert [each for each in row if each in "✓✗"] == list("✓✗✗✓✗✓")
    assert "own small constants" not in printed


def test_invariance_says_where_a_norm_keeps_its_own_small_constants(capsys):
    written()
    assert main(["invariance", "--trials", "1", "--norm", "my_norm.py:plain", "my_norm.py:Same"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "no number called eps was found" in line]
    assert [line.split("@")[0] for line in notes] == ["plain"]
    assert main(["invariance", "--trials", "1", "--norm", "my_norm.py:plain", "--json"]) == 0
    assert [name.split("@")[0] for name in json.loads(capsys.readouterr().out)["without_eps"]] == ["plain"]


def test_invariance_measures_it_with_the_others(capsys):
    written(RMS + "\ndef Constant(width):\n    return lambda x: x * 0\n")
    assert main(["invariance", "--trials", "1", "--norm", "my_norm.py:Same"]) == 0
    rows = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith(("RMSNorm", "Same@"))]
    assert [each for each in rows[0] if each in "✓✗"] == [each for each in rows[1] if each in "✓✗"]
    assert len(rows) == 4
    assert main(["invariance", "--norm", "rms"]) == 2
    assert "got 'rms'. none, l2, " in said(capsys)
    assert main(["invariance", "--trials", "1", "--norm", "my_norm.py:Constant"]) == 2
    assert "must have a finite gradient other than 0" in said(capsys)
