"""``rmsnorm sample``: text from a trained language model, character by character."""

import argparse
import sys
from itertools import islice

from rmsnorm_lab.experiments import arguments
from rmsnorm_lab.files import bytes_of

NEW_LINE = "\n"
"""The default prompt: the model needs at least one character to continue."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    arguments.add_run(parser)
    add = parser.add_argument
    add("--prompt", default=NEW_LINE, metavar="TEXT", help="text to continue (default: the end of a line)")
    add("--length", type=int, default=500, metavar="N", help="number of characters to write (default: %(default)s)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="1: as the network has learnt; below 1: likelier text; 0: always the likeliest character (default: 1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the random choices (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the prompt and its continuation; return the exit status."""
    arguments.at_least(args, 1, "length")
    arguments.at_least(args, 0, "seed")
    out = bytes_of(sys.stdout, "standard output")
    trained = arguments.loaded(args)
    drawn = trained.sample(args.prompt, args.temperature, args.seed)
    if unknown := "".join(sorted(set(args.prompt) - set(trained.preprocessor))):
        print(f"rmsnorm sample: the network does not know {unknown!r} of the prompt", file=sys.stderr)
    if args.prompt != NEW_LINE:
        out.write(args.prompt.encode(errors="replace"))
    for character in islice(drawn, args.length):
        out.write(character.encode())
        out.flush()
    out.write(b"\n")
    out.flush()
    return 0
