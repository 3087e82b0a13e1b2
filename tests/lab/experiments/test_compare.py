"""``rmsnorm compare language`` as its users meet it: output, resuming, sweeps, damaged records."""

import json
import re
import shutil

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.record import SCHEMA  # noqa: E402
from tiny_runs import RUNS, contents, corpus, language  # noqa: E402

ALL = RUNS + 3  # and three timings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished comparison; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    corpus(folder)
    assert main(language(folder / "runs")) == 0
    return folder


@pytest.fixture
def out(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs"


def test_a_comparison_leaves_records_of_one_json_line_and_a_png(out, tmp_path):
    records = [json.loads(line) for text in contents(out).values() for line in text.splitlines()]
    assert len(records) == len(contents(out)) == ALL
    trained = [record for record in records if record["kind"] == "run"]
    assert {(r["identity"]["norm"], r["identity"]["seed"]) for r in trained} == {
        (norm, seed) for norm in norms.by_default("language") for seed in (0, 1)
    }
    for record in trained:
        assert record["schema"] == SCHEMA
        assert record["identity"]["train"]["steps"] == 2
        assert record["source_name"] == "words.txt"
        assert record["result"]["curve"]["step"] == [0, 1, 2]
        assert record["machine"]["cpu"]
        assert record["machine"]["torch_threads"] == 1
        assert record["machine"]["versions"]["torch"] == torch.__version__
    everything = b"".join(contents(out).values())
    assert str(tmp_path).encode() not in everything
    assert (out / "language.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (out / "language.png").stat().st_size > 10_000
    assert [path.name for path in out.glob(".*")] == [".lock"]
    assert not list((out / "checkpoints").iterdir())  # what is recorded needs none


def test_what_is_recorded_is_not_run_again_and_the_table_is_the_same(out, capsys):
    before = contents(out)
    assert main(language(out)) == 0
    first = capsys.readouterr()
    assert f"{ALL} of {ALL} were recorded" in first.err
    assert contents(out) == before
    for norm in norms.by_default("language"):
        assert f"\n{norms.label(norm)} " in first.out
    assert "stand-in" not in first.out
    assert main(language(out)) == 0
    assert capsys.readouterr().out == first.out


def test_one_more_seed_runs_that_seed_only(out, capsys):
    before = contents(out)
    assert main(language(out, "--norm", "rms,layer", seeds=3)) == 0
    captured = capsys.readouterr()
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert sorted(name.rsplit("-", 1)[0] for name in after.keys() - before.keys()) == [
        "language-layer-seed2",
        "language-rms-seed2",
        *["language-timing"] * 3,  # of these two alone
    ]
    assert "\nRMSNorm " in captured.out
    assert "\nno norm " not in captured.out


def test_other_settings_are_other_runs(out, capsys):
    before = contents(out)
    assert main(language(out, "--norm", "prms", "--kernels", "unfused", seeds=1)) == 0
    captured = capsys.readouterr()
    assert "\npRMSNorm " in captured.out
    assert "trained with the unfused kernels" in captured.out
    untimed = "--timing-rounds", "0"
    assert main(language(out, *untimed, "--norm", "rms", "--set", "model.qk_norm=true", seeds=1)) == 0
    assert main(language(out, *untimed, "--norm", "rms", steps=3, seeds=1)) == 0
    assert len(contents(out)) == len(before) + 3 + 3  # each a run; of the first its timing in three settings


def test_without_timing_there_is_no_table_of_times(out, capsys):
    for path in out.glob("*-timing-*"):
        path.unlink()
    assert main(language(out, "--timing-rounds", "0")) == 0
    captured = capsys.readouterr()
    assert f"{RUNS} of {RUNS} were recorded" in captured.err
    assert "held-out bits" in captured.out
    assert "ms per" not in captured.out
    assert not list(out.glob("*-timing-*"))


def test_a_sweep_shows_every_normaliser_at_every_rate(out, capsys):
    rates = ["0.004", "1e30"]
    assert main(language(out, "--norm", "layer", "rms", "--sweep-lr", *rates, seeds=1)) == 0
    captured = capsys.readouterr()
    assert "2 of 4 were recorded" in captured.err  # the recipe's own rate
    for label in ("LayerNorm", "RMSNorm"):
        line = next(line for line in captured.out.splitlines() if line.startswith(label))
        assert re.fullmatch(rf"{label} +\d\.\d{{3}} \* +diverged *", line)
    assert "per character, validation · words.txt" in captured.out
    assert "at an end of the rates tried: LayerNorm, RMSNorm; a rate beyond it may be better" in captured.out


def test_overwrite_does_all_again_and_comes_to_the_same_quality(out):
    before = contents(out)
    name = next(name for name in before if "rms-seed0" in name)
    (out / name).write_text('{"torn')  # what is replaced need not be whole
    assert main(language(out, "--overwrite", seeds=1)) == 0
    after = contents(out)
    assert after.keys() == before.keys()
    for name in before:
        if "seed1" in name:
            assert after[name] == before[name]
            continue
        old, new = (json.loads(content[name])["result"] for content in (before, after))
        assert new.get("quality") == old.get("quality")
        if "milliseconds" in old:
            assert new != old  # measured again


def test_json_output(out, capsys):
    assert main(language(out, "--json")) == 0
    table = json.loads(capsys.readouterr().out)
    assert [each["norm"] for each in table["quality"]] == list(norms.by_default("language"))
    assert all(each["metrics"]["bits"]["sd"] is not None for each in table["quality"])
    assert list(table["time"]) == ["unfused", "rmsnorm", "best"]
    for rows in table["time"].values():
        assert rows[0]["norm_share"] is None
        assert rows[1]["saved"] is None
        assert rows[2]["profiled_share"] > 0


def test_a_damaged_record_stops_the_command(out, capsys):
    path = next(path for path in out.glob("*.jsonl") if "layer-seed1" in path.name)
    path.write_bytes(path.read_bytes()[:100])
    assert main(language(out)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{path}, line 1" in captured.err
    assert "Traceback" not in captured.err


def test_a_diverged_run_is_recorded_drawn_and_printed(out, capsys):
    """An absurd learning rate, through the whole command."""
    assert main(language(out, "--norm", "none", "--set", "train.learning_rate=1e30", steps=6)) == 0
    captured = capsys.readouterr()
    assert "diverged (2 of 2)" in captured.out
    assert "diverged at step" in captured.err
