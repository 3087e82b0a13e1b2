"""Order-embedding image-caption retrieval (the paper's §5.3), and its likeness for scenes of digits."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.recipes.checked import OneOf, Range, Settings
from rmsnorm_lab.experiments.recipes.common import BIASES, Recipe, TrainConfig
from rmsnorm_lab.plain import ADDED


@dataclass(frozen=True)
class ModelConfig(Settings):
    section: ClassVar[str] = "model."

    word_width: int = 300
    width: int = 1024
    """Of the GRU and of the space that captions and images share."""
    margin: float = 0.05
    biases: Annotated[str, OneOf(BIASES)] = field(default="alike", metadata=ADDED)


@dataclass(frozen=True)
class DataConfig(Settings):
    section: ClassVar[str] = "data."

    fold: Annotated[int, Range(2)] = 1000
    """Number of images, with five captions each, in one search; figures of the test are the mean over its folds."""
    whole_validation: bool = field(default=False, metadata=ADDED)
    """The curve is of one search in the whole validation set, instead of its first fold."""


@dataclass(frozen=True)
class RetrievalRecipe(Recipe):
    """The loss pairs every image of a batch with every caption, so a batch cannot be taken in parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.accumulate > 1:
            raise UserError(
                "train.accumulate must be 1 for retrieval, whose loss pairs every image of a batch with every caption; "
                f"got {self.train.accumulate}. Take fewer pairs a step (--set train.batch=N)."
            )


def small() -> Recipe:
    """Width 128, a minute for all normalisers on two cores. The rate is the best in validation of 0.001, 0.003 and 0.01
    for each normaliser (three seeds, rmsnorm compare retrieval --sweep-lr)."""
    train = TrainConfig(steps=300, batch=64, learning_rate=1e-2, clip="per_tensor", clip_norm=2.0)
    return RetrievalRecipe("small", ModelConfig(word_width=32, width=128), train, data=DataConfig(fold=200))


def paper() -> Recipe:
    """100 epochs of COCO's 113,287 training images; validation every 300 steps, the best of which is tested."""
    train = TrainConfig(
        steps=88_500,
        batch=128,
        learning_rate=1e-3,
        clip="per_tensor",
        clip_norm=2.0,
        evaluations=295,
        best=True,
        best_by="image_r1+image_r5+image_r10",
    )
    return RetrievalRecipe("paper", ModelConfig(biases="paper"), train, data=DataConfig(whole_validation=True))
