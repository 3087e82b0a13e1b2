"""``rmsnorm train``: the command line of a single run, alone or under torchrun."""

import argparse

from rmsnorm.errors import UserError
from rmsnorm.experiments import arguments, tasks
from rmsnorm.experiments.recipes.common import NORMS

STRATEGIES = ("ddp", "fsdp")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm train``."""
    add = parser.add_argument
    add("task", metavar="TASK", help=f"one of {', '.join(tasks.TASKS)}")
    add("--norm", required=True, metavar="NORM", help=f"one of {', '.join(NORMS)}")
    add("--seed", type=int, default=0, metavar="N", help="of weights and batches (default: %(default)s)")
    add(
        "--strategy",
        choices=STRATEGIES,
        default="ddp",
        help="of several processes, under `torchrun -m rmsnorm.cli train ...` (default: %(default)s)",
    )
    add(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="steps between checkpoints, of which two are kept (default: at each evaluation)",
    )
    add("--tensorboard", action="store_true", help="write logs to OUT/tensorboard")
    arguments.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then train."""
    arguments.at_least(args, 0, "seed")
    arguments.at_least(args, 1, "steps", "threads", "checkpoint-every")
    arguments.known_tasks([args.task])
    norms = arguments.norms_of([args.norm], args.task)
    if len(norms) != 1:
        raise UserError(f"--norm must be one normaliser; got {args.norm}. To train several, use rmsnorm compare.")
    recipe = arguments.recipe_of(args, args.task, norms)
    arguments.quiet()
    try:
        from rmsnorm.experiments import session
    except ModuleNotFoundError as error:
        raise arguments.missing(error) from None
    return session.train(args, recipe, norms[0])
