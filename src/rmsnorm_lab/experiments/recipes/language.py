"""Characters of text: a small decoder-only transformer of today's shape, where RMSNorm is used now."""

from dataclasses import dataclass
from typing import Any, ClassVar

from rmsnorm_lab.experiments.recipes.checked import Settings
from rmsnorm_lab.experiments.recipes.common import Recipe, TrainConfig, check_heads


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The decoder-only transformer of models/decoder_only.py."""

    section: ClassVar[str] = "model."

    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 352
    context: int = 64
    qk_norm: bool = False
    """Normalise queries and keys too, over each head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)


@dataclass(frozen=True)
class DataConfig(Settings):
    section: ClassVar[str] = "data."

    evaluation_windows: int = 256
    """Fixed windows of the held-out text, as many for the curve and as many others for the end."""


def _train(**of_size: Any) -> TrainConfig:
    """The usual way to train such models."""
    return TrainConfig(
        final_share=0.1,
        schedule="cosine",
        optimizer="adamw",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip="global",
        clip_norm=1.0,
        **of_size,
    )


_SWEPT = (("l2", 8e-3), ("prms", 8e-3), ("dyt", 2e-3))
"""Best in validation of 0.002, 0.004 and 0.008, one seed (rmsnorm compare language --sweep-lr); else 0.004."""


def small() -> Recipe:
    """0.66 million parameters, 1024 characters a step, under four minutes for four normalisers on two cores."""
    train = _train(
        steps=280,
        batch=16,
        learning_rate=4e-3,
        warmup_steps=20,
    )
    return Recipe("small", ModelConfig(), train, data=DataConfig(), learning_rates=_SWEPT)


def paper() -> Recipe:
    """The paper has no language model: GPT-2's smallest dimensions, for a GPU.

    64 windows at once would take more than 17 GiB."""
    train = _train(
        steps=20_000,
        batch=64,
        learning_rate=6e-4,
        warmup_steps=500,
        evaluations=20,
        accumulate=4,
    )
    model = ModelConfig(width=768, layers=12, heads=12, feed_forward=2048, context=512)
    return Recipe("paper", model, train, data=DataConfig(evaluation_windows=1024))
