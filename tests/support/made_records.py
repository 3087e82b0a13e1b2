"""Records as a command would write them, made up: tests change what they are about."""

from dataclasses import replace

from rmsnorm_lab.experiments.recipes.common import TimingConfig, TrainConfig
from rmsnorm_lab.experiments.record import (
    Content,
    Curve,
    Machine,
    Metric,
    RunIdentity,
    RunRecord,
    RunResult,
    TimingIdentity,
    TimingRecord,
    TimingResult,
)

MACHINE = Machine(
    cpu="A processor <2>",
    isa="x86-64-v3",
    cores=1,
    threads=2,
    caches={"L1": "32K"},
    memory_gib=8.0,
    os="Linux",
    environment={},
    python="3.11",
    versions={"torch": "2.13.0", "numpy": "2.0"},
    commit="0123456789abcdef",
    dirty=False,
    torch_threads=2,
    gpu=None,
)
BITS = Metric("bits", "held-out bits\nper character", higher_is_better=False, form=".3f")
SETTING = {
    "device": "cpu",
    "precision": "32-true",
    "source": Content(stand_in=True, sha256="ab" * 32, details={"files": 3, "parts": {"train": 5}}),
    "size": "small",
    "model": {"width": 8, "layers": 1},
    "data": None,
    "kernels": "rmsnorm",
}


def run_identity(norm="rms", seed=0, **changes):
    train = TrainConfig(steps=5, batch=10, learning_rate=0.003, betas=(0.9, 0.95))
    return RunIdentity(**{**SETTING, "norm": norm, "seed": seed, "p": None, "train": train, **changes})


def run_record(norm="rms", seed=0, quality=2.25, *, task="language", column=(7.0, None), machine=MACHINE, **changes):
    """``quality``: of the one metric, None if diverged; ``column``: validation figures at steps 0, 1, ...;
    ``changes``: of the identity."""
    curve = Curve(
        step=list(range(len(column))),
        seconds=[float(step) for step in range(len(column))],
        train_loss=[None] * len(column),
        valid={"bits": list(column), "loss": list(column)},
    )
    result = RunResult(
        status="diverged" if quality is None else "finished",
        diverged_at=2 if quality is None else None,
        quality=None if quality is None else {"bits": quality, "loss": 1.5},
        seconds=1.25,
        curve=curve,
        metrics=(BITS,),
        references={"guessing": 7.5},
    )
    identity = run_identity(norm, seed, **changes)
    return RunRecord(task=task, source_name="words", machine=machine, identity=identity, result=result)


def timing_record(milliseconds, *, task="language", machine=MACHINE, **changes):
    """``milliseconds``: by normaliser; ``changes``: of the identity."""
    result = TimingResult(
        milliseconds=milliseconds,
        profiled_share={norm: None if norm == "none" else 0.123 for norm in milliseconds},
        peak_memory=dict.fromkeys(milliseconds, 3 << 20),
    )
    rounds = TimingConfig(rounds=result.rounds)
    of_timing = {"norms": tuple(milliseconds), "p": 0.125, "timing": rounds, "batch": 10, "machine": machine}
    identity = TimingIdentity(**{**SETTING, **of_timing, **changes})
    return TimingRecord(task=task, source_name="words", machine=machine, identity=identity, result=result)


def with_result(record, **changes):
    """The record with other fields of its result."""
    return replace(record, result=replace(record.result, **changes))
