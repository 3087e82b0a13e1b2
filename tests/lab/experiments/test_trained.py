"""A finished run can be used: its network is kept, and evaluated, asked for translations and sampled from."""

import io
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "tokenizers", "sacrebleu", "babel", "sklearn"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import networks, tasks  # noqa: E402
from rmsnorm_lab.experiments.data import digit_scenes  # noqa: E402
from rmsnorm_lab.experiments.sampling import sample  # noqa: E402
from rmsnorm_lab.experiments.store import as_json  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402

TEXTS = ["data.stand_in_pairs=300,20,30", "data.vocabulary=300"]
SETTINGS = {
    "language": TINY,
    "translation": [*TEXTS, "model.embedding=12", "model.hidden=16", "train.batch=16"],
    "transformer": [*TEXTS, "model.width=16", "model.feed_forward=32", "train.batch=300", "data.beam=2"],
    "images": ["model.widths=4,8", "train.best=true"],
    "reading": ["model.width=8", "model.word_width=8", "train.batch=6"],
    "retrieval": ["model.width=8", "model.word_width=8", "train.batch=6", "data.fold=2"],
}
NORMS = {"language": "batch", "translation": "weight", "transformer": "prms", "images": "weight", "reading": "batch"}


def questions(folder):
    draw = random.Random(0)
    for name, count in (("train", 20), ("dev", 5), ("test", 9)):
        words = [[draw.choice(["@entity1", "@entity2", "red", "blue", "saw"]) for _ in range(8)] for _ in range(count)]
        text = "".join(f"who saw @placeholder\n@entity1\n@entity1 {' '.join(context)} .\n\n" for context in words)
        (folder / f"{name}.txt").write_text(text)


def data_of(task, folder):
    """Small data, or None for a stand-in that is small itself."""
    folder.mkdir(exist_ok=True)
    if task == "language":
        return corpus(folder)
    if task == "reading":
        questions(folder)
    elif task == "retrieval":
        digit_scenes.write(folder, {"train": 8, "valid": 3, "test": 4})
    else:
        return None
    return folder


