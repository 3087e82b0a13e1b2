"""The content of a record (schema 3): one finished run or timing, with everything that identifies it.

``identity`` decides a record: two with the same one are the same run. JSON holds each field under its own name
(rmsnorm_lab.plain); store.py keeps the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, ClassVar

import torch

from rmsnorm_lab import machine
from rmsnorm_lab.experiments.recipes.common import TimingConfig, TrainConfig
from rmsnorm_lab.plain import ADDED

SCHEMA = 3


@dataclass(frozen=True)
class Metric:
    """One figure of quality."""

    key: str
    """Its name in records: "accuracy", "bleu", "bits"."""
    label: str
    """Its heading in a table, in at most two lines: "held-out bits\\nper character"."""
    higher_is_better: bool
    form: str
    """As in ``format``: ".3f"."""
    on_validation: str = field(default="", metadata=ADDED)
    """Its name on the validation set; empty if ``label`` does not name the test set."""

    @property
    def validation_label(self) -> str:
        """What a curve shows, in one line."""
        return (self.on_validation or self.label).replace("\n", " ")


@dataclass(frozen=True)
class Content:
    """The data of a run, by content: never by a name or a path of the machine."""

    stand_in: bool
    sha256: str
    details: dict[str, Any]
    """Counts, the split, whatever a table should say; JSON values."""


@dataclass(frozen=True)
class Machine(machine.Machine):
    """Where a run was made: the machine, the versions, and how torch ran."""

    torch_threads: int
    gpu: str | None

    def __post_init__(self) -> None:
        if "torch" not in self.versions:
            raise ValueError(f"the versions must have torch's; got those of {', '.join(self.versions) or 'nothing'}")

    @staticmethod
    def here() -> "Machine":
        """This machine and this process."""
        found = vars(machine.describe())
        own = {
            "versions": {**found["versions"], "lightning-fabric": version("lightning-fabric")},
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        }
        return Machine(**{**found, **own})

    def processor(self, device: str) -> str:
        """The device's hardware."""
        return self.cpu if device == "cpu" else self.gpu or self.cpu


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings that all runs and timings of one experiment share."""

    device: str
    precision: str
    source: Content
    size: str
    """Of the recipe: ``small`` or ``paper``."""
    model: dict[str, Any]
    """The recipe's, field by field."""
    data: dict[str, Any] | None
    """The recipe's; None if the task has none."""

    @property
    def setting(self) -> "Setting":
        """These fields alone, to be compared."""
        names = ("device", "precision", "source", "size", "model", "data")
        return Setting(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class RunIdentity(Setting):
    """Everything that determines a training."""

    kind: ClassVar[str] = "run"

    kernels: str
    norm: str
    seed: int
    p: float | None
    """Of pRMSNorm; None for all others."""
    train: TrainConfig
    processes: str | None = field(default=None, metadata=ADDED)
    """By which the run was trained if by several: "ddp2"."""


@dataclass(frozen=True, kw_only=True)
class TimingIdentity(Setting):
    """Everything that determines a timing. Times depend on the machine."""

    kind: ClassVar[str] = "timing"

    kernels: str
    norms: tuple[str, ...]
    p: float
    timing: TimingConfig
    batch: int
    accumulate: int = field(default=1, metadata=ADDED)
    biases: str | None = field(default=None, metadata=ADDED)
    """Of the recurrences that were timed, where they are not the model's (timing_only.py)."""
    machine: Machine


@dataclass(frozen=True)
class Curve:
    """Validation during a run. ``None`` means a number that is not finite."""

    step: list[int]
    seconds: list[float]
    """Time spent in training steps so far, without evaluations."""
    train_loss: list[float | None]
    """Mean of the training losses since the point before."""
    valid: dict[str, list[float | None]]
    """Each metric, and "loss"."""

    def __post_init__(self) -> None:
        _alike({"step": self.step, "seconds": self.seconds, "train_loss": self.train_loss, **self.valid}, "the curve")


@dataclass(frozen=True)
class RunResult:
    """The result of a training."""

    status: str
    """``finished`` or ``diverged``."""
    diverged_at: int | None
    """The step from which all losses were far above the first one, or not finite."""
    quality: dict[str, float] | None
    """Every metric, and "loss", on the test split at the end; ``None`` if diverged."""
    seconds: float
    """In training steps, without evaluations; over all processes that a resumed run took."""
    curve: Curve
    metrics: tuple[Metric, ...]
    """The task's, the headline first: a record is read without the task's data."""
    references: dict[str, float]
    """What the headline metric is without learning."""
    peak_memory: int | None = field(default=None, metadata=ADDED)
    """Bytes, in older records; no longer measured."""
    parameters: int | None = field(default=None, metadata=ADDED)
    """Trainable numbers of the network; None in older records."""

    def __post_init__(self) -> None:
        keys = {"loss", *(metric.key for metric in self.metrics)}
        given = [set(self.curve.valid), *([] if self.quality is None else [set(self.quality)])]
        if not self.metrics or not all(keys <= names for names in given):
            raise ValueError("result must have a metric, and figures of each and the loss in the curve and in quality")

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class TimingResult:
    """The result of a timing, by normaliser."""

    milliseconds: dict[str, list[float]]
    """Of each round's step."""
    profiled_share: dict[str, float | None]
    """Of a step, in the normaliser."""
    peak_memory: dict[str, int]
    """Bytes of tensors at the fullest moment of a step."""
    memory: int | None = field(default=None, metadata=ADDED)
    """Bytes of all networks' tensors together at the fullest moment of a step; None if it was not measured."""

    def __post_init__(self) -> None:
        _alike(self.milliseconds, "the times")
        if not all(time > 0 for column in self.milliseconds.values() for time in column):
            raise ValueError("the times must be above 0")
        if (
            not self.milliseconds
            or not self.milliseconds.keys() == self.profiled_share.keys() == self.peak_memory.keys()
        ):
            raise ValueError("the times, shares and peaks must be of the same norms")

    @property
    def rounds(self) -> int:
        return len(next(iter(self.milliseconds.values())))


def _alike(columns: dict[str, Any], whose: str) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{whose} must have columns of one length; got {', '.join(columns)}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """The common part of records of runs and of timings."""

    task: str
    source_name: str
    """Of the data; it is no part of the identity, since others have the same data under another name."""
    machine: Machine
    finished: str = field(default_factory=_now)
    """The time in UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(_Finished):
    """One finished training."""

    identity: RunIdentity
    result: RunResult
    norm_source: str | None = field(default=None, metadata=ADDED)
    """Where the user's own norm is from: "my_norm.py:MyNorm". Its name in the identity has the hash of its source."""


@dataclass(frozen=True, kw_only=True)
class TimingRecord(_Finished):
    """One finished timing."""

    identity: TimingIdentity
    result: TimingResult
    norm_sources: dict[str, str] | None = field(default=None, metadata=ADDED)
    """Where the user's own norms among them are from; None without such."""

    def __post_init__(self) -> None:
        if set(self.identity.norms) != self.result.milliseconds.keys():
            raise ValueError("the times must be of the identity's norms")


Record = RunRecord | TimingRecord


def runs_of(records: "Sequence[Record]") -> list[RunRecord]:
    """The trainings among the records."""
    return [record for record in records if isinstance(record, RunRecord)]


def timings_of(records: "Sequence[Record]") -> list[TimingRecord]:
    """The timings among the records."""
    return [record for record in records if isinstance(record, TimingRecord)]
