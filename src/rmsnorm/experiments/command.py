"""``rmsnorm compare``: the command line of the experiments."""

import argparse
import sys
from dataclasses import replace

from rmsnorm.errors import UserError
from rmsnorm.experiments import tasks
from rmsnorm.experiments.recipes import settings
from rmsnorm.experiments.recipes.common import KERNELS, NORMS, PRECISIONS, Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm compare``."""
    parser.formatter_class = argparse.HelpFormatter  # the texts name the defaults that mean something
    add = parser.add_argument
    add("task", choices=tasks.TASKS, help="; ".join(f"{name}: {what}" for name, what in tasks.TASKS.items()))
    add("--data", metavar="PATH", help="the official files (default: a stand-in from what is installed)")
    add("--size", choices=tasks.SIZES, default="small", help="of model and recipe (default: %(default)s)")
    add("--norm", nargs="+", action="extend", metavar="NORM", help=f"some of {', '.join(NORMS)} (default: the task's)")
    add(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="training runs for each normaliser, with seeds 0 to N-1 (default: %(default)s)",
    )
    add("--steps", type=int, metavar="N", help="training steps a run (default: the recipe's)")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: train.learning_rate=0.001 model.width=256 p=0.125 (docs/experiments.md)",
    )
    add(
        "--kernels",
        choices=KERNELS,
        default="rmsnorm",
        help="unfused: every norm in framework operators; rmsnorm: this project's for all; "
        "best: torch's LayerNorm against this project's RMSNorm (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="32-true", help="Lightning Fabric's (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--out", default="runs", metavar="FOLDER", help="where the records and the plot go (default: %(default)s)")
    add("--overwrite", action="store_true", help="do again what is recorded already")
    add("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then compare."""
    for flag in ("seeds", "steps", "threads"):
        number = getattr(args, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag} must be at least 1; got {number}. Pass --{flag} 1 or more.")
    recipe = _recipe(args)
    try:
        from rmsnorm.experiments.report import compare
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "rmsnorm":
            raise
        raise UserError(
            f"this command needs the experiments' packages; {error.name!r} is not installed. "
            f"Run: {sys.executable} -m pip install 'rmsnorm[experiments]'"
        ) from None
    return compare(args, recipe)


def _recipe(args: argparse.Namespace) -> Recipe:
    recipe = settings.changed(tasks.recipe(args.task, args.size), args.set)
    return recipe if args.steps is None else replace(recipe, train=replace(recipe.train, steps=args.steps))
