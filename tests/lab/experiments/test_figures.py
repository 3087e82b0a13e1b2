"""What the paper's figures need beside a comparison: hidden states by position, and runs with different p."""

import io
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rich.console import Console  # noqa: E402

from made_records import run_identity, run_record, with_result  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import hidden_states, p_sweep  # noqa: E402
from rmsnorm_lab.experiments.rate_sweep import as_json, show, swept  # noqa: E402
from rmsnorm_lab.experiments.task import Metric, Source  # noqa: E402


def test_hidden_states_are_means_and_deviations_over_the_words_there_are():
    rng = np.random.default_rng(0)
    sentences = [rng.normal(3, 2, (length, 5)) for length in (7, 1, 4, 2, 3)]
    batches = []
    for chosen in (sentences[:2], sentences[2:]):
        longest = max(map(len, chosen))
        activations = np.full((len(chosen), longest, 5), 1e6)  # what is padded must not count
        there = np.zeros((len(chosen), longest), bool)
        for row, sentence in enumerate(chosen):
            activations[row, : len(sentence)], there[row, : len(sentence)] = sentence, True
        batches.append((torch.from_numpy(activations), torch.from_numpy(there)))
    found = hidden_states.figures(batches)
    for position in hidden_states.POSITIONS:
        if position == "all":
            values = np.concatenate([sentence.ravel() for sentence in sentences])
        else:
            values = np.concatenate([s[int(position) - 1] for s in sentences if len(s) >= int(position)])
        assert found[f"hidden_mean_{position}"] == pytest.approx(values.mean(), rel=1e-12)
        assert found[f"hidden_sd_{position}"] == pytest.approx(values.std(), rel=1e-12)


def test_a_position_that_no_target_reaches_is_left_out():
    found = hidden_states.figures([(torch.ones(2, 2, 3), torch.ones(2, 2, dtype=torch.bool))])
    assert set(found) == {f"hidden_{part}_{position}" for part in ("mean", "sd") for position in ("1", "2", "all")}


