"""Which records the report takes together: by settings, data and machine; and what it concludes of them."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "jinja2"):
    pytest.importorskip(_package)
from made_records import MACHINE, run_record  # noqa: E402
from report_pages import SMALL, text_of  # noqa: E402
from rmsnorm.cli import main  # noqa: E402
from rmsnorm.timing import Spread  # noqa: E402
from rmsnorm_lab.experiments import store  # noqa: E402
from rmsnorm_lab.report.collect import collect  # noqa: E402
from rmsnorm_lab.report.verdicts import Verdict, of_all  # noqa: E402


def test_runs_that_differ_in_a_learning_rate_are_not_averaged(folder):
    for seed, rate in ((0, 0.003), (1, 0.003), (0, 0.5)):
        folder.run("prms", seed, 5.0 + seed + 70 * (rate == 0.5), p=0.125, rate=rate)
    folder.run("prms", 0, 44.0, p=0.5, rate=0.5)
    said = text_of(folder.page())
    assert "pRMSNorm 5.50 ± 0.71" in said
    assert "75.00" not in said
    assert "also recorded, not shown: pRMSNorm of the first 50 % at 0.5" in said
    assert "Learning rates: test error, % ↓, validation split, seed 0" in said
    assert "norm 0.003 0.5 pRMSNorm 10.00 * 10.00 * the best of its row" in said


def test_the_verdict_and_the_differences(folder):
    for seed in range(3):
        folder.run("layer", seed, 5.0 + seed)
        folder.run("none", seed, 5.0 + seed + 0.01 * seed)
        folder.run("rms", seed, 4.0 + seed + 0.1 * seed)
        folder.run("prms", seed, None if seed else 9.0, p=0.125)
    folder.timing(kernels="unfused")
    said = text_of(folder.page())
    better = "RMSNorm is better than LayerNorm in test error, % (RMSNorm − LayerNorm: −0.90 [−1.15, −0.65], 3 seeds)"
    saves = "RMSNorm saves 19.9 % [19.9, 20.0] of a step with norms in framework operators"
    assert f"images, 40 steps stand-in data : {better}; {saves}." in said
    assert (
        "RMSNorm's quality: better in 1 of 1 experiment (images); with norms in framework operators RMSNorm saves "
        in said
    )
    assert "no norm − LayerNorm +0.01 [−0.01, 0.03] no difference shown" in said
    assert "RMSNorm − LayerNorm −0.90 [−1.15, −0.65] better" in said
    assert "pRMSNorm − LayerNorm +4.00 one seed" in said
    assert "RMSNorm, seed 1 5.10 1" in said  # and the training loss
    assert "pRMSNorm, seed 2 diverged at step 2 1" in said


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.1], "saves 10.0 % of a step in 1 of 1"),
        ([0.1, 0.10004], "saves 10.0 % of a step in 2 of 2"),
        ([0.1, 0.2, 0.0], "saves 10.0 to 20.0 % of a step in 2 of 3"),
        ([-0.1, 0.0004, 0.3], "saves 30.0 % of a step in 1 of 3 and costs 10.0 % of a step in 1 of 3"),
        ([0.0], "shows no saving in 1 of 1"),
    ],
)
def test_the_sentence_for_the_whole_page(shares, expected):
    found = [Verdict("", None, {"best": Spread(share, (share, share))}) for share in shares]
    assert of_all(["images"] * len(found), found) == f"Against torch's LayerNorm RMSNorm {expected}."
    costs = Verdict("", None, {"best": Spread(-0.1, (-0.2, -0.05))}).sentence
    assert "RMSNorm takes longer against torch's LayerNorm (it saves −10.0 % [−20.0, −5.0] of a step)" in costs
    assert of_all([], []) == "No experiment has both RMSNorm and LayerNorm."


def test_a_timing_of_two_trainings_counts_once(folder):
    for steps in (40, 80):
        folder.run("layer", 0, 5.0, steps=steps)
        folder.run("rms", 0, 5.0, steps=steps)
    folder.timing(kernels="unfused")
    said = text_of(folder.page())
    assert said.count("RMSNorm saves 19.9 % [19.9, 20.0] of a step with norms") >= 2  # a verdict for each training
    assert "with norms in framework operators RMSNorm saves 19.9 % of a step in 1 of 1." in said


def test_examples_per_second():
    def of(task, **changes):
        (experiment,) = collect([run_record(task=task, **changes)])
        return experiment.examples

    assert of("language", model={"context": 64}) == (640, "characters")
    assert of("transformer", data={"by_tokens": True}) == (10, "tokens (at most, with padding)")
    assert of("transformer", data={"by_tokens": False}) == (10, "sentence pairs")
    assert of("unheard-of") is None


def test_experiments_are_told_apart(full):
    found = collect(store.load(full.path))
    assert [(each.task, each.train.steps) for each in found] == [("images", 40), ("images", 7), ("unheard-of", 40)]
    assert list(found[0].timings) == ["unfused", "rmsnorm", "best"]
    assert [(line.norm, line.p, len(line.records)) for line in found[0].main("rmsnorm")] == [
        ("none", None, 2),
        ("batch", None, 2),
        ("layer", None, 2),
        ("rms", None, 2),
        ("prms", 0.125, 2),
    ]


def test_a_heading_says_in_what_experiments_of_a_task_differ(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 5.0, model={**SMALL, "init_mean": 0.2}, steps=1000)
    said = text_of(folder.page())
    assert "images 40 steps stand-in data" in said
    assert "images 1,000 steps, init mean 0.2 stand-in data" in said


def test_times_alone_and_runs_alone(folder):
    folder.timing(kernels="best", batch=64)
    said = text_of(folder.page())
    assert "times alone" in said
    folder.run("rms", 0, 5.0)
    assert "Loss by wall time" not in text_of(folder.page())


ELSEWHERE = replace(MACHINE, cpu="Another processor", commit="fedcba9876543210")


def test_the_timing_with_most_rounds_is_shown_and_the_others_are_named(folder):
    folder.run("rms", 0, 5.0)
    folder.run("layer", 0, 5.0)
    folder.timing(rounds=9)
    folder.timing(rounds=2, machine=ELSEWHERE)  # the newest
    said = text_of(folder.page())
    assert "[19.9, 20.0]" in said
    assert "one step of each per round, 9 rounds on A processor <2>" in said
    assert "Also timed, not shown: 2 rounds on Another processor" in said
    assert "too few rounds" not in said
    folder.timing(rounds=9, machine=ELSEWHERE)
    assert "one step of each per round, 9 rounds on A processor <2>" in text_of(folder.page())  # the runs' own
    folder.timing(rounds=11, machine=ELSEWHERE)
    said = text_of(folder.page())
    assert "one step of each per round, 11 rounds on Another processor" in said
    assert "Loss by wall time: steps × interleaved step time on Another processor" in said  # the runs are not of it


def test_runs_by_several_processes_are_an_experiment_of_their_own_with_the_same_times(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 7.0, processes="ddp2")
    folder.timing()
    alone, several = collect(store.load(folder.path))
    assert alone.timings == several.timings
    assert len(alone.lines["rmsnorm"][0].records) == 1
    assert "images 40 steps, processes ddp2 stand-in data" in text_of(folder.page())


def test_data_are_told_apart_by_name_and_hash(folder):
    folder.run("rms", 0, 5.0)
    folder.run("rms", 0, 7.0, name="mine", stand_in=False, sha256="cd" * 32)
    said = text_of(folder.page())
    assert "images 40 steps, digits (abababab) stand-in data" in said
    assert "images 40 steps, mine (cdcdcdcd)" in said
    assert "stand in True" not in said


def test_the_name_of_the_data_does_not_part_runs(folder):
    folder.run("rms", 0, 5.0, name="cifar")
    folder.run("rms", 1, 6.0, name="renamed")
    (found,) = collect(store.load(folder.path))
    assert [len(line.records) for line in found.lines["rmsnorm"]] == [2]


def test_commits_are_short_and_machines_that_differ_in_them_alone_are_one(folder):
    for place in range(5):
        machine = replace(MACHINE, commit=f"{place}" * 40)
        folder.timing(rounds=6 + place, machine=machine)
    said = text_of(folder.page())
    assert "5 records:" in said
    assert said.count("A processor <2>") == 1 + said.count("rounds on A processor <2>")
    assert "commits 000000000000, 111111111111, 222222222222, 333333333333, 444444444444" in said
    assert "The records differ in commit 000000000000, 111111111111, 222222222222 and 2 more" in said


def test_machines_that_differ_in_versions_and_memory_are_one(folder):
    folder.timing(rounds=6)
    folder.timing(rounds=7, machine=replace(MACHINE, memory_gib=8.5, versions={**MACHINE.versions, "torch": "2.12.0"}))
    folder.timing(rounds=8, machine=ELSEWHERE)
    said = text_of(folder.page())
    assert (
        "2 records: A processor <2> 2 threads, 8 to 8.5 GiB, Linux Python 3.11, numpy 2.0, torch 2.12.0 or 2.13.0"
        in said
    )
    assert "1 record: Another processor 2 threads, 8 GiB" in said


def test_two_values_of_p_are_a_sweep_and_markdown_has_every_table(folder, capsys):
    for seed in range(2):
        folder.run("layer", seed, 5.0 + seed)
        folder.run("prms", seed, 9.0 + seed, p=0.125)
        folder.run("prms", seed, 7.0 + seed, p=0.5)
    folder.timing(kernels="unfused")
    said = text_of(folder.page())
    assert "pRMSNorm on the test split by p: mean ± standard deviation over seeds (2 each)" in said
    assert "p, % test error, % ↓ 12.5 9.50 ± 0.71 50 7.50 ± 0.71" in said
    assert "not shown" not in said
    assert main(["report", str(folder.path), "--markdown"]) == 0
    printed = capsys.readouterr().out
    titles = [line.strip("*") for line in printed.splitlines() if line.startswith("**")]
    assert [title.partition(". ")[2].partition(" ")[0] for title in titles] == ["Quality", "Difference", "pRMSNorm", ""]
    assert all(title.startswith("images, 40 steps") for title in titles)
    assert "| LayerNorm | 5.50 ± 0.71" in printed
    assert "| pRMSNorm − LayerNorm | +4.00" in printed
    assert "\n| 50 | 7.50 ± 0.71 |\n" in printed
