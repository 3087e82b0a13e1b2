"""What the paper's figures need beside a comparison: hidden states by position, and runs with different p."""

import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm.experiments import hidden_states, sweep_p  # noqa: E402


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
    from rmsnorm.experiments import tasks
    from rmsnorm.experiments.recipes import settings

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
    (tmp_path / "words.txt").write_text("\n".join(draw.choice(["alpha", "beta", "gamma"]) for _ in range(4000)))

    def run(*flags):
        small = ("model.width=32", "model.layers=1", "model.heads=2", "model.feed_forward=48", "model.context=32")
        return main(
            [
                *("compare", "language", "--data", str(tmp_path / "words.txt"), "--out", str(tmp_path / "runs")),
                *("--threads", "1", "--steps", "2", "--set", *small, "data.evaluation_windows=32", *flags),
            ]
        )

    run.folder = tmp_path / "runs"
    return run


def test_a_sweep_of_p_trains_every_p_once(sweep, capsys):
    threads = torch.get_num_threads()
    assert sweep("--seeds", "2", "--sweep-p", "0.5", "0.0625", "1", "--json") == 0
    first = capsys.readouterr()
    found = json.loads(first.out)["p"]
    assert [row["p"] for row in found] == [0.0625, 0.5, 1.0]
    assert all(row["runs"] == 2 and row["metrics"]["bits"]["sd"] > 0 for row in found)
    assert len({row["metrics"]["bits"]["mean"] for row in found}) == 3  # p reaches the network
    assert len(list(sweep.folder.glob("language-prms-seed?-*.jsonl"))) == 6
    assert sweep("--seeds", "2", "--sweep-p", "0.25", "0.5", "0.0625", "1") == 0
    again = capsys.readouterr()
    assert "6 of 8 were recorded" in again.err
    assert "25" in again.out
    assert sweep("--seeds", "2", "--norm", "prms", "rms", "--timing-rounds", "0") == 0
    assert "2 of 4 were recorded" in capsys.readouterr().err  # the recipe's p is the comparison's own run
    torch.set_num_threads(threads)


def test_the_papers_values_of_p_are_the_default():
    assert sweep_p.PAPER == (0.0625, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
