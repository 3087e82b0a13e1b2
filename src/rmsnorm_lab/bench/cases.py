"""What is measured: a case is one operation on one shape, with one dtype and number of threads.

Nothing heavy is imported here: the command line reads its names from this module.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.plain import WRITTEN
from rmsnorm_lab.table import count

# Each operation and its inputs, in order.
OPERANDS = {
    "rms_norm": ("x", "weight"),
    "layer_norm": ("x", "weight", "bias"),
    "add_rms_norm": ("x", "residual", "weight"),
    "add_rms_norm_inplace": ("x", "residual", "weight"),
    "rms_norm_heads": ("x", "weight"),
    "rms_norm_gated": ("x", "gate", "weight"),
    "rms_norm_quantized": ("x", "weight"),
    "add_rms_norm_quantized": ("x", "residual", "weight"),
}
RECURRENT = ("gru", "lstm")
MODELS = ("llama",)
CHAINS = ("compiled_chain",)
OPS = (*OPERANDS, *RECURRENT, *MODELS, *CHAINS)
PLAIN = ("rms_norm", "layer_norm", "add_rms_norm")  # what other libraries have too
QUANTIZED = ("rms_norm_quantized", "add_rms_norm_quantized")
FORWARD_ONLY = ("add_rms_norm_inplace", *QUANTIZED)  # without a gradient
HEADS = 16  # in rms_norm_heads; their largest common divisor with the rows
DIRECTIONS = ("forward", "backward", "forward+backward")
TRAINED = ("forward", "forward+backward")  # what the default set measures
DTYPES = {"float32": 4, "bfloat16": 2}
DEVICES = ("cpu", "cuda")
EPS = 1e-6  # passed to every provider explicitly: their defaults differ
P = 0.0625  # of pRMSNorm inside recurrent networks


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``p`` is the fraction of each row that the RMS is computed from (1: RMSNorm).

    A recurrent network has ``steps``, ``batch`` and ``features`` (of its input); n is its hidden size, ``rows`` are
    those of all steps, and ``norm`` is the norm inside it. A model has ``rows`` tokens and the hidden size n.
    """

    op: str
    direction: str
    dtype: str
    rows: int
    n: int
    p: float = 1.0
    threads: int = 1
    device: str = "cpu"
    steps: int = field(default=0, metadata=WRITTEN)
    batch: int = field(default=0, metadata=WRITTEN)
    features: int = field(default=0, metadata=WRITTEN)
    norm: str = field(default="", metadata=WRITTEN)

    @property
    def kind(self) -> str:
        """``"norm"``, ``"recurrent"``, ``"model"`` or ``"chain"``."""
        return kind(self.op)

    @property
    def recurrent(self) -> bool:
        return self.kind == "recurrent"

    @property
    def backward(self) -> bool:
        """Whether gradients are taken."""
        return self.direction != "forward"

    @property
    def alone(self) -> bool:
        """Whether only the gradients are timed; the forward pass runs before."""
        return self.direction == "backward"

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return self.rows * self.n * DTYPES[self.dtype]

    @property
    def traffic(self) -> tuple[tuple[str, ...], ...]:
        """For each array of the input's size that must be written, the arrays that must be read; gains are negligible.

        The fused addition also reads the residual and writes the sum. Its backward reads the sum (here x, of the same
        size) and two gradients, and writes one, which is the gradient of both summands. The gated norm also reads its
        gate and writes the gate's gradient.
        """
        forward: tuple[tuple[str, ...], ...] = (("x",),)
        backward: tuple[tuple[str, ...], ...] = (("dy", "x"),)
        if self.adds:  # four arrays each way; a copy of two moves as many bytes
            forward, backward = (("x",), ("residual",)), (("x",), ("dy",))
            if self.direction == "forward+backward":
                return (("x",), ("residual", "x"), ("dy", "dh"))
        elif self.op == "rms_norm_gated":
            forward, backward = (("x", "gate"),), (("dy", "x"), ("gate",))
        return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[self.direction]

    @property
    def bytes_moved(self) -> int:
        """What every implementation must move: each array once; codes have one byte per element."""
        if self.quantized:
            return self.bytes * (3 if self.adds else 1) + self.rows * self.n
        return self.bytes * sum(len(reads) + 1 for reads in self.traffic)

    @property
    def work(self) -> tuple[float, str]:
        """What a rate counts, and its unit: bytes moved, a recurrent network's operations in products, or tokens."""
        if self.kind in ("model", "chain"):
            return self.rows * 1e9, "tokens/s"
        if not self.recurrent:
            return self.bytes_moved, "GB/s"
        gates = {"gru": 3, "lstm": 4}[self.op]
        products = 2.0 * self.rows * gates * self.n * (self.features + self.n)
        return products * (3 if self.backward else 1), "GFLOP/s"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of a provider's outputs, in order: "h" is the sum of input and residual."""
        if self.quantized:
            return ("q", "scale", "h") if self.adds else ("q", "scale")
        names: tuple[str, ...] = () if self.alone else ("y", "h") if self.adds else ("y",)
        return names + tuple(f"d{name}" for name in self.operands) if self.backward else names

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the inputs, which are the leaves of a backward pass, in the order of the functions' arguments."""
        return OPERANDS[self.op]

    @property
    def adds(self) -> bool:
        return self.op.startswith("add_")

    @property
    def quantized(self) -> bool:
        return self.op in QUANTIZED

    @property
    def inplace(self) -> bool:
        return self.op.endswith("_inplace")

    @property
    def heads(self) -> int | None:
        """The number of gains, one for each head; None: one gain for all rows."""
        return math.gcd(self.rows, HEADS) if self.op == "rms_norm_heads" else None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of x and all arrays of its size: (rows, n), or with heads (tokens, heads, n)."""
        return (self.rows, self.n) if self.heads is None else (self.rows // self.heads, self.heads, self.n)

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """The shape of gain and bias."""
        return (self.n,) if self.heads is None else (self.heads, self.n)

    @property
    def shape(self) -> str:
        if self.recurrent:
            return f"{self.steps}x{self.batch}x{self.features}x{self.n}"
        return f"{self.rows}x{self.n}"

    @property
    def operation(self) -> str:
        if self.recurrent:
            return f"{self.op} {self.norm}".rstrip()
        return self.op if self.p == 1 else f"{self.op} p={self.p:g}"

    @property
    def group(self) -> str:
        """Everything except the shape, in words: the heading of a table."""
        where = count(self.threads, "thread") if self.device == "cpu" else self.device
        return f"{self.operation}, {self.direction}, {self.dtype}, {where}"

    def __str__(self) -> str:
        return f"{self.group}, {self.shape}"


def kind(op: str) -> str:
    return "recurrent" if op in RECURRENT else "model" if op in MODELS else "chain" if op in CHAINS else "norm"


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
    both, dtypes, every = TRAINED, tuple(DTYPES), [threads]
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
        for dtype in DTYPES
        for t in dict.fromkeys((1, threads))
        for direction, rows in (("forward", 512), ("forward", 1), ("forward+backward", 512))
    ]


def chain_cases(threads: int, quick: bool) -> list[Case]:
    """Compiled chains, from one short row to 64 MiB. Only if --op names them."""
    if quick:
        return [Case("compiled_chain", direction, "float32", 4, 64, threads=threads) for direction in TRAINED]
    shapes = [(1, 256), (1, 1024), (4, 1024), (16, 1024), (64, 1024), (256, 1024), (1024, 1024), (4096, 4096)]
    return _product(op=CHAINS, direction=TRAINED, dtype=tuple(DTYPES), threads=[threads], shape=shapes)


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
