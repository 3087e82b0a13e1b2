"""What is measured: a case is one operation on one shape, with one dtype and number of threads.

Nothing heavy is imported here: the command line reads its names from this module.
"""

import math
from dataclasses import dataclass, field

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
ROTARY = ("rms_norm_rotary",)
OPS = (*OPERANDS, *RECURRENT, *MODELS, *CHAINS, *ROTARY)
PLAIN = ("rms_norm", "layer_norm", "add_rms_norm")  # what other libraries have too
QUANTIZED = ("rms_norm_quantized", "add_rms_norm_quantized")
FORWARD_ONLY = ("add_rms_norm_inplace", *QUANTIZED)  # without a gradient
HEADS = 16  # in rms_norm_heads; their largest common divisor with the rows
QUERY_HEADS, KEY_HEADS = 32, 8  # of each row in rms_norm_rotary
DIRECTIONS = ("forward", "backward", "forward+backward")
TRAINED = ("forward", "forward+backward")  # what the default set measures
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
USUAL_DTYPES = ("float32", "bfloat16")  # what the default sets measure
DEVICES = ("cpu", "cuda")
EPS = 1e-6  # passed to every provider explicitly: their defaults differ
P = 0.0625  # of pRMSNorm inside recurrent networks


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``p`` is the fraction of each row that the RMS is computed from (1: RMSNorm).

    A recurrent network has ``steps``, ``batch`` and ``features`` (of its input); n is its hidden size, ``rows`` are
    those of all steps, and ``norm`` is the norm inside it. A model has ``rows`` tokens and the hidden size n; with a
    rotary embedding there are ``rows`` tokens, whose heads have n elements.
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
        """``"norm"``, ``"recurrent"``, ``"model"``, ``"chain"`` or ``"rotary"``."""
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
        heads = QUERY_HEADS + KEY_HEADS if self.kind == "rotary" else 1
        return self.rows * heads * self.n * DTYPES[self.dtype]

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
    kinds = {"recurrent": RECURRENT, "model": MODELS, "chain": CHAINS, "rotary": ROTARY}
    return next((kind for kind, ops in kinds.items() if op in ops), "norm")
