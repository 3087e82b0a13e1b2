"""``rmsnorm profile``: what the norms of the user's own model cost in the user's own step."""

import argparse
import importlib.util
import json
import sys
import traceback
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rmsnorm_lab import machine
from rmsnorm_lab.errors import UserError, nearest
from rmsnorm_lab.figure_files import check_figure
from rmsnorm_lab.files import check_output, named, write_whole
from rmsnorm_lab.plain import to_plain

if TYPE_CHECKING:
    from rmsnorm.torch.profile import NormProfile

SCHEMA = "rmsnorm-profile/1"
DISTURBED = 0.1  # processors
EVERY = 30.0  # seconds between two lines of progress, where the output is no terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. Values are checked in :func:`run`, whose messages say what to do."""
    parser.add_argument(
        "target",
        metavar="FILE.py:NAME",
        help="a function without arguments in a Python file, which returns a model and a step: "
        "a torch.nn.Module, and a function that is called with it",
    )
    parser.add_argument("--seconds", metavar="S", default="20", help="how long to measure (default: 20)")
    parser.add_argument("--rounds", metavar="N", help="the number of rounds, instead of --seconds")
    parser.add_argument("--threads", metavar="N", default="all", help="number of threads (default: all)")
    parser.add_argument("--json", dest="json_file", type=named, metavar="FILE", help="write all figures into FILE")
    parser.add_argument(
        "--plot", dest="plot_file", type=named, metavar="FILE", help="draw the shares into FILE (.png, .svg or .pdf)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; returns the exit status."""
    if args.plot_file:
        from rmsnorm_lab import profile_figure  # now, so that a missing Matplotlib is reported before any work

        check_figure("--plot", args.plot_file)
    if args.json_file:
        check_output("--json", args.json_file)
    threads = _number("--threads", "all", args.threads, int, machine.usable_threads())
    seconds = _number("--seconds", None, args.seconds, float, float("inf"))
    rounds = None if args.rounds is None else _number("--rounds", None, args.rounds, int, 1 << 20)

    import torch

    torch.set_num_threads(threads)
    path, name = _parts(args.target)
    model, step = _build(path, name)
    start, before = monotonic(), machine.others_seconds()
    profile = _profile(path, model, step, seconds, rounds)
    after, spent = machine.others_seconds(), monotonic() - start
    others = None if before is None or after is None else round(max(0.0, after - before) / spent, 2)
    print(profile)
    if others and others > DISTURBED:
        print(f"disturbed: other processes kept {others:.1f} processors busy during the measurement")
    if args.json_file:
        record = {
            "schema": SCHEMA,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "target": f"{path.name}:{name}",
            "machine": to_plain(machine.describe()),
            "others": others,
            **to_plain(profile),
        }
        write_whole(args.json_file, f"{json.dumps(record, ensure_ascii=False, indent=1)}\n".encode())
    if args.plot_file:
        profile_figure.plot(profile, args.plot_file)
    return 0


def _number(flag: str, word: str | None, text: str, kind: type, most: float) -> Any:
    """The value of a flag, from more than 0 to ``most``; ``word`` is a name for the most."""
    if text == word:
        return most
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not (0 < value <= most and value < float("inf")):
        limits = f"from 1 to {most:.0f}, what this process may use, or {word}" if word else "a positive number"
        raise UserError(f"{flag} must be {limits}; got {text!r}.")
    return value


def _parts(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    if not (colon and file and name.isidentifier()):
        raise UserError(
            f"FILE.py:NAME must be a Python file, a colon and the name of a function in it, such as model.py:build; "
            f"got {target!r}."
        )
    return Path(file), name


def _build(path: Path, name: str) -> tuple[Any, Any]:
    """The model and the step that the file's function returns."""
    import torch

    if not path.is_file():
        raise UserError(f"{str(path)!r} must be a Python file that exists; it does not. Name another one.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{str(path)!r} must be a Python file, with a name that ends in .py. Name another one.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look there
    sys.path.insert(0, str(path.resolve().parent))  # as for `python FILE.py`
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _said(path, "must be importable", error) from error
    build = getattr(module, name, None)
    if not callable(build):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"{path} must have a function {name!r}; it has none.{nearest(name, functions)}")
    try:
        made = build()
    except (Exception, SystemExit) as error:
        raise _said(path, f"{name}() must return a model and a step", error) from error
    if not (isinstance(made, tuple | list) and len(made) == 2):
        got = type(made).__name__ + (f" of {len(made)}" if isinstance(made, tuple | list) else "")
    elif isinstance(made[0], torch.nn.Module) and callable(made[1]):
        return made[0], made[1]
    else:
        got = f"a {type(made[0]).__name__} and a {type(made[1]).__name__}"
    raise UserError(
        f"{path}: {name}() must return a model and a step (a torch.nn.Module, and a function that is called with it); "
        f"got {got}."
    )


def _profile(path: Path, model: Any, step: Any, seconds: float, rounds: int | None) -> "NormProfile":
    from rmsnorm.torch import profile_norms

    progress = _Progress()
    try:
        return profile_norms(model, step, seconds=seconds, rounds=rounds, progress=progress)
    except (Exception, SystemExit) as error:  # a step that takes no model has no line in the user's file
        raise _said(path, "its model and step must run", error) from error
    finally:
        progress.clear()


def _said(path: Path, what: str, error: BaseException) -> UserError:
    """The user's error in a sentence, with the line of the user's file that it came from."""
    line = _line_of(path, error)
    where = f"{path}, line {line}" if line else str(path)
    return UserError(f"{where}: {what}; got {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _line_of(path: Path, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    lines += [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return lines[-1] if lines else None


class _Progress:
    """What is being done and the time left: one line in a terminal, elsewhere a line every ``EVERY`` seconds."""

    def __init__(self) -> None:
        self._terminal, self._last = sys.stderr.isatty(), monotonic()

    def __call__(self, what: str, left: float | None) -> None:
        text = what if left is None else f"{what}, about {left:.0f} s left"
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif monotonic() - self._last >= EVERY:
            print(text, file=sys.stderr, flush=True)
            self._last = monotonic()

    def clear(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
