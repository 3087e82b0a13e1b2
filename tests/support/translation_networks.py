"""Small translation networks whose gains and biases are not 1 and 0, and a batch for them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data.batches import Batch
from rmsnorm_lab.experiments.data.subwords import END, PAD
from rmsnorm_lab.experiments.models.encoder_decoder import EncoderDecoder
from rmsnorm_lab.experiments.models.rnnsearch import RNNSearch
from rmsnorm_lab.experiments.recipes import transformer as transformer_recipe
from rmsnorm_lab.experiments.recipes import translation as translation_recipe

V = 23
RNN = translation_recipe.ModelConfig(embedding=10, hidden=12, init_std=0.4)
TRANSFORMER = transformer_recipe.ModelConfig(width=16, feed_forward=24, heads=2, layers=2)


def rnnsearch(norm: str, kernels: str = "unfused", config: Any = RNN) -> RNNSearch:
    torch.manual_seed(7)
    return perturbed(RNNSearch(V, config, norms.made(norm, kernels, 0.3)))


def encoder_decoder(norm: str, pre_norm: bool = False, kernels: str = "unfused") -> EncoderDecoder:
    torch.manual_seed(7)
    made = EncoderDecoder(V, replace(TRANSFORMER, pre_norm=pre_norm), norms.made(norm, kernels, 0.3))
    return perturbed(made)


def perturbed(model: Any) -> Any:
    """Gains and biases away from 1 and 0, where mistakes with them show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def a_batch(rows: int = 5, seed: int = 0) -> Batch:
    """Random sentences of unequal lengths, padded."""
    generator = torch.Generator().manual_seed(seed)

    def side(longest: int) -> Tensor:
        ids = torch.randint(3, V, (rows, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        places = torch.arange(longest)
        ids[places == lengths[:, None] - 1] = END
        ids[places >= lengths[:, None]] = PAD
        return ids

    return Batch(side(7), side(6))
