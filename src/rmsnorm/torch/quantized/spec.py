"""What a quantised norm is asked to do."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from rmsnorm.spec import NormSpec

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest code of each dtype."""


@dataclass(frozen=True, eq=False)
class QuantizedSpec:
    """One checked norm and the dtype of its codes; equal to itself alone, as a NormSpec."""

    norm: NormSpec
    dtype: torch.dtype

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return self.norm.normalized_shape

    @property
    def largest(self) -> float:
        return LARGEST[self.dtype]


quantized_spec = lru_cache(maxsize=4096)(QuantizedSpec)
"""The spec of equal arguments, made once."""
