"""Translation by the Transformer: post-norm as in the paper, or pre-norm."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from rmsnorm_lab.experiments.recipes import parallel_text
from rmsnorm_lab.experiments.recipes.checked import OneOf, Settings, Share
from rmsnorm_lab.experiments.recipes.common import Recipe, TimingConfig, TrainConfig, check_heads
from rmsnorm_lab.experiments.recipes.parallel_text import LOSSES
from rmsnorm_lab.plain import ADDED


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The encoder-decoder of models/encoder_decoder.py."""

    section: ClassVar[str] = "model."

    width: int
    feed_forward: int
    heads: int
    layers: int
    """Of the encoder, and of the decoder."""
    dropout: Share = 0.0
    pre_norm: bool = False
    """x + f(N(x)) instead of N(x + f(x))."""
    label_smoothing: Share = 0.1
    attention_dropout: Share = field(default=0.0, metadata=ADDED)
    """Of the attention's weights."""
    source_embedding: bool = field(default=False, metadata=ADDED)
    """The source has an embedding of its own; false: it shares that of the target and the logits."""
    embedding_bias: bool = field(default=False, metadata=ADDED)
    """A vector is added to the embedding of every word, the same for both sides."""
    loss_of: Annotated[str, OneOf(LOSSES)] = field(default="words", metadata=ADDED)
    """One of LOSSES."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)


_SWEPT = (("none", 1e-2),)
"""Best in validation of 0.001, 0.003 and 0.01, one seed (rmsnorm compare transformer --sweep-lr); all others: 0.003."""


def small() -> Recipe:
    """Dates on two cores."""
    return Recipe(
        "small",
        ModelConfig(width=64, feed_forward=256, heads=4, layers=2),
        TrainConfig(
            steps=280,
            batch=1500,
            learning_rate=3e-3,
            betas=(0.9, 0.98),
            optimizer_eps=1e-9,
            schedule="inverse_sqrt",
            warmup_steps=60,
            evaluations=8,
        ),
        TimingConfig(rounds=40),
        parallel_text.small(by_tokens=True, length_penalty=0.6),
        learning_rates=_SWEPT,
    )


def medium() -> Recipe:
    """The messages of programs on two cores."""
    of = small()
    return replace(
        of,
        size="medium",
        model=replace(of.model, width=192, feed_forward=768, heads=6, layers=3, dropout=0.1),
        train=replace(of.train, steps=4000, learning_rate=1e-3, warmup_steps=400, evaluations=10),
        data=parallel_text.medium(of.data),
        learning_rates=(),
    )


def paper() -> Recipe:
    """Vaswani et al. 2017, base, post-norm, as the paper has it: the rate
    is D^−½ · warmup^−½ where the warm-up ends. 25,000 tokens at once would take more than 18 GiB."""
    return Recipe(
        "paper",
        ModelConfig(
            width=512,
            feed_forward=2048,
            heads=8,
            layers=6,
            dropout=0.1,
            attention_dropout=0.1,
            source_embedding=True,
            embedding_bias=True,
            loss_of="sentence_means",
        ),
        TrainConfig(
            steps=300_000,
            batch=25_000,
            learning_rate=(512 * 4000) ** -0.5,
            betas=(0.9, 0.98),
            optimizer_eps=1e-9,
            schedule="inverse_sqrt",
            warmup_steps=4000,
            clip="global",
            clip_norm=5.0,
            evaluations=60,
            best=True,
            accumulate=8,
        ),
        data=parallel_text.paper(
            by_tokens=True, max_length=256, beam=4, length_penalty=0.6, length_offset=5, limit=(1, 50)
        ),
    )
