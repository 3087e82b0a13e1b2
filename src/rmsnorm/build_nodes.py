"""``rmsnorm build-nodes``: compile the C++ calls and autograd nodes for the installed torch, into the user's cache."""

import argparse
import subprocess
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--verbose", action="store_true", help="show the compiler's commands and output")


def run(args: argparse.Namespace) -> int:
    """Compile, then load the result in a new process; returns the exit status."""
    try:
        from rmsnorm.torch import node_files
        from rmsnorm.torch.norm.eager import nodes
    except ImportError as error:
        return _fail(f"rmsnorm.torch must be importable: {error}")
    if nodes:
        print(f"They are there: {nodes.__file__}")
        return 0
    print(f"Compiling {node_files.cached()} (about a minute) ...", flush=True)
    try:
        path = node_files.build(verbose=args.verbose)
    except Exception as error:  # the compiler's, ninja's, the file system's
        needs = "a C++20 compiler (g++ 11, clang++ 14 or newer), ninja (pip install ninja) and Python's headers"
        return _fail(f"{error}\nCompiling needs {needs}.")
    check = "from rmsnorm.torch.norm.eager import why_no_nodes; raise SystemExit(why_no_nodes)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    if done.returncode:
        path.unlink(missing_ok=True)
        return _fail(f"the compiled module does not load, and is removed: {done.stderr.strip()}")
    print("Done. They serve every process that starts from now on.")
    return 0


def _fail(why: str) -> int:
    print(f"rmsnorm build-nodes: {why}", file=sys.stderr)
    return 1
