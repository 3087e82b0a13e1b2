"""Table 5 of the paper: the decoder's hidden-to-hidden activations by the position of the target's word.

Mean and standard deviation over sentences and units of N(W_hh s), before the gates: what norms should stabilise.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

POSITIONS = ("1", "2", "3", "4", "all")
KEYS = {part: tuple(f"hidden_{part}_{position}" for position in POSITIONS) for part in ("mean", "sd")}
"""Names of the figures in a record's quality."""


def figures(traced: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean and population standard deviation at each of POSITIONS.

    Arguments:
        traced: activations (B, T, G) of any floating dtype and a mask (B, T), true where the target has a word.

    Returns:
        KEYS -> figure; a position that no target reaches is left out.
    """
    sums = {position: torch.zeros(3, dtype=torch.float64) for position in POSITIONS}
    for activations_BTG, there_BT in traced:
        for position, total in sums.items():
            words = slice(None) if position == "all" else slice(int(position) - 1, int(position))
            found = activations_BTG[:, words][there_BT[:, words]].double().cpu()
            total += torch.stack([torch.tensor(found.numel(), dtype=torch.float64), found.sum(), found.square().sum()])
    result: dict[str, float] = {}
    for mean_key, sd_key, total in zip(KEYS["mean"], KEYS["sd"], sums.values(), strict=True):
        count, first, second = total.tolist()
        if count:
            mean = first / count
            result |= {mean_key: mean, sd_key: math.sqrt(max(second / count - mean * mean, 0.0))}
    return result
