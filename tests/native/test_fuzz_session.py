"""The fuzz in a process of its own: a failure is written, and replayed, whatever it did to the process."""

import itertools
import signal

import pytest

import fuzz_session

# In the place of fuzz_arguments.py. Most numbers are cases that are right.
PLANTED = """
import os, signal, time
from types import SimpleNamespace

def drawn(draw, target=None):
    number = int(draw.rpartition("/")[2])
    name = target or ("good" if number % 4 else ("wrong", "crash", "hang")[number // 4 % 3])
    run = {
        "good": lambda: "",
        "wrong": lambda: "" if os.path.exists("mended") else "element 0 is 1.0",
        "crash": lambda: "" if os.path.exists("mended") else os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda: "" if os.path.exists("mended") else time.sleep(600),
    }[name]
    return SimpleNamespace(target=SimpleNamespace(name=name), words=f"{name}(x: {WORD} -> {number % 4})", run=run)

WORD = os.environ.get("WORD", "how")
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    worker = fuzz_session.Worker("planted", patience=2)
    yield worker
    worker.stop()


def test_failures_are_kept_and_replayed(worker, tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.touch()
    cases = list(itertools.islice(fuzz_session.fuzzed(worker, corpus, 5, 600), 13))
    killed = f"the process ended with code {-signal.SIGKILL}"
    failures = {0: "element 0 is 1.0", 4: killed, 8: "no result after 2 s", 12: "element 0 is 1.0"}
    assert {i: entry.failure for i, entry in enumerate(cases) if entry.failure} == failures
    assert fuzz_session.read(corpus) == [cases[0], cases[4], cases[8]]  # one of each kind
    assert cases[4] == fuzz_session.Entry("crash", "5/4", "crash(x: how -> 0)", killed)

    assert fuzz_session.session(worker, corpus, 5, 0) == 3
    said = capsys.readouterr().out
    assert said.count("failed again: ") == 3
    assert all(f"\n    {failures[i]}\n" in said for i in (0, 4, 8))
    assert "3 cases of the corpus, 3 wrong; the fuzz has seed 5" in said

    (tmp_path / "mended").touch()
    assert fuzz_session.session(worker, corpus, 5, 0) == 0

    worker.stop()
    monkeypatch.setenv("WORD", "otherwise")  # a case that does not follow from its draw any more
    said = list(fuzz_session.replayed(worker, corpus))
    assert len(said) == 3
    assert all("draws another case now" in line for line in said)


def test_the_corpus_names_its_failures():
    entries = fuzz_session.read(fuzz_session.CORPUS)
    assert entries
    assert all(entry.failure and entry.case.startswith(f"{entry.target}(") for entry in entries)
    assert len({entry.case for entry in entries}) == len(entries)
