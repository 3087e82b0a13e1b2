"""Where the rows of tensors of one shape lie in memory: outer dimensions are merged if the strides of all allow it."""

from collections.abc import Sequence

from torch import Tensor

Levels = tuple[tuple[int, int], tuple[tuple[int, int, int], ...], int]


def contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie together, in row-major order."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def levels(tensors: Sequence[Tensor], dims: int, ordered: bool) -> Levels | None:
    """((middle, inner), strides of each tensor's rows, number of levels); None if the rows need more than three levels.

    Rows are numbered as they lie in the first tensor's memory; with ``ordered``, in the order of the dimensions.
    """
    outer = tensors[0].dim() - dims
    found = [
        (extent, [t.stride(d) for t in tensors]) for d, extent in enumerate(tensors[0].shape[:outer]) if extent != 1
    ]
    if not ordered:
        found.sort(key=lambda level: -level[1][0])
    folded: list[tuple[int, list[int]]] = []
    for extent, strides in found:
        if folded and all(a == b * extent for a, b in zip(folded[-1][1], strides, strict=True)):
            folded[-1] = folded[-1][0] * extent, strides
        else:
            folded.append((extent, strides))
    if len(folded) > 3:
        return None
    full = [(1, [0] * len(tensors))] * (3 - len(folded)) + folded
    first, middle, inner = full
    rows = tuple((first[1][i], middle[1][i], inner[1][i]) for i in range(len(tensors)))
    return (middle[0], inner[0]), rows, max(1, len(folded))


def overlaps(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements may share an address: a stride is below the extent of what the smaller strides reach."""
    reach = 0
    for stride, extent in sorted((stride, extent) for extent, stride in zip(shape, strides, strict=True) if extent > 1):
        if stride <= reach:
            return True
        reach += stride * (extent - 1)
    return False
