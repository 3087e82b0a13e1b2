"""A fuzz of every public function: a valid call, with one argument changed.

A changed argument is of another dtype, rank, extent, layout, device or kind, shares memory with another argument, has
had its memory freed. What is documented must give the right result (fuzz_oracles.py); all else must
raise, and whatever happens nothing but the outputs may be written. A case follows from a text of the form SEED/NUMBER.
fuzz_session.py runs cases in a process of their own; pytest runs a few seconds of them.
"""

import random
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import fuzz_recurrent
import fuzz_rotary
import fuzz_targets
from fuzz_mutations import changed
from fuzz_reading import ARRAYS, FLOATS, UNSURE, Left, Refused, Unknown, addresses, is_freed, numbers, places
from rmsnorm.torch import functional

TARGETS = fuzz_targets.TARGETS + fuzz_recurrent.TARGETS + fuzz_rotary.TARGETS
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
    dtypes = [t.dtype for t in arguments.values() if isinstance(t, torch.Tensor)]
    dtypes += [t.dtype.newbyteorder("=") for t in arguments.values() if isinstance(t, np.ndarray)]
    names = {str(d).removeprefix("torch.") for d in dtypes if d in (*FLOATS, *ARRAYS)}
    coarsest = 2.0**-7 if "bfloat16" in names else 2.0**-10 if "float16" in names else 2.0**-20
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


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Case:
    target: fuzz_targets.Target
    words: str  # the call, with the changed argument first
    arguments: dict[str, Any]
    with_nodes: bool

    def run(self) -> str:
        """What is wrong with the call, or ""."""
        nodes, threads = functional.nodes, torch.get_num_threads()
        functional.nodes = nodes if self.with_nodes else None
        try:
            with quiet():
                return call(self.target, self.arguments)
        finally:
            functional.nodes = nodes
            torch.set_num_threads(threads)


def drawn(draw: str, target: str | None = None) -> Case:
    """The case that follows from SEED/NUMBER. The number also chooses a target, if none is named."""
    r = random.Random(draw)
    torch.manual_seed(zlib.crc32(draw.encode()))  # for what changes an argument to torch.randn
    number = int(draw.rpartition("/")[2])
    chosen = TARGETS[number % len(TARGETS)] if target is None else {t.name: t for t in TARGETS}[target]
    with quiet():
        arguments = chosen.arguments(r)
        name, how, value = changed(r, arguments)
    arguments[name] = value
    with_nodes = r.random() < 0.7
    others = ", ".join(f"{n}={shown(v)}" for n, v in arguments.items() if n != name)
    words = f"{chosen.name}({name}: {how} -> {shown(value)}; {others})" + ("" if with_nodes else " without C++ nodes")
    return Case(chosen, words, arguments, with_nodes)


def call(target: fuzz_targets.Target, arguments: dict[str, Any]) -> str:
    """Calls the function; what is wrong, or ""."""
    UNSURE.clear()
    try:
        expected = target.oracle(**arguments)
    except Refused:
        expected = None
    except Left:
        return ""
    except Unknown:
        expected = []
        UNSURE.append("unknown")
    except Exception as error:
        return f"the oracle failed: {type(error).__name__}: {error}"
    kept = memory(arguments)
    try:
        found = target.call(**arguments)
    except RAISED as error:
        found = None
        wrong = "please report this" in str(error) or isinstance(error, RecursionError)
        if wrong or (expected is not None and not UNSURE):
            return f"{type(error).__name__}: {str(error)[:200]}"
    except Exception as error:
        found = None
        if isinstance(error, SystemError) or "unknown" not in UNSURE:
            return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if expected is None:
            return "was served"
        found = found if isinstance(found, (list, tuple)) else [found]
        for t, wanted in zip(found, expected, strict=False):
            if t is not None and wanted is not None and (wrong := near(t, wanted, arguments, target.error)):
                return wrong
        for written in target.written:
            may_change(kept, arguments.get(written))
    for now, before, allowed in kept:
        if ((now != before) & ~allowed).any():
            return f"wrote {int(((now != before) & ~allowed).sum())} bytes that are no output's"
    return ""


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and value.device.type == "cpu"
        says = "" if plain else f" {value.layout} {value.device}"
        if type(value) in (torch.Tensor, torch.nn.Parameter) and plain:
            zero = value._is_zerotensor()
            says += "" if zero or value.is_contiguous() else f" strides {value.stride()}"
            traits = {"zero without memory": zero, "freed": not zero and not value.is_quantized and is_freed(value)}
            traits |= {"negative": value.is_neg(), "inference": value.is_inference(), "grad": value.requires_grad}
            says += "".join(f" {trait}" for trait, has in traits.items() if has)
        return f"{type(value).__name__}{tuple(value.shape)} {value.dtype}{says}"
    if isinstance(value, np.ndarray):
        strides = "" if value.flags.c_contiguous else f" strides {value.strides}"
        return f"{type(value).__name__}{value.shape} {value.dtype}{strides}"
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))[:60]


def fuzz(seed: int, cases: int) -> list[str]:
    """What was wrong with the seed's first cases, in this process."""
    every = (drawn(f"{seed}/{number}") for number in range(cases))
    return [f"{case.words}\n    {failure}" for case in every if (failure := case.run())]
