"""The ``rmsnorm`` command: one subcommand a module, imported only when it runs.

Each module named below offers ``configure(parser)``, which adds its arguments and must not import anything
heavy, and ``run(args) -> int``, the exit status.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from rmsnorm_lab import errors

COMMANDS = {
    "info": ("rmsnorm.info", "what this installation can do here, and why not the rest"),
    "train": ("rmsnorm_lab.experiments.train_command", "train one model with one normaliser"),
    "compare": ("rmsnorm_lab.experiments.command", "train the same model with each normaliser and compare"),
    "evaluate": ("rmsnorm_lab.experiments.evaluate_command", "measure a trained network on its task's data"),
    "translate": ("rmsnorm_lab.experiments.translate_command", "translate lines of text by a trained network"),
    "sample": ("rmsnorm_lab.experiments.sample_command", "write text by a trained language model"),
    "invariance": ("rmsnorm_lab.analysis.command", "measure the paper's Table 1 and its analysis of gradients"),
    "report": ("rmsnorm_lab.report.command", "put everything recorded into one HTML page"),
    "bench": ("rmsnorm_lab.bench.command", "time this project's kernels beside their peers"),
}


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole command line, and each command's own parser by name."""
    parser = argparse.ArgumentParser(
        prog="rmsnorm", description="RMSNorm and pRMSNorm: kernels, experiments, measurements."
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    of_command = {}
    for name, (module, summary) in COMMANDS.items():
        of_command[name] = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,  # "compare --seed 5" must not be --seeds 5
        )
        importlib.import_module(module).configure(of_command[name])
    return parser, of_command


def _refuse(unknown: Sequence[str], command: argparse.ArgumentParser) -> None:
    """End with the command's usage, what it does not know, and the flag that is most like it."""
    flags = (flag for action in command._actions for flag in action.option_strings)
    meant = errors.nearest(unknown[0].partition("=")[0], flags)
    command.error(
        f"unrecognized arguments: {' '.join(unknown)}.{meant}" + (f" {command.epilog}" if command.epilog else "")
    )


def _show_every_character() -> None:
    """What the output's encoding lacks is shown as an escape (ASCII has no "±"), instead of ending hours of work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or "utf" not in stream.encoding.lower()):
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: wrong use, 130: interrupted)."""
    _show_every_character()
    parser, of_command = _parser()
    command = next(iter(sys.argv[1:] if argv is None else argv), "-")
    if not command.startswith("-") and command not in COMMANDS:
        known = ", ".join(COMMANDS)
        parser.error(f"COMMAND must be one of {known}; got {command!r}.{errors.nearest(command, COMMANDS)}")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown, of_command.get(args.command, parser))
    if args.version:
        import rmsnorm

        print(f"rmsnorm {rmsnorm.__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except BrokenPipeError:  # the reader of a pipe went away: `rmsnorm info | head`
        sys.stderr.close()
        return 141
    except Exception as error:
        said = errors.sentence(error)
        if said is None:
            raise
        print(f"rmsnorm {args.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"rmsnorm {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
