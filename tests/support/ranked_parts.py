"""One of several processes that rank embeddings together, for test_retrieval.py."""

from pathlib import Path

import torch
from torch import Tensor

from rmsnorm_lab.experiments.models import order_embedding

PARTS = (slice(0, 3), slice(3, 5), slice(5, 5))
"""Of five pairs over three processes: unequal, and one without any."""


def ranked_part(rank: int, folder: Path, images: Tensor, captions: Tensor) -> None:
    """The loss of this process's part, and the gradients of its embeddings, into ``folder``."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(PARTS))
    mine = [part[PARTS[rank]].clone().requires_grad_() for part in (images, captions)]
    (everyone, others), own = order_embedding.gathered(*mine)
    assert own == PARTS[rank]
    loss = order_embedding.ranking_loss(order_embedding.order_errors(everyone, others), 0.3, own)
    loss.backward()
    torch.save((loss.item(), [part.grad for part in mine]), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
