"""Rows of many equal numbers: the rounding errors of their sums do not cancel, as those of random numbers do."""

from types import SimpleNamespace

import torch

from conformance import Backend, Case, make_inputs
from tolerances import check, expected, half_ulp

LENGTHS = (1000, 2048, 5120, 20011)


def rows(case: Case) -> dict[str, torch.Tensor]:
    """By name, two rows each: of the case's length and dtype."""
    info, generator = torch.finfo(case.dtype), torch.Generator().manual_seed(case.n)
    n, place = case.n, torch.arange(case.n)
    level = torch.randn(2, 1, generator=generator, dtype=torch.float64)
    drawn = torch.randn(2, n, generator=generator, dtype=torch.float64)
    some = torch.rand(2, n, generator=generator) < 0.5
    offset = min(1e8, info.max / 4)
    made = {
        "equal": level.expand(2, n),
        "equal but one": level + (place == n // 3),
        "equal but a large one": level * torch.where(place == 0, 1e3, 1.0),
        "the norm decided by one": torch.where(place == n - 1, info.max / 2, drawn),
        "after relu": drawn.relu(),
        "zero in the second half": drawn * (place < n // 2),
        "two clusters": level + some,
        "two clusters in order": level + (place < n // 3),
        "two clusters far from 0": offset * (1 + 8 * half_ulp(case.dtype) * some),
        "far from 0": offset * (1 + 8 * half_ulp(case.dtype) * drawn),
        "alternating": level * (1 - 2 * (place % 2)),
        "minus one, zero or one": level * (drawn > 0.5) - level * (drawn < -0.5),
        "subnormal": info.smallest_normal * level * some,
        "near overflow": info.max * torch.where(some, 0.9, level / 9),
    }
    return {name: row.double().to(case.dtype) for name, row in made.items()}


def conforms(backend: Backend, operation: str, n: int, dtype: torch.dtype) -> None:
    """The norm of each, forward and backward."""
    case = Case(operation, dtype, n, rows=2, weight=dtype, bias=dtype)
    drawn = make_inputs(case)
    for name, x in rows(case).items():
        inputs = SimpleNamespace(**{**vars(drawn), "x": x})
        found = backend.run(case, inputs)
        for result, interval in expected(case, inputs, dependent=True).items():
            check(found[result], interval, f"{result} of rows {name}")
