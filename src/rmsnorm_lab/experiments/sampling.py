"""Sampling from a language model, token by token."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn


@torch.no_grad()
def sample(
    model: nn.Module,
    ids: Sequence[int],
    *,
    context: int,
    known: int,
    temperature: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """Ids that go on from ``ids``, without end, each drawn from softmax(logits / temperature).

    Args:
        model: ids (1, T) to logits (1, T, vocabulary), in evaluation mode.
        ids: the preceding ids, at least one.
        context: number of positions that the model was trained on; earlier ids are ignored.
        known: ids from here on are never drawn.
        temperature: 0 takes the likeliest id.
        generator: of the CPU.
    """
    device = next(model.parameters()).device
    seen = list(ids)[-context:]
    while True:
        logits = model(torch.tensor([seen], device=device))[0, -1, :known].double().cpu()
        if temperature == 0:
            chosen = int(logits.argmax())
        else:
            # The largest becomes 0 before the division: at the smallest temperatures the others become -inf, not NaN.
            weights = torch.softmax((logits - logits.max()) / temperature, 0)
            chosen = int(torch.multinomial(weights, 1, generator=generator))
        seen = [*seen, chosen][-context:]
        yield chosen
