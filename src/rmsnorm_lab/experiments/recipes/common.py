"""The parts of every recipe, and the names that all tasks share."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.recipes.checked import Index, OneOf, Positive, Range, Settings, Share
from rmsnorm_lab.plain import ADDED

KERNELS = ("unfused", "rmsnorm", "best")
"""Three comparisons that are never mixed: every norm written in framework operators, as the paper had it; LayerNorm
and RMSNorm both in this project's kernels; the best available LayerNorm against this project's RMSNorm."""
PRECISIONS = ("32-true", "bf16-mixed")

EPS = 1e-5
"""Inside the root, the same for every normaliser (torch's own defaults differ between LayerNorm and RMSNorm)."""
P = 0.0625
"""The paper's choice for pRMSNorm: the RMS of the first 6.25 % of the elements (12.5 % for images)."""

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine", "inverse_sqrt", "linear_second_half")
CLIPS = ("none", "global", "per_tensor")
BIASES = ("alike", "paper")
"""Where a recurrent network has biases. "alike": the same for every norm, as torch's layers have them. "paper": as in
the paper's code, one before each norm of an input; LayerNorm adds one more after every norm, RMSNorm none."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a model is trained. Steps and schedules count optimizer steps."""

    section: ClassVar[str] = "train."

    steps: int
    batch: int
    """Examples (sequences, images, pairs) of one step, over all processes."""
    learning_rate: Positive
    """Where the warm-up ends; ``Recipe.learning_rates`` may name another for a normaliser."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adam"
    """One of OPTIMIZERS; ``weight_decay`` goes to matrices alone."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    optimizer_eps: float = 1e-8
    eps_in_root: bool = field(default=False, metadata=ADDED)
    """Adam divides by √(v̂ + eps) instead of √v̂ + eps."""
    weight_decay: float = 0.0
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    """One of SCHEDULES, after a linear warm-up: ``cosine`` and ``linear_second_half`` (constant for half of the
    steps) end at ``final_share``; ``inverse_sqrt`` falls as √(warmup_steps / step)."""
    warmup_steps: Index = 0
    final_share: float = 0.0
    """Of the learning rate."""
    late_beta1: Share | None = None
    """Adam's β₁ in the second half of the steps; None: as before."""
    clip: Annotated[str, OneOf(CLIPS)] = "none"
    """One of CLIPS: by the norm of all gradients together, or of each parameter's on its own."""
    clip_norm: Positive = 1.0
    evaluations: int = 8
    """Points of the validation curve after the one before the first step."""
    best: bool = False
    """Test the weights of the best point of the validation curve, not the last ones."""
    best_by: str = field(default="headline", metadata=ADDED)
    """What is best: the headline metric, or others added up: "image_r1+image_r5+image_r10"."""
    accumulate: int = field(default=1, metadata=ADDED)
    """Each process computes its examples of a step in this number of parts, one after the other, to save memory.
    The gradient is the whole batch's; batch norm's statistics are each part's, and dropout is drawn for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate > self.batch:
            raise UserError(
                f"train.accumulate must be at most the batch, {self.batch}; got {self.accumulate}. "
                "Set it to less: each part has an example."
            )
        if self.eps_in_root and self.optimizer != "adam":
            raise UserError(
                f"train.eps_in_root must be false with train.optimizer={self.optimizer}; got true. Set one of them."
            )


@dataclass(frozen=True)
class TimingConfig(Settings):
    """One training step of each normaliser a round, in a new random order each round."""

    section: ClassVar[str] = "timing."

    warmup_rounds: Index = 5
    rounds: int = 60
    seed: Index = 0
    seconds: Positive | None = field(default=None, metadata=ADDED)
    """Of one setting, all of its work together: the rounds end when they are over. None: after ``rounds``."""
    fewest: int = field(default=3, metadata=ADDED)
    """Rounds that are made even if ``seconds`` are over."""


@dataclass(frozen=True)
class Recipe(Settings):
    """A complete experiment, except for the data's content, the normaliser, the kernels and the seed."""

    size: str
    """``small`` or ``paper``."""
    model: Any
    """The task's own frozen dataclass of dimensions."""
    train: TrainConfig
    timing: TimingConfig = TimingConfig()
    data: Any = None
    """The task's own frozen dataclass of how data are cut (vocabulary, lengths, counts), if it needs one."""
    p: Annotated[float, Range(0, 1, above=True)] = P
    """pRMSNorm takes the first ⌈n·p⌉ elements."""
    learning_rates: tuple[tuple[str, float], ...] = ()
    """(normaliser, learning rate) where it is not ``train.learning_rate``."""

    def learning_rate(self, norm: str) -> float:
        return dict(self.learning_rates).get(norm, self.train.learning_rate)


def check_heads(width: int, heads: int) -> None:
    """Each head of a Transformer takes an equal and even part of the width (positions are pairs of numbers)."""
    if width % (2 * heads):
        raise UserError(
            f"model.width must be an even multiple of model.heads; got {width} and {heads}. Set one of them to fit."
        )
