"""``rmsnorm partial``: how many elements pRMSNorm needs, in trained networks and in records."""

import argparse
import json

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import arguments
from rmsnorm_lab.figure_files import check_figure
from rmsnorm_lab.files import named

MOST_BATCHES = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "For every norm of trained networks, compare the root mean square of the first k elements with that of all, "
        "and with what k elements chosen at random would give. From records of sweeps of p, show quality against k "
        "for each width."
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="*",
        type=named,
        metavar="RUN",
        help="record written by `rmsnorm train` with layer, rms or prms (a .jsonl file, with its network next to it), "
        "or a folder with one such run",
    )
    add(
        "--quality",
        type=named,
        metavar="FOLDER",
        help="records of `rmsnorm compare TASK --sweep-p`, of one width or several (--set model.width=N)",
    )
    add("--data", type=named, metavar="PATH", help="data that RUN was trained on (default: the task's stand-in)")
    add("--batches", type=int, default=4, metavar="N", help="batches of the training to measure (default: %(default)s)")
    add("--plot", type=named, metavar="FILE", help="draw both into FILE (.png, .svg or .pdf)")
    add("--json", action="store_true", help="print everything measured as JSON, for every power of two below n")


def run(args: argparse.Namespace) -> int:
    """Measure, draw, print; returns the exit status."""
    if not args.runs and args.quality is None:
        raise UserError("RUN or --quality must be given; got neither. Pass a run of rmsnorm train, or a sweep of p.")
    if not 1 <= args.batches <= MOST_BATCHES:
        raise UserError(f"--batches must be 1 to {MOST_BATCHES}; got {args.batches}. Pass a number in this range.")
    if args.data is not None and len(args.runs) != 1:
        raise UserError(f"--data is of one RUN; got {len(args.runs)}. Pass the runs one by one.")
    if args.plot:
        check_figure("--plot", args.plot)
    trained = arguments.imported("trained")
    from rmsnorm_lab.analysis import partial, partial_quality, partial_tables
    from rmsnorm_lab.experiments import store
    from rmsnorm_lab.experiments.comparing import output
    from rmsnorm_lab.experiments.record import runs_of

    sweeps = [] if args.quality is None else partial_quality.sweeps(runs_of(store.load(args.quality)))
    networks = [trained.load(path) for path in args.runs]
    found = [(network, partial.measure(network, args.data, args.batches)) for network in networks]
    if args.plot:
        from rmsnorm_lab.analysis import partial_figure

        partial_figure.write(args.plot, found, sweeps)
    if args.json:
        print(json.dumps(partial_tables.as_json(found, sweeps), indent=2, allow_nan=False))
        return 0
    tables = [partial_tables.estimates(*each) for each in found] + [partial_tables.quality(each) for each in sweeps]
    for table in tables:
        table.show(output())
    return 0
