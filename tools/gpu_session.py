#!/usr/bin/env python3
"""Checks and measures the kernels on a CUDA device in a few minutes: what runs, what is right, how fast it is.

    python tools/gpu_session.py --out FOLDER [--deadline 400]

It runs from the source tree with the torch, Triton and pytest of this Python and installs nothing. Each stage is a
process of its own with a time limit. Each item becomes a line in FOLDER/session.jsonl as soon as its result is known,
so a failure, a hang or a device that no longer answers loses one item. FOLDER also gets records.jsonl (for
`rmsnorm bench --from`), winners.json (launch choices that beat choices.py) and summary.md.

--rehearse runs it without a device: some of the kernels are compiled for sm_90, and every seventh item runs on the CPU
with little data.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATHS = ("src", "tools", "tests/support", "tests/triton")
NATIVE = ROOT / "build" / "gpu-native"  # of `make gpu-native`
WITHIN = 400.0  # seconds; the limits in the table below are for this deadline, and another one scales them
PATIENCE = 40.0  # seconds without a new line after which a stage's process is treated as hung
KILLED = -9


@dataclass(frozen=True)
class Stage:
    """A stage, and the second by which it must end. If it ends earlier, the next one starts earlier."""

    name: str
    until: float
    items: str = ""  # module.function of gpu_stages
    beside: bool = False  # runs at the same time as the next stages


STAGES = (
    Stage("build", 80, "build.items", beside=True),
    Stage("machine", 40, "machine.items"),  # takes 10 s; the first import of torch on a new machine may take 20 more
    Stage("smoke", 85, "smoke.items"),
    Stage("shapes", 165, "shapes.items"),
    Stage("host", 190, "host.items"),
    Stage("sweep", 295, "sweep.items"),
    Stage("winners", 335, "shapes.with_winners"),
    Stage("counters", 345, "counters.items"),
    Stage("quack", 350, "shapes.beside_quack"),
    Stage("tests", 395),  # gpu_stages.tests
)


def main() -> int:
    args = _arguments()
    if args.stage:
        return _stage(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if not args.rehearse:
            link_native(NATIVE, ROOT / "src")
        Session(args.out.resolve(), args.deadline, args.rehearse, args.only, Path(scratch)).run()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results; created if missing")
    parser.add_argument("--deadline", type=float, default=WITHIN, help="seconds for all stages (default: 400)")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STAGES], help="only these stages")
    parser.add_argument("--rehearse", action="store_true", help="without a device")
    parser.add_argument(
        "--stage", choices=[s.name for s in STAGES], help=argparse.SUPPRESS
    )  # for the process of one stage
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)  # by time.monotonic(), which all processes share
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.deadline > 0:
        parser.error(f"--deadline must be a positive number of seconds; received {args.deadline}")
    return args


def _stage(args: argparse.Namespace) -> int:
    """The work of a stage's process."""
    from gpu_stages.stage import Setting, run

    module, function = next(s.items for s in STAGES if s.name == args.stage).split(".")
    setting = Setting.make(args.out, args.rehearse)
    items = getattr(importlib.import_module(f"gpu_stages.{module}"), function)(setting)
    return run(args.stage, items, args.lines, args.end, args.skip, setting)


