"""ConvPool-CNN-C (Springenberg et al. 2015, as Salimans & Kingma 2016 and the paper took it), over any normaliser.

Legend of the shape suffixes: N examples, C channels, Y rows, X columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.recipes.images import ModelConfig


class Factors(nn.Module):
    """A fixed factor for each output of a layer, apart from its weight: Adam then moves what it multiplies."""

    factors: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", weight.new_ones((len(weight),) + (1,) * (weight.ndim - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factors * weight


def _scaled(layer: Any) -> Tensor:
    """What is multiplied to scale a layer's outputs: its weight, WeightNorm's gain, or the fixed factors."""
    if not is_parametrized(layer):
        weight: Tensor = layer.weight
        return weight
    of = layer.parametrizations.weight
    scale: Tensor = of[0].factors if isinstance(of[0], Factors) else of.original0
    return scale


class ConvPool(nn.Module):
    """Images (N, C, Y, X) -> logits (N, classes).

    Three 3×3 convolutions, max-pooling, three more, max-pooling, a 3×3 convolution without padding, two 1×1, the
    average of each map, a dense layer; a norm on every layer, the dense one too, then LeakyReLU. In training Gaussian
    noise is added to the input and half of what each pooling gives is dropped. All weights are N(0, 0.05²) at the
    start, drawn in one order whatever the normaliser; a layer has its own bias unless a norm has one.
    """

    def __init__(self, channels: int, classes: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.noise, self.dropout, self.slope = config.noise, config.dropout, config.slope
        first, second = config.widths
        sizes = [channels, first, first, first, second, second, second, second, second, second]
        kinds = [(3, 1)] * 6 + [(3, 0), (1, 0), (1, 0)]
        self.bare, self.noisy_start = not norm.of_activations, config.start_images is not None

        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=padding)
            for before, after, (kernel, padding) in zip(sizes[:-1], sizes[1:], kinds, strict=True)
        )
        self.layers.append(nn.Linear(second, classes))
        self.norms = nn.ModuleList(norm.channels(width, spatial=True) for width in sizes[1:])
        self.norms.append(norm.channels(classes, spatial=False))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.05)  # type: ignore[arg-type]  # Conv2d or Linear
            if self.bare:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            else:  # made and dropped: torch's constructors draw for it
                layer.bias = None  # type: ignore[assignment]
        for layer in self.layers:
            norm.parametrise(layer)
            if self.bare and self.noisy_start and not is_parametrized(layer):
                register_parametrization(layer, "weight", Factors(layer.weight))  # type: ignore[arg-type]

    def forward(self, x_NCYX: Tensor) -> Tensor:
        x = x_NCYX + self.noise * torch.randn_like(x_NCYX) if self.training else x_NCYX
        for i, (layer, norm) in enumerate(zip(self.layers[:-1], self.norms[:-1], strict=True)):
            x = F.leaky_relu(norm(layer(x)), self.slope)
            if i in (2, 5):
                x = F.dropout(F.max_pool2d(x, 2), self.dropout, self.training)
        logits: Tensor = self.norms[-1](self.layers[-1](x.mean((2, 3))))
        return logits

    @torch.no_grad()
    def initialise(self, x_NCYX: Tensor) -> None:
        """Scale and shift each layer, in turn, so that its outputs on ``x`` have mean 0 and variance 1 in each channel
        (Salimans & Kingma 2016, §3): for a network without norms of its activations. Their code has noise and dropout
        on; without ``config.start_images`` there are none."""

        def standardise(layer: Any, _: object, y: Tensor) -> Tensor:
            over = [0, *range(2, y.ndim)]
            mean, std = y.mean(over), y.std(over, correction=0)
            columns = (-1,) + (1,) * (layer.weight.ndim - 1)
            _scaled(layer).div_(std.view(columns))
            layer.bias.copy_(-mean / std)
            spatial = columns[1:-1]
            return (y - mean.view(-1, *spatial)) / std.view(-1, *spatial)

        training = self.training
        handles = [layer.register_forward_hook(standardise) for layer in self.layers]
        self.train(self.noisy_start)(x_NCYX)
        self.train(training)
        for handle in handles:
            handle.remove()
