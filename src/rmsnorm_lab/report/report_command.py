"""``rmsnorm report``: the command line."""

import argparse
import sys
from pathlib import Path

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.files import check_output, named, write_whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Write one self-contained HTML page from the records of `rmsnorm compare`: tables next to the paper's figures, "
        "curves, machines and versions. The command measures the paper's Table 1 and trains nothing."
    )
    add = parser.add_argument
    add("folder", nargs="?", type=named, default=Path("runs"), metavar="RUNS", help="folder of records (default: runs)")
    add("--set-aside", action="store_true", help="first move files that are not records of this version to RUNS/aside")
    add("--markdown", action="store_true", help="print the tables as Markdown and write no page")
    add("--out", type=named, metavar="FILE", help="page to write (default: report.html in RUNS)")


def run(args: argparse.Namespace) -> int:
    """Read, draw, write; returns the exit status."""
    from rmsnorm_lab.experiments import store
    from rmsnorm_lab.report.page import render

    out = args.out or args.folder / "report.html"
    if args.set_aside:
        for path in store.set_aside(args.folder):
            print(f"set aside: {path}", file=sys.stderr)
    records = store.load(args.folder)
    if not records:
        raise UserError(f"{str(args.folder)!r} holds no records. Make some: rmsnorm compare language.")
    if args.markdown:
        from rmsnorm_lab.report.markdown import markdown

        print(markdown(records))
        return 0
    check_output("--out", out)
    write_whole(out, render(records).encode(errors="backslashreplace"))  # names of files may be no UTF-8
    if out.is_file():  # else it may be standard output
        print(f"{out}: {len(records)} record{'s' * (len(records) != 1)}")
    return 0
