"""``rmsnorm bench``: choose cases and providers, measure or read a recorded run, then show, plot and compare."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmsnorm_lab import machine
from rmsnorm_lab.bench import case_sets, cases
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.figure_files import check_figure
from rmsnorm_lab.files import check_output, named
from rmsnorm_lab.table import count

if TYPE_CHECKING:
    from rich.console import Console

    from rmsnorm_lab.bench.cases import Case
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
            "shape of the input, such as 256x1024; for gru and lstm 30x64x512x512 (steps, batch, features, hidden)",
        ),
        ("p", "P", "fraction of each row that the RMS is computed from, such as 0.0625"),
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
    output.add_argument("--markdown", action="store_true", help="print the results as Markdown tables")


def run(args: argparse.Namespace) -> int:
    """Returns 0, 1 if a provider failed or returned wrong numbers, or 130 if interrupted."""
    from rich.console import Console

    from rmsnorm_lab.bench import case_tables, records

    if hasattr(args, "plot_file"):
        from rmsnorm_lab.bench import rates_figure  # now, so that a missing Matplotlib is reported before any work

        check_figure("--plot", args.plot_file)
    earlier = records.latest(records.load(args.compare_file)) if hasattr(args, "compare_file") else {}
    out = Console(width=None if sys.stdout.isatty() else 130)  # a pipe has no width; 130 holds a table's row
    show = _recorded if hasattr(args, "from_file") else _measured
    shown, status = show(args, earlier, out)
    if args.markdown:
        print(case_tables.markdown(shown))
    if hasattr(args, "plot_file") and shown:
        rates_figure.plot(shown, args.plot_file)
    return status


def _recorded(args: argparse.Namespace, earlier: "dict[Case, Record]", out: "Console") -> "tuple[list[Record], int]":
    """Show the recorded cases that the flags choose."""
    from rmsnorm_lab.bench import case_tables, records

    recorded = records.latest(records.load(args.from_file))
    choices = _choices(args, max((case.threads for case in recorded), default=machine.usable_threads()))
    if hasattr(args, "json_file"):
        raise UserError("--json needs measurements; got --from too, which measures nothing. Leave one of them out.")
    found = [_only(recorded[case], _values(args, "provider")) for case in case_sets.keep(recorded, choices)]
    if not args.markdown:
        for record in found:
            case_tables.case_table(record, earlier.get(record.case)).show(out)
            out.print()
        out.print(case_tables.about(found[-1].machine), case_tables.LEGEND, sep="\n\n", style="dim", highlight=False)
    return found, 0


def _measured(args: argparse.Namespace, earlier: "dict[Case, Record]", out: "Console") -> "tuple[list[Record], int]":
    """Time the cases one by one; show and keep each as soon as it is finished."""
    from rich.console import Console

    from rmsnorm import timing
    from rmsnorm_lab.bench import all_cases, case_tables, cuda, providers, records, runner

    usable = machine.usable_threads()
    choices = _choices(args, usable)
    if args.device == "cuda":
        cuda.check()
        known_cases = case_sets.cuda_cases()
    else:
        known_cases = (case_sets.quick_cases if args.quick else case_sets.default_cases)(usable)
        if any(change["op"] in cases.MODELS for change in choices.get("op", ())):
            known_cases += case_sets.model_cases(usable, args.quick)
        if any(change["op"] in cases.CHAINS for change in choices.get("op", ())):
            known_cases += case_sets.chain_cases(usable, args.quick)
        if any(change["op"] in cases.ROTARY for change in choices.get("op", ())):
            known_cases += case_sets.rotary_cases(usable, args.quick)
    selected = case_sets.choose(known_cases, choices)
    known = providers.all_providers(max(case.threads for case in selected))
    wanted = providers.choose([p for p in known if args.device in p.devices], _values(args, "provider"))
    plan = timing.QUICK if args.quick else timing.Plan()
    missing = {provider.name: reason for provider in wanted if (reason := provider.missing())}
    installed = [provider for provider in wanted if provider.name not in missing]
    minutes = sum(runner.seconds(case, installed, plan) for case in selected) / 60
    out.print(case_tables.about(records.Machine(**vars(machine.describe()))), style="dim", highlight=False)
    for name, reason in missing.items():
        out.print(f"{name}: {reason}", style="yellow", highlight=False)
    out.print(f"{count(len(selected), 'case')}, about {max(1, round(minutes))} min", highlight=False)
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
            case_tables.case_table(record, earlier.get(record.case)).show(out)
            out.print()

    progress = out if out.is_terminal else Console(stderr=True)
    done, complete = all_cases.measure_all(selected, installed, plan, progress, keep)
    if done and not args.markdown:
        out.print(case_tables.LEGEND, style="dim", highlight=False)
    failures = [f"{record.case}: {name}: {why}" for record in done for name, why in record.wrong.items()]
    for failure in failures:
        print(f"not timed: {failure}", file=sys.stderr)
    if not complete:
        kept = f", kept in {args.json_file}" if hasattr(args, "json_file") else ""
        print(f"interrupted: {len(done)} of {count(len(selected), 'case')} measured{kept}", file=sys.stderr)
        return done, 130
    return done, int(bool(failures))


def _choices(args: argparse.Namespace, usable: int) -> dict[str, list[dict[str, Any]]]:
    """The flags that were given: for each, the fields of a case that its values set."""
    if args.device not in cases.DEVICES:
        raise UserError(f"--device must be {' or '.join(cases.DEVICES)}; got {args.device!r}.")
    parsers = {
        "op": lambda text: {"op": case_sets.named("op", text, cases.OPS)},
        "direction": lambda text: {"direction": case_sets.named("direction", text, cases.DIRECTIONS)},
        "dtype": lambda text: {"dtype": case_sets.named("dtype", text, cases.DTYPES)},
        "shape": case_sets.shape,
        "p": case_sets.fraction,
        "threads": lambda text: case_sets.threads(text, usable),
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
        case_sets.named("provider", name, record.results | record.skipped | record.wrong)
    return replace(record, results={n: r for n, r in record.results.items() if not names or n in names})


def _check_appendable(path: Path) -> None:
    """Refuse, before any measurement, a file that records could not be added to."""
    from rmsnorm_lab.bench import records

    check_output("--json", path)
    if path.is_file():
        records.load(path)
