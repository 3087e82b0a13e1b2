"""``rmsnorm bench``: choose cases and providers, measure or read a recorded run, then show, plot and compare."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmsnorm_lab import machine
from rmsnorm_lab.bench import cases
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import check_output, named

if TYPE_CHECKING:
    from rich.console import Console

    from rmsnorm_lab.bench.cases import Case
    from rmsnorm_lab.bench.provider import Provider
    from rmsnorm_lab.bench.records import Record


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. Choices are checked in :func:`run`, whose messages say what to do."""
    chosen = parser.add_argument_group(
        "what to measure", "each flag takes several values, separated by spaces or commas, instead of the default set's"
    )
    for flag, metavar, text in (
        ("op", "OP", f"operation: {', '.join(cases.OPS)}"),
        ("direction", "DIRECTION", f"{' or '.join(cases.DIRECTIONS)}"),
        ("dtype", "DTYPE", f"{' or '.join(cases.DTYPES)}"),
        (
            "shape",
            "ROWSxN",
            "shape of the input, such as 256x1024; gru, lstm: 30x64x512x512 (steps, batch, features, hidden)",
        ),
        ("p", "P", "fraction of a row that the RMS is taken over, such as 0.0625"),
        ("threads", "N", "number of threads, or all"),
        ("provider", "NAME", "implementation to time; --list names them"),
    ):
        chosen.add_argument(f"--{flag}", nargs="+", metavar=metavar, default=argparse.SUPPRESS, help=text)
    chosen.add_argument("--device", default="cpu", help=f"where to run: {' or '.join(cases.DEVICES)} (default: cpu)")
    chosen.add_argument("--quick", action="store_true", help="verify every provider on a few small cases in a minute")
    chosen.add_argument("--list", action="store_true", help="show providers, cases and estimated time; measure nothing")
    output = parser.add_argument_group("what to do with the results")
    for flag, text in (
        ("json", "append each case to FILE as one line of JSON, as soon as it is measured"),
        ("plot", "draw rates and ratios into FILE (.png, .svg or .pdf)"),
        ("compare", "also show the times of an earlier run, recorded with --json FILE"),
        ("from", "measure nothing; show the cases recorded in FILE, the last record of each"),
    ):
        output.add_argument(
            f"--{flag}", dest=f"{flag}_file", type=named, metavar="FILE", default=argparse.SUPPRESS, help=text
        )
    output.add_argument("--markdown", action="store_true", help="print Markdown tables, as in docs/measured.md")


def run(args: argparse.Namespace) -> int:
    """Returns 0, 1 if a provider failed or returned wrong numbers, or 130 if interrupted."""
    _require("torch", "rich", *["matplotlib"] * hasattr(args, "plot_file"))
    from rich.console import Console

    from rmsnorm_lab.bench import providers, records, report

    recorded = records.latest(records.load(args.from_file)) if hasattr(args, "from_file") else {}
    usable = max((case.threads for case in recorded), default=machine.usable_threads())
    choices = _choices(args, usable)
    if hasattr(args, "plot_file"):
        _check_plot(args.plot_file)
    earlier = records.latest(records.load(args.compare_file)) if hasattr(args, "compare_file") else {}
    out = Console(width=None if sys.stdout.isatty() else 130)  # a pipe has no width; 130 holds a table's row

    if hasattr(args, "from_file"):
        if hasattr(args, "json_file"):
            raise UserError("--json keeps what is measured, and --from measures nothing; leave one of them out")
        found = [recorded[case] for case in cases.keep(recorded, choices)]
        shown, status = [_only(record, _values(args, "provider")) for record in found], 0
        if not args.markdown:
            for record in shown:
                out.print(report.case_table(record, earlier.get(record.case)))
            out.print(report.about(shown[-1].machine), report.LEGEND, sep="\n\n", style="dim")
    else:
        if args.device == "cuda":
            from rmsnorm_lab.bench import cuda

            cuda.check()
            selected = cases.choose(cases.cuda_cases(), choices)
        else:
            selected = cases.choose((cases.quick_cases if args.quick else cases.default_cases)(usable), choices)
        known = providers.all_providers(max(case.threads for case in selected))
        wanted = providers.choose([p for p in known if args.device in p.devices], _values(args, "provider"))
        shown, status = _measure(args, selected, wanted, earlier, out)
    if args.markdown:
        print(report.markdown(shown))
    if hasattr(args, "plot_file") and shown:
        from rmsnorm_lab.bench.plot import plot

        plot(shown, args.plot_file)
    return status


