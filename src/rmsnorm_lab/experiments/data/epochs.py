"""The examples of a step, as a pure function of step and seed. Each epoch has a random order of its own."""

from functools import lru_cache
from typing import Any

import numpy as np

from rmsnorm_lab.errors import UserError


def numpy_generator(*key: int) -> np.random.Generator:
    """The random generator of a key: (seed, epoch) or (seed, step, …)."""
    return np.random.Generator(np.random.PCG64(key))


def chosen(step: int, seed: int, examples: int, batch: int) -> tuple[np.ndarray[Any, Any], int]:
    """The indices of a step's examples, and its epoch. An incomplete last batch of an epoch is dropped."""
    epoch, place = divmod(step, examples // batch)
    return _order(examples, seed, epoch)[place * batch : (place + 1) * batch], epoch


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return numpy_generator(seed, epoch).permutation(examples)


def check_enough(examples: int, batch: int, name: str, what: str) -> None:
    """Raise if the examples of an epoch do not fill a batch."""
    if examples < batch:
        raise UserError(
            f"a step takes {batch} {what}; the training part of {name!r} has {examples}. Pass more data, or a smaller "
            "batch (--set train.batch=N)."
        )
