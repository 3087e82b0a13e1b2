"""A finished run can be loaded and evaluated; a damaged or missing file is named."""

import io
import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "tokenizers", "sacrebleu", "babel", "sklearn"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import networks, tasks  # noqa: E402
from rmsnorm_lab.experiments.store import as_json  # noqa: E402
from tiny_runs import TINY  # noqa: E402
from trained_runs import NORMS, data_of, train  # noqa: E402


def the_record(out):
    (path,) = out.glob("*.jsonl")
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("task", tasks.TASKS)
def test_evaluate_gives_the_recorded_figures(trained, capsys, task):
    out, data = trained(task)
    path, record = the_record(out)
    capsys.readouterr()
    for run in (path, out):
        assert main(["evaluate", str(run), "--json", *(["--data", str(data)] if data else [])]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["figures"] == record["result"]["quality"]
        assert found["same data"]
        assert (found["task"], found["norm"], found["split"]) == (task, NORMS.get(task, "rms"), "test")
    assert main(["evaluate", str(out), "--split", "valid", *(["--data", str(data)] if data else [])]) == 0
    captured = capsys.readouterr()
    metric = record["result"]["metrics"][0]
    last = record["result"]["curve"]["valid"][metric["key"]][-1]
    if task != "images":  # its best weights are kept, not its last
        assert captured.out.startswith(f"{last:{metric['form']}} {metric['label']}".replace("\n", " "))
    assert "valid" in captured.err
    assert "other data" not in captured.err


@pytest.mark.parametrize("task", tasks.TASKS)
def test_load_needs_no_data(trained, monkeypatch, task):
    out, _ = trained(task)
    monkeypatch.setattr(tasks, "load", None)
    run = experiments.load(out)
    assert (run.task, run.norm) == (task, NORMS.get(task, "rms"))
    assert run.recipe.train.steps == 4
    assert run.recipe.train.evaluations == 2
    assert not run.model.training
    with_data = tasks.recipe(task)
    assert type(run.recipe.model) is type(with_data.model)
    assert isinstance(run.recipe.train.betas, tuple)
    assert as_json(run.record) == the_record(out)[1]
    assert run.record.result.parameters == sum(parameter.numel() for parameter in run.model.parameters())


def test_what_prepares_the_inputs(trained):
    assert experiments.load(trained("language")[0]).preprocessor == "".join(sorted(set("alphabetagamma\n")))
    subwords = experiments.load(trained("translation")[0]).preprocessor
    assert subwords.decode(subwords.encode(["3 März"])[0]) == "3 März"
    assert "red" in experiments.load(trained("reading")[0]).preprocessor
    assert "a" in experiments.load(trained("retrieval")[0]).preprocessor
    images = experiments.load(trained("images")[0])
    task = tasks.load("images", None, images.recipe)
    (kept,) = images.files.values()
    with np.load(io.BytesIO(kept)) as found:
        assert (images.preprocessor.matrix == found["matrix"]).all()
    pixels = np.random.default_rng(0).normal(size=(3, 1, 24, 24)).astype(np.float32)
    assert (images.preprocessor(pixels) == task.whiten(pixels)).all()


def test_other_data_must_give_the_same_vocabulary(trained, tmp_path, capsys):
    out, data = trained("language")
    other = tmp_path / "words.txt"
    other.write_text(data.read_text().replace("alpha", "delta"))
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", str(other)]) == 2
    assert (
        "'words.txt' gives other characters.json or sizes than the network was trained with" in capsys.readouterr().err
    )
    text = data.read_text().split("\n")
    random.Random(1).shuffle(text)
    other.write_text("\n".join(text))
    assert main(["evaluate", str(out), "--data", str(other)]) == 0
    assert "other data than in training" in capsys.readouterr().err


def test_a_run_is_named_by_its_record_or_a_folder_of_one(tmp_path, capsys):
    out, data = train("language", tmp_path)
    path, _ = the_record(out)
    assert experiments.load(str(path)).task == "language"
    (tmp_path / "empty").mkdir()
    for run, message in (
        (tmp_path / "empty", "holds none, and 0 records"),
        (tmp_path / "nowhere", "nowhere' does not exist"),
        (tmp_path / "nowhere.jsonl", "does not exist"),
        (networks.path_of(path), rf"Pass '{path}'"),
        (data, "RUN must be a record"),
    ):
        with pytest.raises(UserError, match=message):
            experiments.load(run)
    train("language", tmp_path, "--seed", "1")
    with pytest.raises(UserError, match=r"holds 2. Name one of them:\n.*seed0.*\n.*seed1"):
        experiments.load(out)


def test_a_damaged_or_missing_file_is_named(tmp_path, capsys):
    out, _ = train("language", tmp_path)
    path, record = the_record(out)
    network = networks.path_of(path)
    whole = bytearray(network.read_bytes())

    changed = bytearray(whole)
    place = changed.find(networks.read(path).weights["logits.weight"].numpy().tobytes()[:64])
    changed[place] ^= 1
    for content in (changed, whole[: len(whole) // 2], b"", b"not an archive"):
        network.write_bytes(content)
        with pytest.raises(UserError, match="it is damaged") as raised:
            experiments.load(out)
        assert str(network) in str(raised.value)

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"sizes": {}, "weights": Evil(), "files": {}}, network)
    with pytest.raises(UserError, match="it is damaged"):
        experiments.load(out)
    assert "owned" not in capsys.readouterr().out

    torch.save({"sizes": {"vocabulary": 3}, "weights": {}, "files": {}}, network)
    with pytest.raises(UserError, match="of this version's networks"):
        experiments.load(out)

    for part in ({"weights": 3}, {"files": {"../x": ""}}):
        torch.save({"sizes": {"vocabulary": 3}, "weights": {}, "files": {}, **part}, network)
        with pytest.raises(UserError, match="something else"):
            experiments.load(out)

    network.write_bytes(whole)
    characters = path.with_suffix(".characters.json")
    characters.write_text(characters.read_text().replace("a", "b"))
    with pytest.raises(UserError, match=r"characters.json must be as it was kept"):
        experiments.load(out)
    characters.unlink()
    with pytest.raises(UserError, match=r"characters.json beside it; it is not there"):
        experiments.load(out)
    train("language", tmp_path)
    assert "its network is missing or damaged" in capsys.readouterr().err
    assert experiments.load(out).preprocessor

    network.unlink()
    with pytest.raises(UserError, match="1 records"):
        experiments.load(out)
    with pytest.raises(UserError, match=r"network\.pt is not there"):
        experiments.load(path)
    train("language", tmp_path)  # from its last checkpoint
    assert "goes on from step 4" in capsys.readouterr().err
    assert network.read_bytes() == whole
    assert the_record(out)[1]["result"]["quality"] == record["result"]["quality"]


def test_a_diverged_run_keeps_no_network_and_is_not_trained_again(tmp_path, capsys):
    out, _ = train("language", tmp_path, "--set", "train.learning_rate=1e30", status=1)
    assert the_record(out)[1]["result"]["status"] == "diverged"
    assert not list(out.glob("*.network.pt"))
    capsys.readouterr()
    train("language", tmp_path, "--set", "train.learning_rate=1e30", status=1)
    assert "recorded in" in capsys.readouterr().err


def test_a_comparisons_run_is_trained_again_for_its_network(tmp_path, capsys):
    out, data = tmp_path / "runs", data_of("language", tmp_path / "data")
    words = ["compare", "language", "--norm", "batch", "--seeds", "1", "--timing-rounds", "0", "--data", str(data)]
    words += ["--out", str(out), "--threads", "1", "--steps", "4", "--set", *TINY, "train.evaluations=2"]
    assert main(words) == 0
    _, before = the_record(out)
    train("language", tmp_path)
    assert "recorded, but its network is missing or damaged" in capsys.readouterr().err
    path, after = the_record(out)
    assert after["result"]["quality"] == before["result"]["quality"]
    assert main(["evaluate", str(path), "--data", str(data)]) == 0
    assert main(words) == 0
    assert "1 of 1 were recorded" in capsys.readouterr().err