def _measure(
    args: argparse.Namespace,
    selected: "Sequence[Case]",
    wanted: "Sequence[Provider]",
    earlier: "dict[Case, Record]",
    out: "Console",
) -> "tuple[list[Record], int]":
    """Time the cases one by one, showing and keeping each as it is finished."""
    from rich.console import Console

    from rmsnorm_lab.bench import calls, records, report, runner, session

    plan = calls.QUICK if args.quick else calls.Plan()
    missing = {provider.name: reason for provider in wanted if (reason := provider.missing())}
    installed = [provider for provider in wanted if provider.name not in missing]
    minutes = sum(runner.seconds(case, installed, plan) for case in selected) / 60
    out.print(report.about(machine.describe()), style="dim")
    for name, reason in missing.items():
        out.print(f"{name}: {reason}", style="yellow")
    out.print(f"{cases.count(len(selected), 'case')}, about {max(1, round(minutes))} min")
    if args.list:
        out.print(*(f"  {provider.name}: {provider.summary}" for provider in installed), sep="\n", highlight=False)
        out.print(*(f"  {case}" for case in selected), sep="\n", highlight=False)
        return [], 0
    if hasattr(args, "json_file"):
        _check_appendable(args.json_file)

    def keep(record: "Record") -> None:
        record.skipped.update(missing)
        if hasattr(args, "json_file"):
            records.append(args.json_file, record)
        if not args.markdown:
            out.print(report.case_table(record, earlier.get(record.case)))

    progress = out if out.is_terminal else Console(stderr=True)
    done, complete = session.measure_all(selected, installed, plan, progress, keep)
    if done and not args.markdown:
        out.print(report.LEGEND, style="dim")
    failures = [f"{record.case}: {name}: {why}" for record in done for name, why in record.wrong.items()]
    for failure in failures:
        print(f"not timed: {failure}", file=sys.stderr)
    if not complete:
        kept = f", kept in {args.json_file}" if hasattr(args, "json_file") else ""
        print(f"interrupted: {len(done)} of {cases.count(len(selected), 'case')} measured{kept}", file=sys.stderr)
        return done, 130
    return done, int(bool(failures))


def _choices(args: argparse.Namespace, usable: int) -> dict[str, list[dict[str, Any]]]:
    """The flags that were given, each as the changes of a case that its values stand for."""
    if args.device not in cases.DEVICES:
        raise UserError(f"--device must be {' or '.join(cases.DEVICES)}; received {args.device!r}")
    parsers = {
        "op": lambda text: {"op": cases.named("op", text, cases.OPS)},
        "direction": lambda text: {"direction": cases.named("direction", text, cases.DIRECTIONS)},
        "dtype": lambda text: {"dtype": cases.named("dtype", text, cases.DTYPES)},
        "shape": cases.shape,
        "p": cases.fraction,
        "threads": lambda text: cases.threads(text, usable),
    }
    given = {flag: values for flag in parsers if (values := _values(args, flag)) is not None}
    return {flag: [parsers[flag](text) for text in texts] for flag, texts in given.items()}


def _values(args: argparse.Namespace, flag: str) -> list[str] | None:
    """``gru lstm`` and ``gru,lstm`` are the same."""
    given = getattr(args, flag, None)
    return None if given is None else [value for part in given for value in part.split(",") if value]


def _only(record: "Record", names: Sequence[str] | None) -> "Record":
    """The record with the results of the named providers."""
    from dataclasses import replace

    for name in names or ():
        cases.named("provider", name, record.results | record.skipped | record.wrong)
    return replace(record, results={n: r for n, r in record.results.items() if not names or n in names})


def _require(*modules: str) -> None:
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    if lacking:
        raise UserError(f"needs {' and '.join(lacking)}: pip install 'rmsnorm[bench]'")


def _check_plot(path: Path) -> None:
    from rmsnorm_lab.bench.plot import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot must name a file ending in {', '.join(FORMATS)}; received {str(path)!r}")
    check_output("--plot", path)


def _check_appendable(path: Path) -> None:
    """Refuse before measuring what could not be kept afterwards."""
    from rmsnorm_lab.bench import records

    check_output("--json", path)
    if path.is_file():
        records.load(path)
