"""A trained network is asked: translations, samples, and what cannot be asked."""

import io
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib", "tokenizers", "sacrebleu", "babel", "sklearn"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments.sampling import sample  # noqa: E402


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
