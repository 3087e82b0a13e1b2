"""The shapes of inputs that a convention is compared on: a module may take other dimensions, or branch on sizes."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rmsnorm.torch.swap.conventions import Inputs
from rmsnorm.torch.swap.samples import seeded
from rmsnorm.torch.swap.shadow import Left

BEFORE = 4
"""As many dimensions as this are tried before the normalised ones; inputs with more take the module's own forward."""
LARGE, LARGEST = 2**20, 2**24
"""Elements of an input whose outer extent equals the number of channels. Above the first (1024 × 1024: 15 ms a
comparison) at most two outer dimensions are tried, above the second none."""
_EXTENTS = 2, 3, 5, 7, 11, 13

Both = Callable[[Tensor], tuple[Tensor, Tensor]]


def verified(both: Both, wide: tuple[int, ...]) -> Inputs:
    """The inputs that end in ``wide`` for which the two results of ``both`` agree.

    A rank at which the module raises is not among them. Left if results differ at any.
    """
    distinct = [extent for extent in _EXTENTS if extent not in wide]
    elements = max(wide)
    for extent in wide:
        elements *= extent
    depth = BEFORE if elements <= LARGE else 2 if elements <= LARGEST else 0
    values = torch.randn(max(elements if depth else 0, 210 * elements // max(wide)), generator=seeded(2))
    ranks, equal = [], []
    for count in range(BEFORE + 1):
        outer = [tuple(distinct[:count])]
        for extent in sorted(set(wide)) if count <= depth else ():
            outer += [(*[1] * place, extent, *[1] * (count - place - 1)) for place in range(count)]
        try:
            same = all(_agree(both, values, (*shape, *wide)) for shape in outer)
        except Exception:  # the module says so itself, at each call
            continue
        if not same:
            raise Left("its result depends on more than the last dimension")
        ranks.append(count + len(wide))
        if count <= depth:
            equal.append(count + len(wide))
    strided = all(_agree_on(both, x, strides=True) for x in _not_contiguous(values, wide))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = _agree(both, values, (2, *wide))
    return Inputs(tuple(ranks), tuple(equal), strided, autocast)


def _not_contiguous(values: Tensor, wide: tuple[int, ...]) -> Iterator[Tensor]:
    """Inputs of shape (2, 3, *wide): a transposition of the outer dimensions, a slice, channels before positions."""
    elements = 6 * math.prod(wide)
    yield values[:elements].view(3, 2, *wide).transpose(0, 1)
    yield values[: 2 * elements].view(2, 3, *wide[:-1], 2 * wide[-1])[..., : wide[-1]]
    yield values[:elements].view(2, *wide, 3).movedim(-1, 1)


def _agree(both: Both, values: Tensor, shape: tuple[int, ...]) -> bool:
    """Roughly: values are compared elsewhere. Rows differ in size, by a factor of e or so, and a statistic of other
    elements by much more than 0.1 %."""
    rows = torch.randn((*shape[:-1], 1), generator=seeded(3)).exp()
    count = rows.numel() * shape[-1]
    x = values[:count].view(shape) * rows
    return _agree_on(both, x)


def _agree_on(both: Both, x: Tensor, strides: bool = False) -> bool:
    """In inference mode: other comparisons are made with gradients."""
    with torch.inference_mode():
        ours, theirs = both(x)
        same = ours.dtype == theirs.dtype and (ours.stride() == theirs.stride() or not strides)
        return bool(same and (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())
