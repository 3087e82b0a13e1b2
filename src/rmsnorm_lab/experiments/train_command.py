"""``rmsnorm train``: the command line of a single run, alone or under torchrun."""

import argparse
import os

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import arguments, tasks

STRATEGIES = ("ddp", "fsdp")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rmsnorm train``."""
    add = parser.add_argument
    add("task", nargs="?", metavar="TASK", help=f"one of {', '.join(tasks.TASKS)}")
    add(
        "--norm",
        required=True,
        metavar="NORM",
        help=f"normaliser to train with, one of the task's ({arguments.norms_help()})",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the initial weights and of the order of the training data (default: %(default)s)",
    )
    add(
        "--strategy",
        choices=STRATEGIES,
        default="ddp",
        help="how processes share the work under `torchrun -m rmsnorm.cli train ...`: ddp, each has the whole network; "
        "fsdp, each has a part of its weights (default: %(default)s)",
    )
    add("--tensorboard", action="store_true", help="write TensorBoard logs to OUT/tensorboard")
    arguments.add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Check the arguments, then train."""
    arguments.at_least(args, 0, "seed")
    arguments.at_least(args, 1, "steps", "threads", "checkpoint-every")
    args.task, *others = arguments.tasks_of(args, [args.task] if args.task else [], ("set",))
    if others:
        raise UserError(
            f"TASK must be one task; got {args.task} and {others[0]}. To train several, use rmsnorm compare."
        )
    if args.strategy == "fsdp" and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "--strategy fsdp needs several processes; this is one. Start them: "
            "torchrun --nproc-per-node N -m rmsnorm.cli train ..."
        )
    norms = arguments.norms_of([args.norm], args.task)
    if len(norms) != 1:
        raise UserError(f"--norm must be one normaliser; got {args.norm}. To train several, use rmsnorm compare.")
    recipe = arguments.recipe_of(args, args.task, norms, times=False)
    training = arguments.imported("training", f"tasks.{args.task}", *(["tensorboard"] if args.tensorboard else []))
    return int(training.train(args, recipe, norms[0]))
