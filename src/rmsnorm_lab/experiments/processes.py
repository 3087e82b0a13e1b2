"""Work of an evaluation, divided among the processes that train together."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

Part = TypeVar("Part")
Found = TypeVar("Found")


def shared(function: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
    """``[function(part) for part in parts]``: each process takes every N-th part, and all have the whole list.

    All processes must call it alike. What ``function`` returns is sent as a pickle: numbers, texts, CPU tensors.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [function(part) for part in parts]
    world, rank = dist.get_world_size(), dist.get_rank()
    of_all: list[Any] = [None] * world
    dist.all_gather_object(of_all, [function(part) for part in parts[rank::world]])
    return [of_all[place % world][place // world] for place in range(len(parts))]
