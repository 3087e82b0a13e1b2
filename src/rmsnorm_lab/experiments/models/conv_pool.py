"""ConvPool-CNN-C (Springenberg et al. 2015, as Salimans & Kingma 2016 and the paper took it), over any normaliser.

Legend of the shape suffixes: N examples, C channels, Y rows, X columns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rmsnorm_lab.experiments.norms.base import Normaliser
from rmsnorm_lab.experiments.recipes.images import ModelConfig


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
        self.bare = not norm.of_activations

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
        (Salimans & Kingma 2016, §3): for a network without norms of its activations."""

        def standardise(layer: Any, _: object, y: Tensor) -> Tensor:
            over = [0, *range(2, y.ndim)]
            mean, std = y.mean(over), y.std(over, correction=0)
            columns = (-1,) + (1,) * (layer.weight.ndim - 1)
            scale = layer.parametrizations.weight.original0 if is_parametrized(layer) else layer.weight
            scale.div_(std.view(columns))  # of WeightNorm the gain g
            layer.bias.copy_(-mean / std)
            spatial = columns[1:-1]
            return (y - mean.view(-1, *spatial)) / std.view(-1, *spatial)

        training = self.training
        handles = [layer.register_forward_hook(standardise) for layer in self.layers]
        self.eval()(x_NCYX)  # without noise and dropout, which would draw numbers that the other networks do not
        self.train(training)
        for handle in handles:
            handle.remove()
