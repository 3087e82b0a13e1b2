"""``rmsnorm translate``: a filter from lines of one language to lines of the other, in UTF-8."""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import arguments
from rmsnorm_lab.files import bytes_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Read lines of UTF-8 from standard input and write the translation of each to standard output. An empty line "
        "stays empty."
    )
    arguments.add_run(parser)
    parser.add_argument(
        "--batch",
        type=int,
        default=64,
        metavar="N",
        help="number of lines to translate together; 1 answers each line at once, as on a terminal "
        "(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Translate until the input ends; returns the exit status."""
    arguments.at_least(args, 1, "batch")
    lines, out = _lines(bytes_of(sys.stdin, "standard input")), bytes_of(sys.stdout, "standard output")
    trained = arguments.loaded(args)
    trained.translate([])  # a network that cannot is refused before the first line is read
    details = trained.record.identity.source.details
    if details["text"] == "tokenised":
        print("rmsnorm translate: this network was trained on tokenised text; pass tokenised lines", file=sys.stderr)
    size, first = 1 if sys.stdin.isatty() else args.batch, 1
    while batch := list(islice(lines, size)):
        for text in trained.translate(batch, first):
            out.write(text.encode() + b"\n")
        out.flush()
        first += len(batch)
    return 0


def _lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"the lines must be UTF-8; line {number} is not: {error.reason}. Convert the text (iconv -t UTF-8)."
            ) from None
