"""``rmsnorm evaluate``: the figures of a trained network."""

import argparse
import json
import sys

from rmsnorm_lab.experiments import arguments
from rmsnorm_lab.files import named


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    arguments.add_run(parser)
    add = parser.add_argument
    add(
        "--data",
        type=named,
        metavar="PATH",
        help="data that the network was trained on; the test files may be others (default: the task's stand-in)",
    )
    add(
        "--split",
        choices=("test", "valid"),
        default="test",
        help="part of the data: test, as in the tables; valid, as in the curves (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Load, evaluate, print; returns the exit status."""
    trained = arguments.loaded(args)
    task, figures = trained.evaluate(args.data, args.split)
    same = task.source.sha256 == trained.record.identity.source.sha256
    data = f"stand-in: {task.source.name}" if task.source.stand_in else task.source.name
    if args.json:
        found = {"task": trained.task, "norm": trained.norm, "seed": trained.record.identity.seed}
        found |= {"data": data, "same data": same, "split": args.split, "figures": figures}
        print(json.dumps(found, indent=2))
        return 0
    note = "" if same else " · other data than in training"
    print(f"evaluate {trained.task} · {data} · {trained.norm} · {args.split}{note}", file=sys.stderr)
    for metric in task.metrics:
        if metric.key in figures:  # some are of the test alone
            print(f"{figures[metric.key]:{metric.form}} {metric.label}".replace("\n", " "))
    return 0
