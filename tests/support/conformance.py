"""What every backend must do: the cases, and how a backend runs one.

The cases cover every pair of settings at least once, not the full product; the same ones on every run.
How far a result may be from the oracle is said in tolerances.py.
"""

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NUMPY = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 4096, 5120)
ROWS = (0, 1, 2, 7, 300)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def short(dtype: torch.dtype | None) -> str:
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64", None: "none"}
    return names[dtype]


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as an array, with the same strides; bfloat16 through ml_dtypes."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def from_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype == NUMPY[torch.bfloat16]:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16).view(array.shape)
    return torch.from_numpy(array)


# ---- cases ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    operation: str = "rms_norm"
    dtype: torch.dtype = torch.float32
    n: int = 64
    rows: int = 7
    p: float = 1.0
    weight: torch.dtype | None = torch.float32
    bias: torch.dtype | None = None
    eps: float | None = 1e-5
    zero_centered: bool = False
    casting: str = "once"
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
    split: bool = False  # normalise the last two dimensions, n = a·b
    scale: float = 1.0
    residual: torch.dtype | None = None  # the dtype of the residual stream, for add_rms_norm
    heads: int | None = None  # the rows are (rows / heads, heads), and gain and bias have one of each head

    def __str__(self) -> str:
        plain = Case(self.operation)
        changed = [
            f"{f.name}={short(v) if isinstance(v, torch.dtype | None) else v}"
            for f in fields(self)
            if f.name not in ("operation", "dtype", "n", "rows")
            and (v := getattr(self, f.name)) != getattr(plain, f.name)
        ]
        return "-".join([self.operation, short(self.dtype), f"{self.rows}x{self.n}", *changed])

    @property
    def k(self) -> int:
        return math.ceil(Fraction(str(self.p)) * self.n)

    @property
    def eps_value(self) -> float:
        return torch.finfo(computed_in(self.dtype)).eps if self.eps is None else self.eps

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        a = largest_divisor(self.n)
        return (a, self.n // a) if self.split else (self.n,)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.normalized_shape if self.heads is None else (self.heads, *self.normalized_shape)

    @property
    def out_dtype(self) -> torch.dtype:
        dtype = self.dtype
        if self.casting == "llama" and self.residual in (None, dtype):
            for other in (self.weight, self.bias):
                dtype = dtype if other is None else torch.promote_types(dtype, other)
        return dtype


def largest_divisor(n: int) -> int:
    return max((d for d in range(1, math.isqrt(n) + 1) if n % d == 0), default=1)


def covering(seed: int, **factors: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Settings in which every pair of levels of any two factors occurs: greedy, the same for each seed."""
    rng, names = random.Random(seed), list(factors)
    wanted = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }

    def pairs(chosen: dict[str, int]) -> set[Any]:
        return {((a, chosen[a]), (b, chosen[b])) for a, b in combinations(names, 2)} & wanted

    while wanted:
        (a, i), (b, j) = min(wanted)
        drawn = ({n: rng.randrange(len(factors[n])) for n in names} | {a: i, b: j} for _ in range(40))
        best = max(drawn, key=lambda chosen: len(pairs(chosen)))
        wanted -= pairs(best)
        yield {name: factors[name][level] for name, level in best.items()}


def pair_sample(cases: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Few of the cases, in which every pair of levels of these fields occurs that occurs in one of them: greedy."""
    pairs = {case: {*combinations([(name, getattr(case, name)) for name in names], 2)} for case in cases}
    wanted, chosen = set().union(*pairs.values()), []
    while wanted:
        chosen.append(max(pairs, key=lambda case: len(pairs[case] & wanted)))
        wanted -= pairs[chosen[-1]]
    return chosen


PARAMETER = (None, torch.float32, torch.bfloat16, torch.float64, torch.float16)
COMMON = {
    "n": LENGTHS,
    "rows": ROWS,
    "dtype": DTYPES,
    "weight": PARAMETER,
    "bias": PARAMETER,
    "layout": ("contiguous", "sliced", "transposed", "misaligned", "padded", "permuted", "expanded"),
    "grad_layout": ("contiguous", "transposed", "expanded", "permuted"),
    "split": (False, True),
    "scale": (1.0, 1e-3, 1e3),
}
PARTIAL = {"p": (1.0, 0.5, 0.1, 0.0625, 1e-5), "eps": (None, 1e-5, 0.1, 0.0), "zero_centered": (False, True)}
CASTING = {"casting": ("once", "llama")}

RMS_CASES = [Case("rms_norm", **c) for c in covering(1, **COMMON, **PARTIAL, **CASTING)]
LAYER_CASES = [Case("layer_norm", **c) for c in covering(2, **COMMON, eps=(1e-5, 0.1))]
ADD_CASES = [
    replace(case, residual=case.dtype if case.residual is None else case.residual)
    for c in covering(3, **COMMON, **PARTIAL, **CASTING, residual=(None, torch.float32, torch.bfloat16))
    if (case := Case("add_rms_norm", **c)).dtype != torch.float64 or case.residual is None
]
HEADS = COMMON | {
    "n": (1, 3, 16, 33, 64, 128, 129, 1000),
    "rows": (0, 12, 36, 1200),
    "heads": (1, 3, 12),
    "weight": PARAMETER[1:],
    "layout": ("contiguous", "sliced", "transposed", "misaligned", "padded", "expanded"),
    "grad_layout": ("contiguous", "transposed", "expanded"),
}
HEAD_CASES = [Case("rms_norm", **c) for c in covering(4, **HEADS, **PARTIAL, **CASTING)]
HEAD_CASES += [
    Case("layer_norm", torch.bfloat16, 64, 1200, heads=12, weight=torch.bfloat16, bias=torch.float32),
    Case("add_rms_norm", torch.float32, 33, 36, heads=3, p=0.5, residual=torch.float32, bias=torch.float32),
]
# Of long rows fewer, which also make several partial sums: 18 of 445 cases had seven eighths of all elements.
FEWER = {300: 70, 1200: 120}
CASES = [
    replace(case, rows=FEWER.get(case.rows, case.rows)) if case.n >= 1000 else case
    for case in RMS_CASES + LAYER_CASES + ADD_CASES + HEAD_CASES
]


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (rows, n) in memory as the layout says; `permuted` also makes two dimensions of the rows."""
    rows, n = values.shape
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "permuted":
        a = largest_divisor(rows) if rows else 1
        return values.view(a, rows // a, n).transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded":
        return values[:1].expand(rows, n) if rows else values
    before, after, offset = {"sliced": (n, n, 0), "padded": (0, 1, 0), "misaligned": (0, 0, 1)}.get(layout, (0, 0, 0))
    room = torch.full((rows * (before + n + after) + offset,), float("nan"), dtype=values.dtype)  # who reads it, fails
    view = room[offset:].view(rows, before + n + after)[:, before : before + n]
    view.copy_(values)
    return view


def make_inputs(case: Case) -> SimpleNamespace:
    """Random tensors for a case, the same on every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def outer(values: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
        rows = laid_out(values.to(dtype), layout).unflatten(-1, case.normalized_shape)
        return rows if case.heads is None else rows.unflatten(0, (case.rows // case.heads, case.heads))

    x = outer(draw(case.rows, case.n) * case.scale, case.layout, case.dtype)
    dy = outer(draw(case.rows, case.n), case.grad_layout, case.out_dtype).reshape(x.shape)
    size = math.prod(case.parameter_shape)
    weight = None if case.weight is None else (draw(size) + 0.5).to(case.weight).view(case.parameter_shape)
    bias = None if case.bias is None else draw(size).to(case.bias).view(case.parameter_shape)
    residual = grad_residual = None
    if case.residual is not None:
        residual = outer(draw(case.rows, case.n) * case.scale, case.grad_layout, case.residual).reshape(x.shape)
        grad_residual = outer(draw(case.rows, case.n), "contiguous", case.residual).reshape(x.shape)
    return SimpleNamespace(x=x, dy=dy, weight=weight, bias=bias, residual=residual, grad_residual=grad_residual)


# ---- backends -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    name: str
    run: Callable[[Case, SimpleNamespace], dict[str, torch.Tensor]]
    composite: bool = False
    castings: tuple[str, ...] = ("once", "llama")


def _through_torch(functions: Any, case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in vars(inputs).items()
        if tensor is not None and name in ("x", "weight", "bias", "residual")
    }
    weight, bias = leaves.get("weight"), leaves.get("bias")
    rms = {"bias": bias, "p": case.p, "zero_centered": case.zero_centered, "casting": case.casting}
    if case.operation == "rms_norm":
        outputs = (functions.rms_norm(leaves["x"], case.normalized_shape, weight, case.eps, **rms),)
    elif case.operation == "layer_norm":
        outputs = (functions.layer_norm(leaves["x"], case.normalized_shape, weight, bias, case.eps),)
    else:
        stream = leaves["residual"]
        outputs = functions.add_rms_norm(leaves["x"], stream, case.normalized_shape, weight, case.eps, **rms)
    gradients = (inputs.dy, inputs.grad_residual)[: len(outputs)]
    found = torch.autograd.grad(outputs, list(leaves.values()), gradients)
    results = {"d" + name: gradient for name, gradient in zip(leaves, found, strict=True)}
    return results | dict(zip(("y", "s"), (o.detach() for o in outputs), strict=False))


def _through_numpy(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    import rmsnorm.numpy as functions

    arrays = {name: None if t is None else to_numpy(t) for name, t in vars(inputs).items()}
    x, dy, weight, bias = (arrays[name] for name in ("x", "dy", "weight", "bias"))
    options: dict[str, Any] = {"eps": case.eps, "axis": (-2, -1) if case.split else -1}
    if case.operation != "layer_norm":
        options |= {"p": case.p, "zero_centered": case.zero_centered}
    found: dict[str, Any] = {}
    if case.operation == "add_rms_norm":
        found["y"], found["s"] = functions.add_rms_norm(x, arrays["residual"], weight, bias, **options)
        found["dsum"], found["dweight"], found["dbias"] = functions.add_rms_norm_backward(
            dy, arrays["grad_residual"], found["s"], weight, **options, bias=bias is not None
        )
    else:
        backward = getattr(functions, case.operation + "_backward")
        found["y"] = getattr(functions, case.operation)(x, weight, bias, **options)
        found["dx"], found["dweight"], found["dbias"] = backward(dy, x, weight, **options, bias=bias is not None)
    assert (found["dweight"] is None) == (weight is None)
    assert (found["dbias"] is None) == (bias is None)
    return {name: from_numpy(array) for name, array in found.items() if array is not None}


def _eager(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    import rmsnorm.torch

    return _through_torch(rmsnorm.torch, case, inputs)


def _composite(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    import composites

    return _through_torch(composites, case, inputs)


def _compiled(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    import rmsnorm.torch

    torch._dynamo.reset()
    names = ("rms_norm", "layer_norm", "add_rms_norm")
    compiled = {n: torch.compile(getattr(rmsnorm.torch, n), fullgraph=True, dynamic=True) for n in names}
    return _through_torch(SimpleNamespace(**compiled), case, inputs)


EAGER = Backend("eager", _eager)
COMPOSITE = Backend("composite", _composite, composite=True)
COMPILED = Backend("compiled", _compiled)
NUMPY_BACKEND = Backend("numpy", _through_numpy, castings=("once",))