def train(task, folder, *more, status=0):
    data, out = data_of(task, folder / "data"), folder / "runs"
    words = ["train", task, "--norm", NORMS.get(task, "rms"), "--out", str(out), "--threads", "1", "--steps", "4"]
    words += ["--data", str(data)] if data else []
    assert main([*words, *more, "--set", *SETTINGS[task], "train.evaluations=2"]) == status
    return out, data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(task) -> (folder of its only run, data), trained once."""
    threads, made = torch.get_num_threads(), {}

    def run(task):
        if task not in made:
            made[task] = train(task, tmp_path_factory.mktemp(task))
        return made[task]

    yield run
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("task", ["translation", "transformer"])
def test_translate_answers_every_line(trained, monkeypatch, capfdbinary, task):
    out, _ = trained(task)
    lines = ["Monday, November 23, 2026", "", "Nov 3, 1999 at 5:08 PM", "   ", "3 März", "Tuesday", ""]
    run = experiments.load(out)
    whole = run.translate(lines)
    assert whole[1] == whole[3] == whole[6] == ""
    assert any(whole)
    one_by_one = [run.translate([line])[0] for line in lines]
    assert one_by_one == whole
    capfdbinary.readouterr()
    for ending, size in (("\n", "3"), ("\r\n", "64"), ("\n", "1")):
        text = "".join(line + ending for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert main(["translate", str(out), "--batch", size]) == 0
        assert capfdbinary.readouterr().out.decode().split("\n") == [*whole, ""]


def test_translate_is_a_filter_of_bytes(trained):
    """In a process of its own, whatever encoding the terminal is said to have."""
    out, _ = trained("translation")
    command = [sys.executable, "-m", "rmsnorm.cli", "translate", str(out), "--batch", "2"]
    text = b"3 M\xc3\xa4rz\n\nTuesday\n\xff\xfe\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input=text, capture_output=True, timeout=300, check=False, env=environment)
    assert done.returncode == 2
    assert done.stdout.decode().split("\n") == [*experiments.load(out).translate(["3 März", ""]), ""]
    assert done.stderr.decode().startswith(
        "rmsnorm translate: the lines must be UTF-8; line 4 is not: invalid start byte"
    )


def test_a_line_that_is_too_long_is_named(trained):
    run = experiments.load(trained("transformer")[0])
    with pytest.raises(UserError, match=r"at most 1024 subwords; line 12 has \d{4}"):
        run.translate(["Tuesday", "", "é" * 4000], first=10)


@pytest.mark.parametrize(
    ("sentences", "error", "message"),
    [
        ("Monday", TypeError, "a sequence of str; got the str 'Monday'"),
        (["Monday", 3], TypeError, "line 2 is int"),
        ([b"Monday"], TypeError, "line 1 is bytes"),
        (["", "\ud800"], UserError, r"UTF-8 can hold; line 2 is not: surrogates not allowed \('\\ud800'\)"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(trained, sentences, error, message):
    with pytest.raises(error, match=message):
        experiments.load(trained("translation")[0]).translate(sentences)


def test_arguments_from_python_are_checked_as_the_commands(trained):
    run = experiments.load(trained("language")[0])
    for arguments, message in (
        ({"seed": -1}, "the seed must be from 0 to 9223372036854775807; got -1"),
        ({"seed": 2**63}, "the seed must be from 0"),
        ({"temperature": math.inf}, "must be finite, and 0 or above; got inf"),
    ):
        with pytest.raises(UserError, match=message):
            run.sample(**arguments)
    with pytest.raises(UserError, match="--device must be one that this torch can use; got 'meta'"):
        experiments.load(trained("language")[0], device="meta")


@pytest.mark.parametrize(
    ("command", "stream", "name"),
    [
        (["translate", "translation"], "stdin", "input"),
        (["translate", "translation"], "stdout", "output"),
        (["sample", "language"], "stdout", "output"),
    ],
)
def test_a_stream_that_the_shell_has_closed_is_said(trained, monkeypatch, capsys, command, stream, name):
    verb, task = command
    out, _ = trained(task)
    capsys.readouterr()
    monkeypatch.setattr(sys, stream, None)
    assert main([verb, str(out)]) == 2
    assert f"rmsnorm {verb}: standard {name} must be open; it is closed" in capsys.readouterr().err


def test_sample_writes_as_many_characters_and_the_seed_decides_them(trained, capfd):
    out, _ = trained("language")
    capfd.readouterr()
    texts = []
    for more in ([], [], ["--seed", "1"], ["--temperature", "0"], ["--temperature", "0", "--seed", "1"]):
        assert main(["sample", str(out), "--length", "50", "--prompt", "alpha\n", *more]) == 0
        texts.append(capfd.readouterr().out)
    assert all(len(text) == len("alpha\n") + 50 + 1 and text.startswith("alpha\n") for text in texts)
    assert texts[0] == texts[1] != texts[2] != texts[3] == texts[4]
    assert set(texts[0]) <= set("alphabetagamma\n")
    assert main(["sample", str(out), "--length", "5", "--prompt", "Ж1"]) == 0
    assert "does not know '1Ж'" in capfd.readouterr().err
    run = experiments.load(out)
    assert "".join(islice(run.sample("alpha\n"), 50)) == texts[0][6:-1]


def test_samples_come_from_the_models_distribution_of_the_known_ids():
    logits = torch.tensor([0.3, -0.2, 1.1, 5.0])  # of an unknown token, which is never drawn
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(logits)

        def forward(self, ids):
            seen.append(ids.shape[1])
            return self.weight.expand(1, ids.shape[1], 4)

    options = {"context": 3, "known": 3, "generator": torch.Generator().manual_seed(0)}
    drawn = list(islice(sample(Model(), [0], temperature=0.7, **options), 4000))
    expected = torch.softmax(logits[:3].double() / 0.7, 0).tolist()
    counts = Counter(drawn)
    for token in range(3):
        share = expected[token]
        assert abs(counts[token] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert max(seen) == 3
    for temperature in (0, 5e-324):
        assert set(islice(sample(Model(), [0], temperature=temperature, **options), 20)) == {2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["translate", "language"],
            "translate needs a network of translation or transformer; this one is of language. Use sample.",
        ),
        (["sample", "transformer"], "sample needs a network of language; this one is of transformer. Use translate."),
        (["sample", "images"], "sample needs a network of language; this one is of images. Use evaluate."),
        (["evaluate", "language"], "the run was trained on 'words.txt', which is no stand-in. Pass these data (--data"),
        (["sample", "language", "--temperature", "-1"], "the temperature must be finite, and 0 or above; got -1"),
        (["sample", "language", "--temperature", "nan"], "the temperature must be finite, and 0 or above; got nan"),
        (["sample", "language", "--prompt", ""], "the prompt must have a character or more"),
        (["sample", "language", "--length", "0"], "--length must be at least 1; got 0"),
        (["sample", "language", "--seed", "-1"], "--seed must be at least 0; got -1"),
        (["sample", "language", "--device", "abacus"], "--device must be one that this torch can use; got 'abacus'"),
    ],
)
def test_what_cannot_be_is_one_sentence(trained, capsys, words, message):
    verb, task, *more = words
    out, _ = trained(task)
    capsys.readouterr()
    assert main([verb, str(out), *more]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


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