class Session:
    """Starts the stages one after another and collects their lines in session.jsonl."""

    def __init__(self, out: Path, deadline: float, rehearse: bool, only: list[str] | None, scratch: Path) -> None:
        self.out, self.rehearse, self.scratch = out, rehearse, scratch
        self.start, self.scale = time.monotonic(), deadline / WITHIN
        self.patience = PATIENCE * (10 if rehearse else 1)  # on two processors, which may be busy
        self.stages = [s for s in STAGES if not only or s.name in only]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                [
                    *(str(ROOT / name) for name in PATHS),
                    *_split(os.environ.get("PYTHONPATH")),
                ]
            ),
            "TRITON_CACHE_DIR": str(scratch / "triton"),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self) -> None:
        beside: list[tuple[Stage, Path, subprocess.Popen[bytes]]] = []
        for stage in self.stages:
            if stage.beside:
                lines = self._lines(stage)
                beside.append((stage, lines, self._process(stage, lines, 0)))
                continue
            if stage.name not in ("machine", "smoke"):  # nothing is timed while kernels are being compiled
                self._await(beside)
            if stage.name == "tests":
                self._tests(stage)
            else:
                self._stage(stage)
            self._summarise()
        self._await(beside)
        self._summarise()
        print((self.out / "summary.md").read_text())

    def _left(self, stage: Stage) -> float:
        return stage.until * self.scale - (time.monotonic() - self.start)

    def _lines(self, stage: Stage) -> Path:
        return self.out / f"{stage.name}.jsonl"

    def _process(self, stage: Stage, lines: Path, skip: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, __file__, "--out", str(self.out), "--stage", stage.name, "--lines", str(lines)]
        command += [
            "--end",
            str(self.start + stage.until * self.scale),
            "--skip",
            str(skip),
            *["--rehearse"] * self.rehearse,
        ]
        log = (self.scratch / f"{stage.name}.log").open("ab")
        return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def _stage(self, stage: Stage) -> None:
        """Runs a stage. After a process that dies or hangs, another one continues with the next item."""
        lines, skip = self._lines(stage), 0
        print(f"{time.monotonic() - self.start:6.1f} s  {stage.name}", flush=True)
        while self._left(stage) > 0:
            status = self._watch(stage, self._process(stage, lines, skip), lines)
            begun = [line["index"] for line in _read(lines) if "index" in line]
            if status == 0 or not begun or max(begun) + 1 == skip:
                break
            skip = max(begun) + 1
        self._fold(stage, lines)

    def _watch(self, stage: Stage, process: "subprocess.Popen[bytes]", lines: Path) -> int:
        seen, since = -1, time.monotonic()
        while (status := process.poll()) is None:
            size = lines.stat().st_size if lines.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            if self._left(stage) < -5 or time.monotonic() - since > self.patience:
                _end(process)
                return KILLED
            time.sleep(0.1)
        return status

    def _await(self, beside: "list[tuple[Stage, Path, subprocess.Popen[bytes]]]") -> None:
        while beside:
            stage, lines, process = beside.pop()
            self._watch(stage, process, lines)
            self._fold(stage, lines)

    def _fold(self, stage: Stage, lines: Path) -> None:
        """Append the stage's lines to the session's. An item that began but never ended gets a line that says so."""
        found = _read(lines)
        ended = {line.get("index") for line in found if not line.get("begin")}
        kept = [line for line in found if not line.get("begin")]
        for line in found:
            if line.get("begin") and line["index"] not in ended:
                why = "ended by" if self._left(stage) <= 0 else "the process died or hung in this item, before"
                kept.append({**line, "begin": False, "error": f"{why} the stage's time limit", "log": self._log(stage)})
        if not kept:
            kept = [{"stage": stage.name, "item": "start", "error": f"the stage wrote nothing: {self._log(stage)}"}]
        with (self.out / "session.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        lines.unlink(missing_ok=True)

    def _log(self, stage: Stage) -> str:
        """The end of what the stage's processes printed."""
        path = self.scratch / f"{stage.name}.log"
        return path.read_text(errors="replace")[-1500:].strip() if path.exists() else ""

    def _tests(self, stage: Stage) -> None:
        """`pytest -m gpu`, in parallel and with a limit for each test if the plugins are installed."""
        print(f"{time.monotonic() - self.start:6.1f} s  {stage.name}", flush=True)
        lines = self._lines(stage)
        if not _there("pytest"):
            lines.write_text(json.dumps({"stage": stage.name, "item": "pytest", "skipped": "not installed"}) + "\n")
            return self._fold(stage, lines)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "gpu_stages.tests",
        ]
        command += ["-n", str(processors())] * _there("xdist") + ["--timeout", "60"] * _there("pytest_timeout")
        process = subprocess.Popen(
            [*command, "tests/triton/test_gpu.py"],
            cwd=ROOT,
            env=self.environment | {"GPU_SESSION_LINES": str(lines)},
            stdout=(self.scratch / f"{stage.name}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(max(1.0, self._left(stage)))
        except subprocess.TimeoutExpired:
            _end(process)
        line = {"stage": stage.name, "item": "pytest", "index": -1, "summary": self._log(stage).rpartition("\n")[2]}
        if process.returncode not in (0, 1, 5):  # 1: a test failed, which has a line of its own
            line |= {"error": f"pytest ended with {process.returncode}", "log": self._log(stage)}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._fold(stage, lines)

    def _summarise(self) -> None:
        from gpu_stages.summary import markdown

        try:
            said = markdown(_read(self.out / "session.jsonl"))
        except Exception as error:  # the lines are there; the next stages matter more than their summary
            said = f"no summary: {type(error).__name__}: {error}\n"
        (self.out / "summary.md").write_text(said, encoding="utf-8")


def _read(path: Path) -> list[dict]:
    """The complete lines of a file; a process may have stopped in the middle of a line."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def processors() -> int:
    """Those that this process may use, at most 16: each gets a process with torch in it."""
    return min(16, len(os.sched_getaffinity(0)))


def _split(paths: str | None) -> list[str]:
    return paths.split(os.pathsep) if paths else []


def link_native(folder: Path, sources: Path) -> None:
    """Links the compiled modules in ``folder``, if there are any, to their places in the source tree."""
    for path in folder.glob("rmsnorm/*/*.so"):
        place = sources / path.relative_to(folder)
        if place.is_symlink():  # perhaps of a folder that is gone
            place.unlink()
        if not place.exists():
            place.symlink_to(path)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]
    sys.exit(main())
