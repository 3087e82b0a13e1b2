"""Which cases are measured: the sets that the commands have, and what the command line's flags choose of them.

Nothing heavy is imported here: the command line reads its flags before it imports torch.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rmsnorm_lab.bench.cases import (
    CHAINS,
    DIRECTIONS,
    FORWARD_ONLY,
    RECURRENT,
    ROTARY,
    TRAINED,
    USUAL_DTYPES,
    Case,
    kind,
)
from rmsnorm_lab.errors import UserError


def _product(**choices: Sequence[Any]) -> list[Case]:
    shapes = choices.pop("shape")
    return [
        Case(rows=rows, n=n, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
        for rows, n in shapes
    ]


BATCHES = [(1, 1024), (32, 1024), (256, 1024), (4096, 1024), (2048, 4096), (16384, 4096)]
ODD = [(256, 1023), (256, 5121)]
QK_NORM = [(100_000, 64), (100_000, 128)]  # rows are tokens × heads


# Steps, batch, features, hidden: two sizes of the paper's tasks, and a small one.
NETWORKS = [(30, 64, 512, 512), (50, 128, 300, 1024), (30, 16, 256, 256)]
ONE_BY_ONE = (100, 1, 512, 512)


def _recurrent(networks: Iterable[tuple[int, int, int, int]], direction: str, threads: int) -> list[Case]:
    return [
        Case(op, direction, "float32", t * b, h, threads=threads, steps=t, batch=b, features=i)
        for t, b, i, h in networks
        for op in RECURRENT
    ]


def default_cases(threads: int) -> list[Case]:
    """The default set: RMSNorm on every shape with all ``threads``, the other operations on a few shapes."""
    both, dtypes, every = TRAINED, USUAL_DTYPES, [threads]
    mid = [(32, 1024), (256, 1024), (4096, 1024), (2048, 4096)]
    cases = [
        *_product(op=["rms_norm"], direction=both, dtype=dtypes, threads=every, shape=[*BATCHES, *ODD, *QK_NORM]),
        *_product(op=["rms_norm"], direction=both, dtype=["float32"], threads=[1], shape=[*BATCHES[:4], QK_NORM[1]]),
        *_product(op=["rms_norm"], direction=both, dtype=dtypes, p=[0.0625], threads=every, shape=mid),
        *_product(op=["add_rms_norm"], direction=both, dtype=dtypes, threads=every, shape=mid),
        *_product(op=["layer_norm"], direction=both, dtype=dtypes, threads=every, shape=BATCHES[2:4]),
        *_product(op=["rms_norm_gated"], direction=both, dtype=dtypes, threads=every, shape=BATCHES[2:4]),
        *_product(op=["rms_norm_heads"], direction=both, dtype=dtypes, threads=every, shape=QK_NORM[1:]),
        *_product(op=FORWARD_ONLY, direction=["forward"], dtype=dtypes, threads=every, shape=BATCHES[2:4]),
        *(c for t in (threads, 1) for c in _recurrent(NETWORKS, "forward+backward", t)),
        *(c for t in (threads, 1) for c in _recurrent([ONE_BY_ONE], "forward", t)),
    ]
    return list(dict.fromkeys(cases))


def quick_cases(threads: int) -> list[Case]:
    """A check of about a minute: every operation and kind of provider once. Its times mean nothing."""
    every, shape = [threads], [(64, 1023)]
    f32, bf16 = ["float32"], ["bfloat16"]
    return [
        *_product(op=["rms_norm"], direction=TRAINED, dtype=f32 + bf16, threads=every, shape=shape),
        *_product(op=["rms_norm"], direction=TRAINED, dtype=f32, p=[0.0625], threads=every, shape=shape),
        *_product(op=["layer_norm"], direction=TRAINED, dtype=f32, threads=every, shape=shape),
        *_product(op=["add_rms_norm"], direction=TRAINED, dtype=f32, threads=every, shape=shape),
        *_product(op=["rms_norm_gated", "rms_norm_heads"], direction=TRAINED, dtype=f32, threads=every, shape=shape),
        *_product(op=FORWARD_ONLY, direction=["forward"], dtype=f32, threads=every, shape=shape),
        *(case for direction in TRAINED for case in _recurrent([(5, 3, 7, 33)], direction, threads)),
    ]


def model_cases(threads: int, quick: bool) -> list[Case]:
    """Whole models: a prefill, one token and a training step, of three hidden sizes. Only if --op names them."""
    if quick:
        return [Case("llama", direction, "float32", 8, 64, threads=threads) for direction in TRAINED]
    return [
        Case("llama", direction, dtype, rows, n, threads=t)
        for n in (256, 1024, 2048)
        for dtype in USUAL_DTYPES
        for t in dict.fromkeys((1, threads))
        for direction, rows in (("forward", 512), ("forward", 1), ("forward+backward", 512))
    ]


def chain_cases(threads: int, quick: bool) -> list[Case]:
    """Compiled chains, from one short row to 64 MiB. Only if --op names them."""
    if quick:
        return [Case("compiled_chain", direction, "float32", 4, 64, threads=threads) for direction in TRAINED]
    shapes = [(1, 256), (1, 1024), (4, 1024), (16, 1024), (64, 1024), (256, 1024), (1024, 1024), (4096, 4096)]
    return _product(op=CHAINS, direction=TRAINED, dtype=USUAL_DTYPES, threads=[threads], shape=shapes)


def rotary_cases(threads: int, quick: bool) -> list[Case]:
    """One token, and prefills and training steps of 512 and 2048. Only if --op names them."""
    every = [threads]
    if quick:
        return _product(op=ROTARY, direction=TRAINED, dtype=["float32"], threads=every, shape=[(3, 16)])
    return [
        *_product(op=ROTARY, direction=["forward"], dtype=USUAL_DTYPES, threads=every, shape=[(1, 128)]),
        *_product(op=ROTARY, direction=TRAINED, dtype=USUAL_DTYPES, threads=every, shape=[(512, 128), (2048, 128)]),
    ]


def cuda_cases() -> list[Case]:
    """The set for a CUDA device: 128 MiB of bfloat16 at each length, and three small cases for the host's overhead."""
    both, bf16, one, cuda = DIRECTIONS, ["bfloat16"], [1], ["cuda"]
    large = [((1 << 26) // n, n) for n in (64, 128, 256, 1024, 2048, 4096, 8192, 16384)]
    ends, small = [large[3], large[5], large[7]], [(1, 4096), (64, 4096), (4096, 128)]
    # Models' widths that are no powers of two, and two that no model has.
    odd = [((1 << 26) // n, n) for n in (1000, 1023, 2880, 5120, 7168, 12288)]
    longest = [((1 << 26) // n, n) for n in (32768, 131072)]
    return [
        *_product(op=["rms_norm"], direction=both, dtype=bf16, threads=one, device=cuda, shape=large + odd + longest),
        *_product(op=["rms_norm"], direction=both, dtype=bf16, threads=one, device=cuda, shape=small),
        *_product(op=["add_rms_norm"], direction=both, dtype=bf16, threads=one, device=cuda, shape=large[3:]),
        *_product(op=["layer_norm"], direction=both, dtype=bf16, threads=one, device=cuda, shape=ends),
        *_product(
            op=["rms_norm"], direction=both, dtype=bf16, threads=one, device=cuda, p=[0.0625], shape=[*ends, *longest]
        ),
        *_product(op=["rms_norm"], direction=both, dtype=["float32"], threads=one, device=cuda, shape=ends[:2]),
    ]


def choose(cases: Iterable[Case], choices: dict[str, list[dict[str, Any]]]) -> list[Case]:
    """The cases with the fields that the user chose, each case once.

    ``choices`` maps a flag to its values, each of which sets fields: {"shape": [{"rows": 7, "n": 64}]}.
    """
    changed = [
        replace(case, **{field: value for change in changes for field, value in change.items()})
        for case in cases
        for changes in itertools.product(*choices.values())
        if all(_applies(case, change) for change in changes)
    ]
    if not changed:
        raise UserError(
            f"--shape must be STEPSxBATCHxFEATURESxHIDDEN for {' and '.join(RECURRENT)}, which have no --p and no "
            "--direction backward, and ROWSxN for the norms. Choose another --op or --shape."
        )
    # LayerNorm has no partial statistic, and some operations have no gradient. Such cases arise when only one of the
    # two flags was given; they are left out.
    chosen = [case for case in dict.fromkeys(changed) if case.op != "layer_norm" or case.p == 1]
    if not chosen:
        raise UserError("--p must be 1 for layer_norm, which has no partial statistic. Choose another --op, or --p 1.")
    chosen = [case for case in chosen if not (case.backward and case.op in FORWARD_ONLY)]
    if not chosen:
        raise UserError(f"--direction must be forward for {' and '.join(FORWARD_ONLY)}, which have no gradient.")
    chosen = [case for case in chosen if not (case.kind == "model" and case.backward and case.rows == 1)]
    if not chosen:
        raise UserError("--shape must have at least 2 tokens for a training step, whose loss is of the next token.")
    return chosen


def _applies(case: Case, change: dict[str, Any]) -> bool:
    """Whether a case can take a flag's value: norms, recurrent networks and models have different ones."""
    if "op" in change:
        return kind(change["op"]) == case.kind
    if "rows" in change:
        return ("steps" in change) == case.recurrent
    return not (case.kind != "norm" and (change.get("p", 1) != 1 or change.get("direction") == "backward"))


def keep(cases: Iterable[Case], choices: dict[str, list[dict[str, Any]]]) -> list[Case]:
    """The recorded cases that match one value of every flag."""

    def agrees(case: Case, change: dict[str, Any]) -> bool:
        return all(getattr(case, field) == value for field, value in change.items())

    kept = [case for case in cases if all(any(agrees(case, c) for c in changes) for changes in choices.values())]
    if not kept:
        raise UserError("at least one recorded case must match all flags; no recorded case does. Leave some flags out.")
    return kept


def named(what: str, value: str, known: Iterable[str]) -> str:
    """``value`` if it is a known name."""
    known = list(known)
    if value not in known:
        raise UserError(f"--{what} must be one of {', '.join(known)}; got {value!r}.")
    return value


def shape(text: str) -> dict[str, Any]:
    """``256x1024``: rows × n; ``30x64x512x512``: steps × batch × features × hidden."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (2, 4) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            "--shape must be ROWSxN with two positive numbers, such as 256x1024, or for recurrent networks "
            f"STEPSxBATCHxFEATURESxHIDDEN, such as 30x64x512x512; got {text!r}."
        )
    numbers = [int(part) for part in parts]
    if len(numbers) == 2:
        return dict(zip(("rows", "n"), numbers, strict=True))
    steps, batch, features, hidden = numbers
    return {"rows": steps * batch, "n": hidden, "steps": steps, "batch": batch, "features": features}


def fraction(text: str) -> dict[str, Any]:
    try:
        p = float(text)
    except ValueError:
        p = float("nan")
    if not 0 < p <= 1:
        raise UserError(f"--p must be a fraction with 0 < p <= 1, such as 0.0625; got {text!r}.")
    return {"p": p}


def threads(text: str, usable: int) -> dict[str, Any]:
    number = usable if text == "all" else int(text) if text.isdecimal() else 0
    if not 1 <= number <= usable:
        raise UserError(f"--threads must be from 1 to {usable}, what this process may use, or all; got {text!r}.")
    return {"threads": number}
