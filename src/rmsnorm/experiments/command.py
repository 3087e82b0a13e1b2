"""``rmsnorm compare``: the command line of the comparison."""

import argparse
import math

from rmsnorm.errors import UserError
from rmsnorm.experiments import arguments, tasks
from rmsnorm.experiments.recipes.common import NORMS

ALL = "all"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm compare``."""
    add = parser.add_argument
    listed = "; ".join(f"{name}: {what}" for name, what in tasks.TASKS.items())
    add("tasks", nargs="+", metavar="TASK", help=f"{listed}; {ALL}: each in turn")
    add("--norm", nargs="+", action="extend", metavar="NORM", help=f"some of {', '.join(NORMS)} (default: the task's)")
    add(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="training runs for each normaliser, with seeds 0 to N-1 (default: %(default)s)",
    )
    add(
        "--timing-rounds",
        type=int,
        metavar="N",
        help="rounds of one step each in the three settings; 0: no timing (default: the recipe's)",
    )
    add(
        "--sweep-lr",
        nargs="+",
        type=float,
        metavar="RATE",
        help="instead: train every normaliser with each learning rate and show the validation figures",
    )
    add(
        "--sweep-p",
        nargs="*",
        type=float,
        metavar="P",
        help="instead: train pRMSNorm with each p (default: the paper's, 0.0625 and 0.1 to 1 in steps of 0.1)",
    )
    arguments.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then compare each task."""
    arguments.at_least(args, 1, "seeds", "steps", "threads")
    arguments.at_least(args, 0, "timing-rounds")
    arguments.known_tasks(args.tasks, ALL)
    chosen = list(tasks.TASKS) if ALL in args.tasks else list(dict.fromkeys(args.tasks))
    if args.data and len(chosen) > 1:
        raise UserError(f"--data must be given for one task; got {len(chosen)} tasks. Compare them one by one.")
    _check_sweeps(args)
    norms = {task: arguments.norms_of(args.norm, task) for task in chosen}
    recipes = {task: arguments.recipe_of(args, task, norms[task]) for task in chosen}
    arguments.quiet()
    try:
        from rmsnorm.experiments import session
    except ModuleNotFoundError as error:
        raise arguments.missing(error) from None
    return session.compare(args, recipes, norms)


def _check_sweeps(args: argparse.Namespace) -> None:
    """Their values, and that nothing else is asked for that a sweep would pass over."""
    swept = {"--sweep-lr": args.sweep_lr, "--sweep-p": args.sweep_p}
    given = [flag for flag, values in swept.items() if values is not None]
    if len(given) == 2:
        raise UserError("--sweep-p must be the only sweep; got --sweep-lr too. Pass one of them.")
    if wrong := [rate for rate in args.sweep_lr or () if not 0 < rate < math.inf]:
        raise UserError(f"--sweep-lr must be learning rates above 0; got {wrong[0]:g}. Pass others.")
    if wrong := [p for p in args.sweep_p or () if not 0 < p <= 1]:
        raise UserError(f"--sweep-p must be fractions, 0 < p <= 1; got {wrong[0]:g}. Pass others.")
    if args.sweep_p is not None and args.norm:
        raise UserError("--sweep-p trains pRMSNorm alone; got --norm too. Leave one of them out.")
    if given and args.timing_rounds:
        raise UserError(
            f"{given[0]} times nothing; got --timing-rounds {args.timing_rounds} too. Leave one of them out."
        )
    for flag, name in (("--sweep-lr", "train.learning_rate"), ("--sweep-p", "p")):
        if flag in given and any(assignment.startswith(f"{name}=") for assignment in args.set):
            raise UserError(f"{flag} sets {name}; got --set {name}=... too. Leave one of them out.")
