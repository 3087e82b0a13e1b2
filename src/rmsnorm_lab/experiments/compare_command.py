"""``rmsnorm compare``: the command line of the comparison."""

import argparse
import math

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import arguments, tasks
from rmsnorm_lab.experiments.paper import PUBLISHED

ALL = "all"
SEEDS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm compare``."""
    add = parser.add_argument
    listed = "; ".join(f"{name}: {what}" for name, what in tasks.TASKS.items())
    add("tasks", nargs="*", metavar="TASK", help=f"{listed}; {ALL}: each of them in turn")
    add(
        "--norm",
        nargs="+",
        action="extend",
        metavar="NORM",
        help=f"normalisers to compare, from the task's ({arguments.norms_help()})",
    )
    add(
        "--seeds",
        type=int,
        metavar="N",
        help=f"number of training runs per normaliser, with seeds 0 to N-1 (default: {SEEDS})",
    )
    add(
        "--timing-rounds",
        type=int,
        metavar="N",
        help="timing rounds; each times a step of every normaliser with each of the three choices of kernels; 0: no "
        "timing (default: the recipe's)",
    )
    add(
        "--timing-only",
        action="store_true",
        help="train nothing and only time steps, for some minutes a task; in --size paper without --data the inputs "
        "are drawn at random in the official data's shape",
    )
    add(
        "--sweep-lr",
        nargs="+",
        metavar="RATE",
        help="instead of comparing, train every normaliser with each of these learning rates and print the validation "
        "figures",
    )
    add(
        "--sweep-p",
        nargs="*",
        metavar="P",
        help="instead of comparing, train pRMSNorm with each of these p and print the test figures (default: the "
        "paper's, 0.0625 and 0.1 to 1 in steps of 0.1)",
    )
    arguments.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then compare each task."""
    arguments.at_least(args, 1, "seeds", "steps", "threads", "checkpoint-every")
    arguments.at_least(args, 0, "timing-rounds")
    named = arguments.tasks_of(args, args.tasks, ("norm", "set", "sweep_lr", "sweep_p"), ALL)
    chosen = list(tasks.TASKS) if ALL in named else named
    if args.data and len(chosen) > 1:
        raise UserError(f"--data must be given for one task; got {len(chosen)} tasks. Compare them one by one.")
    args.sweep_lr = arguments.numbers("--sweep-lr", args.sweep_lr)
    args.sweep_p = arguments.numbers("--sweep-p", args.sweep_p)
    _check_sweeps(args)
    if args.timing_only:
        _check_timing_only(args)
    args.seeds = args.seeds or SEEDS
    norms = {task: arguments.norms_of(args.norm or _papers(args, task), task) for task in chosen}
    times = args.sweep_lr is None and args.sweep_p is None and args.timing_rounds != 0
    recipes = {task: arguments.recipe_of(args, task, norms[task], times) for task in chosen}
    comparing = arguments.imported("comparing", *(f"tasks.{task}" for task in chosen))
    return int(comparing.compare(args, recipes, norms))


def _check_sweeps(args: argparse.Namespace) -> None:
    """Check their values, and refuse options that a sweep would ignore."""
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


def _papers(args: argparse.Namespace, task: str) -> list[str] | None:
    """The normalisers of which the paper has seconds, where its own sizes are timed alone; None: the task's."""
    if args.timing_only and args.size == "paper" and task in PUBLISHED:
        return list(PUBLISHED[task].seconds)
    return None


def _check_timing_only(args: argparse.Namespace) -> None:
    """Refuse what has no effect without training."""
    given = {
        "--seeds": args.seeds is not None,
        "--steps": args.steps is not None,
        "--checkpoint-every": args.checkpoint_every is not None,
        "--sweep-lr": args.sweep_lr is not None,
        "--sweep-p": args.sweep_p is not None,
        "--timing-rounds 0": args.timing_rounds == 0,
    }
    if wrong := [flag for flag, is_given in given.items() if is_given]:
        raise UserError(f"--timing-only trains nothing and times; got {wrong[0]} too. Leave one of them out.")
