"""``rmsnorm invariance``: Table 1 and §4.2 of the paper, measured."""

import argparse
import json

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import arguments, norms
from rmsnorm_lab.figure_files import check_figure
from rmsnorm_lab.files import named

SIZES = {
    "cases": (32, "cases in the data set"),
    "inputs": (48, "inputs of the layer"),
    "outputs": (64, "outputs of the layer, an even number"),
}
LARGEST = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Apply the six transformations of the paper's Table 1 to random layers (float64, eps as good as 0) and show "
        "which normaliser's output stays the same. Then show what re-scaling does to the gradient of the weights. "
        "The exit status is 1 if a measured cell differs from the paper's."
    )
    parser.add_argument(
        "--norm",
        nargs="+",
        action="extend",
        default=[],
        metavar="NORM",
        help="measure these norms too: FILE.py:NAME or package.module:NAME, classes or functions of the width",
    )
    for name, (default, text) in SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (8 to {LARGEST}; default: %(default)s)"
        )
    add = parser.add_argument
    add(
        "--trials",
        type=int,
        default=10,
        metavar="N",
        help="number of random layers; the worst one decides (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default: %(default)s)")
    add("--plot", type=named, metavar="FILE", help="draw the sizes of the gradients into FILE (.png, .svg or .pdf)")
    add("--json", action="store_true", help="print everything measured as JSON, with the gradients' sweeps")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 if the measured table differs from the paper's."""
    _check(args)
    from rmsnorm_lab.analysis import gradients, gradients_figure, invariance, invariance_tables
    from rmsnorm_lab.analysis.normed_layer import Sizes, without_eps

    own = arguments.own_norms(args.norm)
    sizes = Sizes(args.cases, args.inputs, args.outputs)
    table = invariance.measure(sizes, args.trials, args.seed, own)
    found = gradients.measure(sizes, args.seed, own)
    if args.plot:
        gradients_figure.write(args.plot, found)
    no_eps = without_eps(sizes, own)
    if args.json:
        print(json.dumps(invariance_tables.as_json(vars(args), table, found, no_eps), indent=2, allow_nan=False))
    else:
        invariance_tables.show(args.trials, table, found, no_eps)
    return 0 if invariance.agrees(table) else 1


def _check(args: argparse.Namespace) -> None:
    if built_in := [name for name in args.norm if not arguments.is_own(name)]:
        raise UserError(
            f"--norm must be FILE.py:NAME or package.module:NAME; got {built_in[0]!r}. "
            f"{', '.join(norms.REGISTRY)} are measured anyway."
        )
    for name in SIZES:
        if not 8 <= getattr(args, name) <= LARGEST:
            raise UserError(f"--{name} must be 8 to {LARGEST}; got {getattr(args, name)}. Pass a number in this range.")
    if args.outputs % 2:
        raise UserError(
            f"--outputs must be even, so that GroupNorm has groups; got {args.outputs}. Pass an even number."
        )
    if not 1 <= args.trials <= 1000:
        raise UserError(f"--trials must be 1 to 1000; got {args.trials}. Pass a number in this range.")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 - 1; got {args.seed}. Pass a number in this range.")
    if args.plot:
        check_figure("--plot", args.plot)