def test_a_translation_is_tested_with_its_hidden_states():
    """The activations are those before the gates: of a network without a norm, W_hh times the state before."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("tokenizers")
    pytest.importorskip("babel")
    from rmsnorm_lab.experiments import tasks
    from rmsnorm_lab.experiments.recipes import settings

    recipe = settings.changed(
        tasks.recipe("translation"), ["model.embedding=8", "model.hidden=8", "data.stand_in_pairs=[300,20,10]"]
    )
    task = tasks.load("translation", None, recipe)
    torch.manual_seed(0)
    model = task.model("none", "rmsnorm").eval()
    assert {"hidden_mean_1", "hidden_sd_all"} <= task.evaluate(model, "test").keys()
    assert not any(key.startswith("hidden") for key in task.evaluate(model, "valid"))
    with torch.no_grad():
        for parameter in model.word_cell.parameters():
            parameter.zero_()
    found = task.evaluate(model, "test")
    assert found["hidden_mean_all"] == found["hidden_sd_all"] == 0


@pytest.fixture
def sweep(tmp_path):
    draw = random.Random(0)
    data = tmp_path / "words [bold].txt"
    data.write_text("\n".join(draw.choice(["alpha", "beta", "gamma"]) for _ in range(4000)))

    def run(*flags):
        small = ("model.width=32", "model.layers=1", "model.heads=2", "model.feed_forward=48", "model.context=32")
        return main(
            [
                *("compare", "language", "--data", str(data), "--out", str(tmp_path / "runs")),
                *("--threads", "1", "--steps", "2", "--set", *small, "data.evaluation_windows=32", *flags),
            ]
        )

    run.folder = tmp_path / "runs"
    return run


def test_a_sweep_of_p_trains_every_p_once(sweep, capsys):
    threads = torch.get_num_threads()
    assert sweep("--seeds", "2", "--sweep-p", "0.5", "0.0625", "1", "--json") == 0
    first = capsys.readouterr()
    assert "pRMSNorm of 6.25 %, seed 1: " in first.err
    found = json.loads(first.out)["p"]
    assert [row["p"] for row in found] == [0.0625, 0.5, 1.0]
    assert all(row["runs"] == 2 and row["metrics"]["bits"]["sd"] > 0 for row in found)
    assert len({row["metrics"]["bits"]["mean"] for row in found}) == 3  # p reaches the network
    assert len(list(sweep.folder.glob("language-prms-seed?-*.jsonl"))) == 6
    assert sweep("--seeds", "2", "--sweep-p", "0.25", "0.5", "0.0625", "1") == 0
    again = capsys.readouterr()
    assert "6 of 8 were recorded" in again.err
    assert "25" in again.out
    assert "sweep of pRMSNorm's p · language, test · words [bold].txt" in again.out
    assert sweep("--seeds", "2", "--norm", "prms", "rms", "--timing-rounds", "0") == 0
    compared = capsys.readouterr()
    assert "2 of 4 were recorded" in compared.err  # the recipe's p is the comparison's own run
    for said in compared:
        assert "compare language · words [bold].txt" in said  # no markup
    torch.set_num_threads(threads)


def test_the_papers_values_of_p_are_the_default():
    assert p_sweep.PAPER_P == (0.0625, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sweep-p", "0"), "fractions, 0 < p <= 1; got 0"),
        (("--sweep-p", "1.5"), "fractions, 0 < p <= 1; got 1.5"),
        (("--sweep-p", "nan"), "fractions"),
        (("--sweep-p", "0.5", "--norm", "rms"), "got --norm too"),
        (("--sweep-p", "0.5", "--sweep-lr", "0.1"), "got --sweep-lr too"),
    ],
)
def test_wrong_sweeps_are_said(sweep, flags, said, capsys):
    assert sweep(*flags) == 2
    assert said in capsys.readouterr().err
    assert not sweep.folder.exists()


ACCURACY = Metric("bits", "accuracy\nset2014", True, ".1f", "accuracy")


def a_run(norm, rate, column, best=False, seed=0):
    train = replace(run_identity().train, learning_rate=rate, best=best)
    diverged = len(column) > 1 and column[1:] == [None, None]
    run = run_record(norm, seed, quality=None if diverged else 0.5, column=column, train=train)
    return with_result(run, metrics=(ACCURACY,))


@pytest.mark.parametrize(("best", "expected"), [(False, [0.5, 0.6, 0.3, None]), (True, [0.8, 0.7, 0.4, None])])
def test_a_sweep_judges_by_validation_and_says_where_the_best_rate_is_an_end(best, expected):
    rates = [0.1, 0.2, 0.4, 0.8]
    columns = [[0.2, 0.8, 0.5], [0.7, None, 0.6], [0.1, 0.4, 0.3], [0.9, None, None]]
    runs = {
        "rms": [a_run("rms", rate, column, best) for rate, column in zip(rates, columns, strict=True)],
        "layer": [a_run("layer", rate, [rate, rate, rate], best) for rate in rates],
    }
    found = swept(runs)
    task = SimpleNamespace(name="reading", source=Source("a [b] set", stand_in=True, sha256=""))
    said = as_json(task, found)
    assert list(said["valid"]["rms"].values()) == expected
    assert said["best"] == {"rms": "0.1" if best else "0.2", "layer": "0.8"}
    assert said["best_at_an_end"] == (["rms", "layer"] if best else ["layer"])
    console = Console(width=100, record=True, file=io.StringIO())
    show(task, found, console)
    said = console.export_text()
    assert "reading · accuracy, validation · stand-in: a [b] set" in said
    assert "LayerNorm; a rate beyond it" in said


def test_a_sweep_takes_the_figure_of_the_point_whose_weights_are_tested():
    run = a_run("rms", 0.1, [0.2, 0.8, 0.5], best=True)
    valid = {**run.result.curve.valid, "loss": [3.0, 2.0, 1.0]}
    run = with_result(run, curve=replace(run.result.curve, valid=valid))
    assert swept({"rms": [run]}).valid == {"rms": {0.1: 0.8}}
    by_loss = replace(run, identity=replace(run.identity, train=replace(run.identity.train, best_by="loss")))
    assert swept({"rms": [by_loss]}).valid == {"rms": {0.1: 0.5}}


def test_a_sweep_compares_rates_by_the_seeds_that_all_of_them_have():
    runs = {
        "rms": [a_run("rms", 0.1, [0.3], seed=0), a_run("rms", 0.2, [0.5], seed=0), a_run("rms", 0.2, [0.9], seed=1)],
        "prms": [a_run("prms", 0.1, [0.3], seed=0), a_run("prms", 0.2, [0.5], seed=1)],
    }
    assert swept(runs).valid == {"rms": {0.1: 0.3, 0.2: 0.5}}
