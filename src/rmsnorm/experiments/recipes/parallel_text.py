"""What the two translation tasks share: how parallel text is cut."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """The data of a translation task."""

    vocabulary: int
    """Subwords of both languages together."""
    max_length: int
    """Subwords of a training sentence, its end not counted; longer pairs are left out, and counted."""
    by_tokens: bool
    """Whether ``TrainConfig.batch`` counts tokens of the longer side with padding, or sentences."""
    valid_pairs: int
    """Of the validation set, for the curve: so many, from its beginning."""
    beam: int
    """Of the search at the end; the curve is taken greedily."""
    length_penalty: float
    """Hypotheses are compared by log-probability / length^penalty."""
    source: str = "en"
    target: str = "de"
    stand_in_pairs: tuple[int, int, int] = (0, 0, 0)
    """Training, validation and test pairs of the stand-in: of the ``small`` recipes."""
