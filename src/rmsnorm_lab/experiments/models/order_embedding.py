"""Order embeddings of images and captions (Vendrov et al. 2016), the GRU over any normaliser.

Legend of the shape suffixes: B pairs, T words, D embedding width.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.models.recurrent import Ragged, gru_layer, initialise, zero_biases
from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.recipes.retrieval import ModelConfig


class OrderEmbedding(nn.Module):
    """(features (B, F), word ids (B, T), lengths (B)) -> (images_BD, captions_BD), both non-negative and of norm 1.

    An image is an affine map of its features, a caption the last state of a GRU over its words; both are scaled to norm
    1, then the absolute value is taken. Start: word vectors and input weights uniform in ±0.1, recurrent weights
    orthogonal gate by gate, Xavier's for the images, biases 0.
    """

    def __init__(self, features: int, vocabulary: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, config.word_width)
        make = partial(gru_layer, config.word_width, config.width, norm, config.biases)
        self.gru = Ragged(make)
        self.image = nn.Linear(features, config.width)

        uniform = partial(nn.init.uniform_, a=-0.1, b=0.1)
        uniform(self.words.weight)
        layer = self.gru.directions[0]
        initialise(layer, "weight_ih", uniform)
        initialise(layer, "weight_hh", nn.init.orthogonal_)
        zero_biases(layer)
        nn.init.xavier_uniform_(self.image.weight)
        nn.init.zeros_(self.image.bias)

    def forward(self, features_BF: Tensor, words_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.images(features_BF), self.captions(words_BT, lengths_B)

    def images(self, features_BF: Tensor) -> Tensor:
        return F.normalize(self.image(features_BF), dim=-1).abs()

    def captions(self, words_BT: Tensor, lengths_B: Tensor) -> Tensor:
        _, last_BD = self.gru(self.words(words_BT.T), lengths_B)
        return F.normalize(last_BD, dim=-1).abs()


def order_errors(images_ID: Tensor, captions_CD: Tensor) -> Tensor:
    """E(i, c) = Σ_d max(0, caption_d − image_d)², (I, C): 0 where the caption says nothing that the image lacks."""
    return (captions_CD[None] - images_ID[:, None]).clamp(min=0).square().sum(-1)


def ranking_loss(errors_BB: Tensor, margin: float, own: slice = slice(None)) -> Tensor:
    """Σ max(0, margin + E(pair) − E(mismatch)) over all mismatches of each image and of each caption in the batch.

    ``errors_BB[i, i]`` are the pairs. ``own`` restricts the sum to the images and captions of one process.
    """
    pairs_B = errors_BB.diagonal()
    of_images = (margin + pairs_B[:, None] - errors_BB).clamp(min=0)[own]
    of_captions = (margin + pairs_B[None, :] - errors_BB).clamp(min=0)[:, own]
    at_pairs = 2 * margin * pairs_B[own].numel()  # each pair against itself, in both sums
    return of_images.sum() + of_captions.sum() - at_pairs


class _Gather(torch.autograd.Function):
    """The rows of all processes in the order of their ranks; each gets back the gradients that all took of its rows.

    A collective call takes equally many rows of each process, so all send as many as the longest has.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.split(ctx.counts)[torch.distributed.get_rank()], None


def gathered(*parts: Tensor) -> tuple[tuple[Tensor, ...], slice]:
    """Each of ``parts``, (rows, D), with the rows of all processes, and which of them are this one's.

    The parts have equally many rows; the processes need not.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts, slice(None)
    mine = torch.tensor(len(parts[0]), device=parts[0].device)
    counted = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counted, mine)
    counts = [int(count) for count in counted]
    start = sum(counts[: torch.distributed.get_rank()])
    return tuple(_Gather.apply(part, counts) for part in parts), slice(start, start + len(parts[0]))
