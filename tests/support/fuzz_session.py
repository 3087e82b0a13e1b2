"""A fuzz whose cases may end the process: what ``make fuzz`` and, for a minute, ``make asan`` run.

The corpus comes first: every case that once failed (tests/assets/fuzz/corpus.jsonl). Then new cases follow from a seed
until the time is over. A case fails if its result is wrong, if the process ends (a crash, or what a sanitizer finds),
or if no result comes. The first failure of each kind is added to the corpus.

    python tests/support/fuzz_session.py [--seconds 600] [--seed NUMBER]
    python tests/support/fuzz_session.py --add TARGET REGEX FAILURE

``--add`` searches for a case whose words match, and adds it: for a failure that was found in another way.
"""

import argparse
import importlib
import itertools
import json
import multiprocessing
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "assets" / "fuzz" / "corpus.jsonl"
CASES = "fuzz_arguments"  # the module whose drawn() makes a case


@dataclass(frozen=True)
class Entry:
    target: str
    draw: str  # the random numbers follow from it
    case: str  # the call in words
    failure: str

    @property
    def kind(self) -> str:
        return self.case.partition(" -> ")[0]


def read(corpus: Path) -> list[Entry]:
    return [Entry(**json.loads(line)) for line in corpus.read_text(encoding="utf-8").splitlines()]


def add(corpus: Path, entry: Entry) -> None:
    with corpus.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")


def serve(module: str, connection: Connection) -> None:
    """What the other process does: for each case it sends the words before the call, and afterwards what is wrong."""
    cases = importlib.import_module(module)
    connection.send("ready")
    while asked := connection.recv():
        case = cases.drawn(*asked)
        connection.send((case.target.name, case.words))
        connection.send(case.run())


class Worker:
    """Runs cases in another process. A new one starts where that has ended."""

    def __init__(self, module: str = CASES, patience: float = 120):
        self._module, self._patience, self._process = module, patience, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(self._module, other), daemon=True)
        self._process.start()
        other.close()
        try:
            self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the process that runs {self._module} must start; its output says why not") from None

    def _answer(self):
        if not self._connection.poll(self._patience):
            raise TimeoutError
        return self._connection.recv()

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = None

    def run(self, draw: str, target: str | None = None) -> Entry:
        """The case and its failure, which is "" if it is as it should be."""
        if not self._process:
            self._start()
        words, failure = "its arguments could not be made", ""
        try:
            self._connection.send((draw, target))
            target, words = self._answer()
            failure = self._answer()
        except TimeoutError:
            failure = f"no result after {self._patience:g} s"
            self.stop()
        except (EOFError, OSError):
            self._process.join()
            failure = f"the process ended with code {self._process.exitcode}"
            self.stop()
        return Entry(target or "unknown", draw, words, failure)


def replayed(worker: Worker, corpus: Path) -> Iterator[str]:
    """Runs the corpus; says what fails."""
    for entry in read(corpus):
        found = worker.run(entry.draw, entry.target)
        if found.failure:
            yield f"failed again: {found.case}\n    {found.failure}\n    when it was found: {entry.failure}"
        elif found.case != entry.case:
            yield f"{entry.draw} draws another case now; replace its line (--add):\n    {found.case}\n    {entry.case}"


def fuzzed(worker: Worker, corpus: Path, seed: int, seconds: float) -> Iterator[Entry]:
    """Runs new cases until the time is over; adds the first failure of each kind to the corpus."""
    end, cases, kinds = time.monotonic() + seconds, {entry.case for entry in read(corpus)}, set()
    for number in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        entry = worker.run(f"{seed}/{number}")
        if entry.failure and entry.case not in cases and entry.kind not in kinds:
            kinds.add(entry.kind)
            add(corpus, entry)
        yield entry


def session(worker: Worker, corpus: Path, seed: int, seconds: float) -> int:
    """Prints what fails; returns how many."""
    wrong = 0
    for said in replayed(worker, corpus):
        wrong += 1
        print(said, flush=True)
    print(f"{len(read(corpus))} cases of the corpus, {wrong} wrong; the fuzz has seed {seed}", flush=True)
    count = 0
    for entry in fuzzed(worker, corpus, seed, seconds):
        count += 1
        if entry.failure:
            wrong += 1
            print(f"{entry.draw}: {entry.case}\n    {entry.failure}", flush=True)
    worker.stop()
    print(f"{count} cases of the fuzz; {wrong} wrong in all")
    return wrong


def searched(target: str, words: str, failure: str) -> Entry:
    """The first case whose words after the target's name match."""
    cases = importlib.import_module(CASES)
    for number in range(200_000):
        case = cases.drawn(f"add/{number}", target)
        if re.match(words, case.words.removeprefix(f"{target}(")):
            return Entry(target, f"add/{number}", case.words, failure)
    raise SystemExit(f"none of 200000 cases of {target} matches {words}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30), help="default: random")
    parser.add_argument(
        "--add", nargs=3, metavar=("TARGET", "REGEX", "FAILURE"), help="rms_norm 'out: .*int32' 'wrote ...'"
    )
    given = parser.parse_args()
    if given.add:
        add(CORPUS, searched(*given.add))
        return 0
    return bool(session(Worker(), CORPUS, given.seed, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
