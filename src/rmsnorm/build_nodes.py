"""``rmsnorm build-nodes``: compile the C++ calls, autograd nodes and operators for the installed torch."""

import argparse
import subprocess
import sys

_CHECK = """
from rmsnorm.torch.norm.eager import why_no_nodes
from rmsnorm.torch.registration import why_no_operators

raise SystemExit(why_no_nodes or why_no_operators)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--verbose", action="store_true", help="show the compiler's commands and output")


def run(args: argparse.Namespace) -> int:
    """Compile, then load the result in a new process; returns the exit status."""
    try:
        from rmsnorm.torch import node_files
        from rmsnorm.torch.norm.eager import nodes
        from rmsnorm.torch.registration import why_no_operators
    except ImportError as error:
        return _fail(f"rmsnorm.torch must be importable: {error}")
    if nodes and not why_no_operators:
        print(f"They are there:\n{nodes.__file__}\n{node_files.find_operators()}")
        return 0
    try:
        print(f"Compiling into {node_files.cached('').parent} (two minutes or so) ...", flush=True)
        paths = node_files.build(verbose=args.verbose)
    except RuntimeError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"the cache must be a folder that you can write ({error}); set XDG_CACHE_HOME to another")
    done = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True, check=False)
    if done.returncode:
        for path in paths:
            path.unlink(missing_ok=True)
        return _fail(f"what was compiled does not load, and is removed: {done.stderr.strip()}")
    print("Done. They serve every process that starts from now on.")
    return 0


def _fail(why: str) -> int:
    print(f"rmsnorm build-nodes: {why}", file=sys.stderr)
    return 1
