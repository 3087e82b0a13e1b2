"""Whether this project's kernels served some calls. torch's operations in their place would be as right, and slower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import WarningMessage

from gpu_stages.stage import Setting
from rmsnorm.torch.triton import plans

Plans = dict[Any, Any]


class NotServed(RuntimeError):
    """torch's operations served calls that were meant for a kernel."""


@contextmanager
def fresh_plans(own: Plans) -> Iterator[None]:
    """``own`` in place of the kept plans: a plan holds the choice that it was made with."""
    usual, plans.plans = plans.plans, own
    try:
        yield
    finally:
        plans.plans = usual


def served(setting: Setting, own: Plans) -> dict[str, bool]:
    """For an item's line, whether kernels served all calls that have plans in ``own``; a rehearsal has no kernels."""
    return {} if setting.rehearsal else {"served": bool(own) and None not in own.values()}


def require_served(setting: Setting, own: Plans, warned: Sequence[WarningMessage]) -> None:
    """NotServed, with what was warned, if torch's operations served one."""
    if not served(setting, own).get("served", True):
        said = [str(w.message) for w in warned if str(w.message).startswith("rmsnorm")]
        raise NotServed(said[0] if said else "the kernels declined, and torch's operations served")
