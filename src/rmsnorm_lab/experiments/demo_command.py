"""``rmsnorm demo``: the command line of the demonstration."""

import argparse

from rmsnorm_lab.experiments import arguments
from rmsnorm_lab.files import named


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm demo``."""
    add = parser.add_argument
    add(
        "--details",
        action="store_true",
        help="print what `rmsnorm compare` prints: every setting of kernels, which takes longer, and the notes",
    )
    add("--seeds", type=int, default=3, metavar="N", help="training runs per normaliser (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add(
        "--out",
        type=named,
        default="runs",
        metavar="FOLDER",
        help="folder for records, the picture and checkpoints (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="run again what is already recorded, and replace its record")


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then train, time and show."""
    arguments.at_least(args, 1, "seeds", "threads")
    return int(arguments.imported("demo", "tasks.translation").demo(args))
