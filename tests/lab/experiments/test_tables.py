"""The tables of a comparison: divergence, paired times, intervals, versions."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rich.console import Console  # noqa: E402

from made_records import MACHINE, run_record, timing_record  # noqa: E402
from rmsnorm_lab.experiments.comparison import about_times, quality_cell, time_table  # noqa: E402
from rmsnorm_lab.experiments.learner import Setup  # noqa: E402
from rmsnorm_lab.experiments.paper import Published  # noqa: E402
from rmsnorm_lab.experiments.summary import mixed_machines, quality_row, time_row  # noqa: E402
from rmsnorm_lab.experiments.tasks.language import Language  # noqa: E402
from rmsnorm_lab.table import Cell  # noqa: E402

TIMES = {"none": [8.0, 16.0], "layer": [10.0, 20.0], "rms": [9.0, 18.0], "prms": [8.5, 17.0]}


@pytest.mark.parametrize(
    ("bits", "cell"),
    [
        ([2.0, 3.0], "2.500 ± 0.707"),
        ([2.0], "2.000"),
        ([None], "diverged"),
        ([None, None], "diverged (2 of 2)"),
        ([2.0, 3.0, None], ("2.500 ± 0.707", "1 of 3 diverged")),
    ],
)
def test_divergence_is_said_as_such(bits, cell):
    text, *below = (cell,) if isinstance(cell, str) else cell
    row = quality_row("rms", [run_record(quality=each) for each in bits])
    assert quality_cell(row, Language.metrics[0]) == Cell(text, tuple(below))


def test_a_table_of_times_promises_an_interval_only_where_there_is_one(capsys):
    for rounds, promised in ((5, False), (6, True)):
        record = timing_record({norm: [*map(float, range(10, 10 + rounds))] for norm in ("layer", "rms")})
        time_table("times", [time_row(norm, record) for norm in ("layer", "rms")], Published(""), "small").show(
            Console()
        )
        shown = capsys.readouterr().out
        assert ("[95 % CI]" in shown) == promised
        assert ("0.0 [0.0, 0.0]" in shown) == promised


def test_a_row_pairs_the_times():
    record = timing_record(TIMES)
    rows = {norm: time_row(norm, record) for norm in TIMES}
    assert rows["rms"].saved.median == pytest.approx(0.1)
    assert rows["rms"].norm_share.median == pytest.approx(1 / 9)
    assert rows["rms"].milliseconds == pytest.approx(13.5)  # LayerNorm's median, 15, less a tenth
    assert rows["layer"].milliseconds == 15
    assert rows["layer"].saved is None
    assert rows["none"].norm_share is None


def test_records_of_different_versions_are_pointed_out():
    older = replace(MACHINE, versions={**MACHINE.versions, "torch": "2.12.0"})
    assert mixed_machines([run_record(), run_record()]) == []
    assert mixed_machines([run_record(), run_record(machine=older)]) == ["torch 2.12.0, 2.13.0"]


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("reading", {}, True),
        ("language", {}, False),
        ("reading", {"kernels": "unfused"}, False),
        ("reading", {"model": {"biases": "paper"}}, False),
        ("reading", {"model": {"biases": "paper"}, "biases": "alike"}, True),
    ],
)
def test_a_norm_of_ones_own_is_said_to_loop_where_others_have_a_kernel(task, changes, said):
    made = timing_record({"layer": [2.0], "MyNorm@3f2a91c0": [3.0]}, task=task, **changes)
    for sources in (None, {"MyNorm@3f2a91c0": "my_norm.py:MyNorm"}):
        notes = about_times([replace(made, norm_sources=sources)], Setup())
        found = [note for note in notes if "MyNorm@3f2a91c0: its recurrences are loops in every table" in note]
        assert len(found) == (said and sources is not None)


@pytest.mark.parametrize(("size", "seconds"), [("paper", "12.3 s"), ("small", "")])
def test_the_papers_seconds_are_beside_its_own_sizes_alone(size, seconds):
    record = timing_record({"none": [7.0], "layer": [10.0], "rms": [9.0]})
    paper = Published("", saved={"rms": "40.8"}, seconds={"rms": "12.3", "layer": "20"}, seconds_of="100 steps")
    rows = time_table("times", [time_row(norm, record) for norm in ("layer", "rms")], paper, size).rows
    assert [row.label for row in rows] == ["LayerNorm", *(["  paper"] if seconds else []), "RMSNorm", "  paper"]
    assert rows[-1].cells[:2] == [seconds, "40.8"]
