"""What the two translation tasks share: how parallel text is cut."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.recipes.checked import Index, Range, Settings
from rmsnorm_lab.plain import ADDED

LOSSES = ("words", "sentences", "sentence_means")
"""What the training loss is the mean of: the cross-entropy of each target subword; the sum of a sentence's; the mean of
a sentence's."""
SMALLEST_VOCABULARY = 259
"""data/subwords.py needs every byte and three marks."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """The data of a translation task."""

    section: ClassVar[str] = "data."

    vocabulary: Annotated[int, Range(SMALLEST_VOCABULARY)]
    """Subwords of both languages together."""
    max_length: int
    """Subwords of a training sentence, its end not counted; longer pairs are left out, and counted."""
    by_tokens: bool
    """Whether ``TrainConfig.batch`` counts tokens of the longer side with padding, or sentences."""
    valid_pairs: int
    """How many pairs of the validation set the curve uses, from its beginning."""
    beam: int
    """Of the search at the end; the curve is taken greedily."""
    length_penalty: float
    """Hypotheses are compared by log-probability / ((offset + length) / (offset + 1))^penalty."""
    stand_in_pairs: tuple[int, int, int]
    """Training, validation and test pairs of the stand-in."""
    source: str = "en"
    target: str = "de"
    length_offset: Index = field(default=0, metadata=ADDED)
    """Of the length penalty; 5: that of Wu et al. 2016."""
    limit: tuple[Index, Index] = field(default=(2, 10), metadata=ADDED)
    """(a, b): a translation of n source subwords has at most a·n + b."""
    pool: int | None = field(default=None, metadata=ADDED)
    """Sentences are sorted by length within this number of random batches; None: over the whole corpus. Not with
    ``by_tokens``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == self.target:
            raise UserError(
                f"data.source and data.target must be two languages; got {self.source!r} for both. Copying the source "
                "would be a perfect translation. Set one of them to another language."
            )
        if self.limit == (0, 0):
            raise UserError("data.limit must leave room for a translation; got 0,0. Set one of its numbers to more.")
        if self.pool is not None and self.by_tokens:
            raise UserError(f"data.pool must be null where data.by_tokens is true; got {self.pool}. Set one of them.")


def small(*, by_tokens: bool, length_penalty: float) -> DataConfig:
    """Dates."""
    return DataConfig(
        vocabulary=512,
        max_length=80,
        by_tokens=by_tokens,
        valid_pairs=200,
        beam=4,
        length_penalty=length_penalty,
        stand_in_pairs=(20_000, 200, 500),
    )


def medium(of: DataConfig) -> DataConfig:
    """The messages of programs, which have 7 words on average; without data, more dates. ``of`` is the small one."""
    return replace(of, vocabulary=4000, max_length=40, valid_pairs=500, stand_in_pairs=(60_000, 500, 1000))


def paper(*, by_tokens: bool, max_length: int, beam: int, length_penalty: float, **more: Any) -> DataConfig:
    """WMT14 En-De, 32k joint subwords."""
    return DataConfig(
        vocabulary=32_000,
        max_length=max_length,
        by_tokens=by_tokens,
        valid_pairs=3000,
        beam=beam,
        length_penalty=length_penalty,
        stand_in_pairs=(60_000, 1000, 3000),
        **more,
    )
