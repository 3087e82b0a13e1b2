"""The ``rmsnorm`` command: one subcommand per module. Only the module of the command that is called is imported.

Each module named below has ``configure(parser)``, which adds its arguments and must not import anything heavy, and
``run(args) -> int``, which returns the exit status. ``info`` is part of the library; the other commands are the
laboratory's, and :func:`_load` is the one place where the library imports it.
"""

import argparse
import difflib
import importlib
import io
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

COMMANDS = {
    "info": ("rmsnorm.info", "show what this installation can do here, and why not the rest"),
    "build-nodes": (
        "rmsnorm.build_nodes",
        "compile the C++ calls, autograd nodes and operators for the installed torch",
    ),
    "profile": (
        "rmsnorm_lab.profile_command",
        "measure what the norms of your own model cost, and what would be saved",
    ),
    "train": ("rmsnorm_lab.experiments.train_command", "train one model with one normaliser"),
    "demo": ("rmsnorm_lab.experiments.demo_command", "train, time and compare the norms of a small model: one screen"),
    "compare": ("rmsnorm_lab.experiments.compare_command", "train the same model with each normaliser and compare"),
    "evaluate": ("rmsnorm_lab.experiments.evaluate_command", "measure a trained network on its task's data"),
    "translate": ("rmsnorm_lab.experiments.translate_command", "translate lines of text with a trained network"),
    "sample": ("rmsnorm_lab.experiments.sample_command", "write text with a trained language model"),
    "invariance": (
        "rmsnorm_lab.analysis.invariance_command",
        "measure the invariances in the paper's Table 1, and its gradients under re-scaling",
    ),
    "partial": (
        "rmsnorm_lab.analysis.partial_command",
        "measure how many elements pRMSNorm needs, in trained networks and in sweeps of p",
    ),
    "report": ("rmsnorm_lab.report.report_command", "write one HTML page from all records of a folder"),
    "bench": ("rmsnorm_lab.bench.bench_command", "time this project's kernels and their alternatives"),
}


def _load(module: str) -> Any:
    """A module by its name; the command ends where the laboratory is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "rmsnorm_lab":
            raise
        print(
            "rmsnorm: this command needs the package rmsnorm_lab; it is not installed. Install rmsnorm again: "
            "its wheel has both.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    """The parser of ``rmsnorm --help``: the commands by name, without their arguments."""
    parser = argparse.ArgumentParser(
        prog="rmsnorm",
        description="RMSNorm and pRMSNorm: kernels, the paper's experiments, benchmarks.",
        usage="rmsnorm COMMAND [OPTIONS]",
        epilog="'rmsnorm COMMAND --help' lists a command's options. Start with 'rmsnorm info', 'rmsnorm bench --quick' "
        "(one minute) or 'rmsnorm demo' (three minutes on two cores).",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=16),
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [OPTIONS]")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one command, with its arguments."""
    module, summary = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"rmsnorm {name}",
        description=summary[0].upper() + summary[1:] + ".",
        allow_abbrev=False,  # "compare --seed 5" must not be --seeds 5
    )
    _load(module).configure(parser)
    return parser


def _show_every_character() -> None:
    """Print a character that the output's encoding lacks (ASCII has no "±") as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or "utf" not in stream.encoding.lower()):
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: wrong use, 130: interrupted)."""
    _show_every_character()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    name = argv[0] if argv else ""
    if name in COMMANDS:
        return _run(name, argv[1:])
    if name and not name.startswith("-"):
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean {similar[0]!r}?" if similar else ""
        parser.error(f"COMMAND must be one of {', '.join(COMMANDS)}; got {name!r}.{meant}")
    if parser.parse_args(argv).version:
        import rmsnorm

        print(f"rmsnorm {rmsnorm.__version__}")
        return 0
    parser.print_help()
    return 2


def _run(name: str, argv: Sequence[str]) -> int:
    """One command from its arguments to the exit status."""
    module, parser = COMMANDS[name][0], parser_of(name)
    errors = _load("rmsnorm_lab.errors") if module.startswith("rmsnorm_lab.") else None
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        meant = errors.nearest_flag(unknown[0], parser) if errors else ""
        epilog = f" {parser.epilog}" if parser.epilog else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}.{meant}{epilog}")
    try:
        status: int = _load(module).run(args)
        return status
    except BrokenPipeError:  # the reader of a pipe went away: `rmsnorm info | head`
        sys.stderr.close()
        return 141
    except Exception as error:
        said = errors.sentence(error, name) if errors else None
        if said is None:
            raise
        print(f"rmsnorm {name}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rmsnorm {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
