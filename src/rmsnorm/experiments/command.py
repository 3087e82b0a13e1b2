"""``rmsnorm compare``: the command line of the experiments."""

import argparse
import sys

from rmsnorm.errors import UserError
from rmsnorm.experiments.recipes import KERNELS, NORMS, PRECISIONS, TrainConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm compare``."""
    parser.formatter_class = argparse.HelpFormatter  # the texts name the defaults that mean something
    add = parser.add_argument
    add("task", choices=("language",), help="language: characters of real text, a small decoder-only transformer")
    add("--data", metavar="FILE_OR_FOLDER", help="UTF-8 text (default: the sources of Python's standard library)")
    add("--norm", nargs="+", action="extend", metavar="NORM", help=f"only these of {', '.join(NORMS)} (default: all)")
    add(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="training runs for each normaliser, with seeds 0 to N-1 (default: %(default)s)",
    )
    add("--steps", type=int, default=TrainConfig.steps, metavar="N", help="training steps a run (default: %(default)s)")
    add(
        "--kernels",
        choices=KERNELS,
        default="rmsnorm",
        help="LayerNorm and RMSNorm both from here (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="32-true", help="Lightning Fabric's (default: %(default)s)")
    add("--qk-norm", action="store_true", help="normalise queries and keys too, over each head")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--out", default="runs", metavar="FOLDER", help="where the records and the plot go (default: %(default)s)")
    add("--overwrite", action="store_true", help="do again what is recorded already")
    add("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then compare."""
    norms = _norms(args.norm)
    for flag in ("seeds", "steps", "threads"):
        number = getattr(args, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag} must be at least 1; got {number}. Pass --{flag} 1 or more.")
    try:
        from rmsnorm.experiments.report import compare_language
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "rmsnorm":
            raise
        raise UserError(
            f"this command needs the experiments' packages; {error.name!r} is not installed. "
            f"Run: {sys.executable} -m pip install 'rmsnorm[experiments]'"
        ) from None
    return compare_language(args, norms)


def _norms(names: list[str] | None) -> list[str]:
    """The chosen normalisers in the order of the table; 'rms layer' and 'rms,layer' are the same."""
    chosen = {name for part in names or NORMS for name in part.split(",") if name}
    if unknown := sorted(chosen - set(NORMS)):
        raise UserError(f"--norm must name some of {', '.join(NORMS)}; got {unknown[0]!r}. Pass one of these.")
    if not chosen:
        raise UserError(f"--norm must name some of {', '.join(NORMS)}; got none. Pass one of these.")
    return [name for name in NORMS if name in chosen]
