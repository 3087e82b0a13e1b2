"""What ``make asan`` runs: the small cases of the conformance suite, then fuzz_arguments.py.

Kernels and nodes are built with AddressSanitizer and UndefinedBehaviorSanitizer, which end the process where they find
something.

    python tests/support/sanitized.py [--seconds 60] [--seed 0]
"""

import argparse
import sys

import fuzz_arguments
from conformance import CASES, EAGER, NUMPY_BACKEND
from conforms import conforms
from rmsnorm import native
from rmsnorm.torch.norm.eager import nodes, why_no_nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{native.kernels.__file__}; nodes: {why_no_nodes or nodes.__file__}", flush=True)
    small = [case for case in CASES if case.rows <= 36 and case.n <= 129]
    for case in small:
        conforms(EAGER, case)
        if case.casting in NUMPY_BACKEND.castings and case.heads is None:
            conforms(NUMPY_BACKEND, case)
    print(f"{len(small)} cases of the conformance suite", flush=True)
    count, wrong = fuzz_arguments.fuzz(given.seed, seconds=given.seconds)
    print(*wrong, f"{count} cases of the fuzz, {len(wrong)} wrong", sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
