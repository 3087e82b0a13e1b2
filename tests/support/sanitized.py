"""What ``make asan`` runs before the fuzz: the small cases of the conformance suite.

Kernels and nodes are built with AddressSanitizer and UndefinedBehaviorSanitizer, which end the process where they find
something.
"""

from conformance import CASES, EAGER, NUMPY_BACKEND
from conforms import conforms
from rmsnorm import native
from rmsnorm.torch.norm.eager import nodes, why_no_nodes

if __name__ == "__main__":
    print(f"{native.kernels.__file__}; nodes: {why_no_nodes or nodes.__file__}", flush=True)
    small = [case for case in CASES if case.rows <= 36 and case.n <= 129]
    for case in small:
        conforms(EAGER, case)
        if case.casting in NUMPY_BACKEND.castings and case.heads is None:
            conforms(NUMPY_BACKEND, case)
    print(f"{len(small)} cases of the conformance suite", flush=True)
