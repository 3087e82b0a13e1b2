"""Translation by a recurrent network: RNNSearch, the paper's first experiment."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from rmsnorm_lab.experiments.recipes import parallel_text
from rmsnorm_lab.experiments.recipes.checked import OneOf, Real, Settings, Share
from rmsnorm_lab.experiments.recipes.common import BIASES, Recipe, TimingConfig, TrainConfig
from rmsnorm_lab.experiments.recipes.parallel_text import LOSSES
from rmsnorm_lab.plain import ADDED


@dataclass(frozen=True)
class ModelConfig(Settings):
    """RNNSearch of models/rnnsearch.py."""

    section: ClassVar[str] = "model."

    embedding: int
    hidden: int
    init_std: float = 0.01
    init_mean: Real = 0.0
    """The mean of all initial weights: 0.2 in the paper's Fig. 4."""
    label_smoothing: Share = 0.1
    loss_of: Annotated[str, OneOf(LOSSES)] = field(default="words", metadata=ADDED)
    """One of LOSSES."""
    biases: Annotated[str, OneOf(BIASES)] = field(default="alike", metadata=ADDED)


def small() -> Recipe:
    """Dates on two cores."""
    return Recipe(
        "small",
        ModelConfig(embedding=64, hidden=96, init_std=0.1),
        TrainConfig(
            steps=200,
            batch=128,
            learning_rate=1e-2,
            schedule="cosine",
            warmup_steps=10,
            evaluations=8,
        ),
        TimingConfig(rounds=40),
        parallel_text.small(by_tokens=False, length_penalty=1.0),
    )


def demo() -> Recipe:
    """Dates, which this network does not learn without a norm. pRMSNorm takes 16 elements or more of a row. The batch
    is smaller than the small recipe's, so that the whole takes three minutes."""
    recipe = small()
    return replace(
        recipe, train=replace(recipe.train, batch=96, evaluations=2), timing=replace(recipe.timing, rounds=24), p=0.25
    )


def medium() -> Recipe:
    """The messages of programs on two cores; pRMSNorm takes 16 elements of a row of 256."""
    of = small()
    return replace(
        of,
        size="medium",
        model=replace(of.model, embedding=128, hidden=256),
        train=replace(
            of.train, steps=4000, batch=64, learning_rate=3e-3, warmup_steps=200, clip="global", evaluations=10
        ),
        data=parallel_text.medium(of.data),
    )


def paper() -> Recipe:
    """§2 of the paper: WMT14 En-De, 32k joint subwords."""
    return Recipe(
        "paper",
        ModelConfig(embedding=512, hidden=1024, loss_of="sentences", biases="paper"),
        TrainConfig(
            steps=300_000, batch=80, learning_rate=1e-4, clip="global", clip_norm=1.0, evaluations=60, best=True
        ),
        data=parallel_text.paper(by_tokens=False, max_length=80, beam=12, length_penalty=1.0, limit=(0, 200), pool=20),
    )
