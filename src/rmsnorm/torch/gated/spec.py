"""What a gated norm is asked to do.

A group is a row of its own whose gain is that of a head: (…, n) is read as (…, groups, n / groups), and everything that
the plain norm can do with heads serves here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from rmsnorm.spec import NormSpec, check_groups, check_norm_first, check_spec, norm_spec


@dataclass(frozen=True, eq=False)
class GatedSpec:
    """One checked gated norm; like :class:`~rmsnorm.spec.NormSpec` it is equal to itself alone."""

    normalized_shape: tuple[int, ...]
    groups: int
    norm_first: bool
    group: NormSpec
    """The norm of one group."""

    def grouped(self, t: Tensor) -> Tensor:
        """(…, *normalized_shape) as (…, groups, n / groups)."""
        return t.reshape(*t.shape[: t.dim() - len(self.normalized_shape)], self.groups, self.group.n)


def check_gated_spec(
    normalized_shape: int | Sequence[int], eps: float | None, norm_before_gate: bool, groups: int, p: float
) -> GatedSpec:
    """The arguments as a :class:`GatedSpec`, or the error that says what is wrong with them."""
    whole = check_spec("rms", normalized_shape, eps, p)
    groups = check_groups(groups, whole.n)
    group = check_spec("rms", whole.n // groups, eps, p)
    return GatedSpec(whole.normalized_shape, groups, check_norm_first(norm_before_gate), group)


@lru_cache(maxsize=4096)
def _kept(whole: NormSpec, norm_first: bool, groups: int) -> GatedSpec:
    return check_gated_spec(whole.normalized_shape, whole.eps, norm_first, groups, whole.p)


def gated_spec(
    normalized_shape: int | Sequence[int], eps: float | None, norm_before_gate: bool, groups: int, p: float
) -> GatedSpec:
    """:func:`check_gated_spec` of equal arguments once."""
    if type(norm_before_gate) is not bool or type(groups) is not int:
        return check_gated_spec(normalized_shape, eps, norm_before_gate, groups, p)
    return _kept(norm_spec("rms", normalized_shape, eps, p), norm_before_gate, groups)
