"""A fuzz of every public function: a valid call, with one argument changed.

    python tests/support/fuzz_arguments.py [--seconds 60] [--seed 0] [--only NUMBER] [--trace]

A changed argument is of another dtype, rank, extent, layout, device or kind, shares memory with another argument, has
had its memory freed. What is documented must give the right result (fuzz_oracles.py); all else must
raise, and whatever happens nothing but the outputs may be written. The cases follow from the seed; ``make asan`` runs
this under AddressSanitizer, pytest a few seconds of it.
"""

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch

import fuzz_recurrent
import fuzz_targets
from fuzz_mutations import changed
from fuzz_oracles import ARRAYS, FLOATS, UNSURE, Left, Refused, Unknown, addresses, numbers, places
from rmsnorm.torch import functional

TARGETS = fuzz_targets.TARGETS + fuzz_recurrent.TARGETS
RAISED = (TypeError, ValueError, NotImplementedError, RuntimeError)  # what a wrong argument may raise


def memory(arguments: dict[str, Any]) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Every storage that the arguments lie in: its bytes now, those before, and which of them may change (none yet)."""
    found = {}
    for value in arguments.values():
        if isinstance(value, np.ndarray):
            while isinstance(value.base, np.ndarray):
                value = value.base
            if value.dtype != object and value.flags.c_contiguous and value.flags.writeable:
                found[value.__array_interface__["data"][0]] = value.reshape(-1).view(np.uint8)
        elif (
            type(value) in (torch.Tensor, torch.nn.Parameter)
            and value.layout is torch.strided
            and not value._is_zerotensor()
        ):
            storage = value.untyped_storage() if value.device.type == "cpu" and not value.is_quantized else None
            if storage is not None and storage.data_ptr() and storage.nbytes():
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                found[storage.data_ptr()] = whole.numpy()
    return [(b, b.copy(), np.zeros(len(b), bool)) for b in found.values()]


def may_change(kept: list, t: Any) -> None:
    for now, _, allowed in kept:
        start = now.__array_interface__["data"][0]
        if isinstance(t, torch.Tensor) and t.numel() and t.untyped_storage().data_ptr() == start:
            allowed[places(t)] = True
        elif isinstance(t, np.ndarray) and t.size:
            at = addresses(t) - start
            if at.min() >= 0 and at.max() < len(now):
                allowed[at] = True


def near(found: Any, wanted: np.ndarray, arguments: dict[str, Any], error: float) -> str:
    """What is wrong with a result beyond the roundings of the coarsest dtype that takes part."""
    dtypes = [
        t.dtype
        for t in arguments.values()
        if isinstance(t, (torch.Tensor, np.ndarray)) and t.dtype in (*FLOATS, *ARRAYS)
    ]
    names = {str(d).removeprefix("torch.").lstrip("<>=") for d in dtypes}
    coarsest = 2.0**-7 if "bfloat16" in names else 2.0**-10 if names & {"float16", "f2"} else 2.0**-20
    if isinstance(found, torch.Tensor):
        if found.device.type != "cpu" or type(found) not in (torch.Tensor, torch.nn.Parameter):
            return ""
        found = found.detach().to_dense().double().numpy(force=True)
    found = np.asarray(found, np.float64).ravel()
    if found.size != wanted.size:
        return f"{found.size} elements instead of {wanted.size}"
    wanted, largest = wanted.ravel(), float(np.max(np.abs(wanted), initial=0.0))
    inputs = max(
        [
            float(np.abs(numbers(t)).max(initial=0.0))
            for t in arguments.values()
            if isinstance(t, (torch.Tensor, np.ndarray))
        ],
        default=1.0,
    )
    with np.errstate(all="ignore"):
        off = np.abs(found - wanted)
        bad = ~(off <= error * largest + 40 * coarsest * (largest + min(inputs, 1e3))) & ~(
            (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        )
    if not bad.any() or not np.isfinite(wanted).all():
        return ""
    i = int(np.argmax(bad))
    return f"element {i} is {found[i]!r} instead of {wanted[i]!r}"


def run_case(number: int, seed: int) -> tuple[str, str]:
    """(what was done, what is wrong with it or "")."""
    r = random.Random(f"{seed}/{number}")
    target = TARGETS[number % len(TARGETS)]
    arguments = target.arguments(r)
    name, how, value = changed(r, arguments)
    arguments[name] = value
    nodes, functional.nodes = functional.nodes, functional.nodes if r.random() < 0.7 else None
    said = f"case {number} of seed {seed}: {target.name}({name}: {how} -> {shown(value)})"
    if TRACE:
        print(said, {n: shown(v) for n, v in arguments.items()}, flush=True)
    UNSURE.clear()
    try:
        expected = target.oracle(**arguments)
    except Refused:
        expected = None
    except Left:
        return said, ""
    except Unknown:
        expected = []
        UNSURE.append("unknown")
    except Exception as error:
        return said, f"the oracle failed: {type(error).__name__}: {error}"
    kept = memory(arguments)
    try:
        found = target.call(**arguments)
    except RAISED as error:
        found = None
        wrong = "please report this" in str(error) or isinstance(error, RecursionError)
        if wrong or (expected is not None and not UNSURE):
            return said, f"{type(error).__name__}: {str(error)[:200]}"
    except Exception as error:
        found = None
        if isinstance(error, SystemError) or "unknown" not in UNSURE:
            return said, f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if expected is None:
            return said, "was served"
        found = found if isinstance(found, (list, tuple)) else [found]
        for t, wanted in zip(found, expected, strict=False):
            if t is not None and wanted is not None and (wrong := near(t, wanted, arguments, target.error)):
                return said, wrong
        for written in target.written:
            may_change(kept, arguments.get(written))
    finally:
        functional.nodes = nodes
    for now, before, allowed in kept:
        if ((now != before) & ~allowed).any():
            return said, f"wrote {int(((now != before) & ~allowed).sum())} bytes that are no output's"
    return said, ""


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        kind = "" if value.layout is torch.strided and value.device.type == "cpu" else f" {value.layout} {value.device}"
        return f"{type(value).__name__}{tuple(value.shape)} {value.dtype}{kind}"
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__}{value.shape} {value.dtype}"
    return repr(value)[:60]


TRACE = False


def fuzz(seed: int, cases: int = 1 << 60, seconds: float = float("inf"), first: int = 0) -> tuple[int, list[str]]:
    """Runs cases until their number or the time is reached; returns how many, and what was wrong."""
    end, wrong, number = time.monotonic() + seconds, [], first
    threads = torch.get_num_threads()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        while number < first + cases and time.monotonic() < end:
            said, failure = run_case(number, seed)
            if failure:
                wrong.append(f"{said}\n    {failure}")
            number += 1
    torch.set_num_threads(threads)
    return number - first, wrong


def main() -> int:
    global TRACE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, by its number")
    parser.add_argument("--trace", action="store_true", help="say each case before it runs")
    given = parser.parse_args()
    TRACE = given.trace
    one = {"first": given.only, "cases": 1} if given.only is not None else {"seconds": given.seconds}
    count, wrong = fuzz(given.seed, **one)
    for line in wrong:
        print(line)
    print(f"{count} cases, {len(wrong)} wrong", dict(Counter(w.split("(")[0].split(": ")[1] for w in wrong)))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
