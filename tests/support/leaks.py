"""What ``make leaks`` runs: a fuzz and cases of the conformance suite, then LeakSanitizer's search for lost memory.

With PYTHONMALLOC=malloc it sees Python's objects too, also those that only a lost one refers to. It searches while
Python still runs: at its end Python leaves objects that are not lost before. leaks.supp names what is not ours.
"""

import ctypes
import gc
import os
import sys

import fuzz_arguments
import fuzz_session
from conformance import CASES, EAGER, NUMPY_BACKEND
from conforms import conforms

CASES_OF_A_TARGET = 10


def main() -> int:
    try:
        search = ctypes.CDLL(None).__lsan_do_recoverable_leak_check
    except AttributeError:
        sys.exit("leaks.py needs the build with AddressSanitizer: make leaks")
    wrong = fuzz_arguments.fuzz(seed=0, cases=CASES_OF_A_TARGET * len(fuzz_arguments.TARGETS))
    for entry in fuzz_session.read(fuzz_session.CORPUS):
        wrong += filter(None, [fuzz_arguments.drawn(entry.draw, entry.target).run()])
    for case in [case for case in CASES if case.rows <= 36 and case.n <= 129][::10]:
        conforms(EAGER, case)
        if case.casting in NUMPY_BACKEND.castings and case.heads is None:
            conforms(NUMPY_BACKEND, case)
    print(*wrong, f"{len(wrong)} cases wrong", sep="\n")
    gc.collect()
    leaks = search()
    print("memory was lost" if leaks else "no memory was lost", flush=True)
    return bool(wrong or leaks)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no second search at the end
