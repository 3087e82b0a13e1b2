"""The demonstration: one network with each norm, in one table, one picture and one sentence.

Rows are implementations, because that is what people choose between. RMSNorm is one function, and is trained once; its
two implementations are timed.
"""

import argparse
from collections.abc import Mapping, Sequence

from rmsnorm.timing import FEWEST, Spread, saved, spread
from rmsnorm_lab.experiments import interrupts, paired, tasks
from rmsnorm_lab.experiments.comparing import compared, do, output
from rmsnorm_lab.experiments.comparison import Comparison, quality_cell, show_quality, show_times
from rmsnorm_lab.experiments.devices import setup_of
from rmsnorm_lab.experiments.jobs import Job, timings, training
from rmsnorm_lab.experiments.recipes import translation
from rmsnorm_lab.experiments.record import RunRecord, TimingRecord, runs_of, timings_of
from rmsnorm_lab.experiments.store import opened
from rmsnorm_lab.experiments.summary import QualityRow, percent, quality_row
from rmsnorm_lab.experiments.task import Metric, Task
from rmsnorm_lab.table import Cell, Row, Table

TASK = "translation"
KERNELS = "best"
"""The setting in which LayerNorm is torch's and RMSNorm this project's."""
TRAINED = ("none", "layer", "rms", "prms")
ROWS = {
    "none": "no norm",
    "layer": "LayerNorm (torch's)",
    "rms-torch": "RMSNorm (torch's)",
    "rms": "RMSNorm (ours)",
    "prms": "pRMSNorm (ours)",
}
"""What is timed -> its label."""
SAME = {"rms-torch": "as ours"}
"""Rows whose function another row was trained with."""


def demo(args: argparse.Namespace) -> int:
    """Train, time and show; return the exit status."""
    args.device, args.precision, args.kernels, args.checkpoint_every = "cpu", "32-true", KERNELS, None
    setup = setup_of(args)
    with interrupts.watched(), opened(args.out) as store:
        task = tasks.load(TASK, None, translation.demo())
        planned: list[Job] = [training(task, setup, norm, seed) for seed in range(args.seeds) for norm in TRAINED]
        # In the other settings no row is torch's RMSNorm.
        planned += [job for job in timings(task, setup, tuple(ROWS)) if args.details or job.setup.kernels == KERNELS]
        title = f"demo · {task.name} · stand-in: {task.source.name} · {task.recipe.train.steps} steps"
        records = do(planned, store, args, title, lambda _: None)
        if records is None:
            return 130
        found = compared(task, setup, list(TRAINED), records, store.folder)
        console = output()
        if args.details:
            show_quality(found, console)
            show_times(found, console)
        (timed,) = (record for record in timings_of(records) if record.identity.kernels == KERNELS)
        runs = {norm: [run for run in runs_of(records) if run.identity.norm == norm] for norm in TRAINED}
        table(found, timed).show(console)
        for line in (verdict(runs, task.metrics[0], timed), *_notes(task, found, timed)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def table(found: Comparison, timed: TimingRecord) -> Table:
    """Quality and time of every row, the time against both of torch's norms."""
    metric, times = found.task.metrics[0], timed.result.milliseconds
    quality = {each.norm: each for each in found.quality}
    rows = []
    for norm, label in ROWS.items():
        against = [Cell("") if norm == other else _cell(saved(times[other], times[norm])) for other in TORCHS]
        share = "" if norm == "none" else f"{100 * saved(times[norm], times['none']).median:.1f}"
        own: Cell | str = SAME[norm] if norm in SAME else quality_cell(quality[norm], metric)
        layer = spread(times["layer"]).median
        milliseconds = layer * (1 - saved(times["layer"], times[norm]).median)
        rows.append(Row(label, [own, f"{milliseconds:.1f}", *against, share]))
    return Table(
        ["", metric.label, "ms per\nstep", "saved, % of\nLayerNorm's", "saved, % of\nRMSNorm's", "norms, %\nof step"],
        rows,
    )


TORCHS = ("layer", "rms-torch")
"""What the other rows are compared with."""


def _cell(share: Spread) -> Cell:
    median, interval = percent(share)
    return Cell(median, (interval,) if interval else ())


def verdict(runs: Mapping[str, Sequence[RunRecord]], metric: Metric, timed: TimingRecord) -> str:
    """What the figures say, in one sentence. ``runs``: of no norm, LayerNorm and RMSNorm."""
    times = timed.result.milliseconds
    none, layer, rms = (_said(quality_row(norm, runs[norm]), metric) for norm in ("none", "layer", "rms"))
    needed = better(metric, runs["layer"], runs["none"])
    if needed is True:
        first = f"This network needs a norm ({none} without, {layer} with LayerNorm)"
    elif needed is None:
        first = f"It is not shown that this network needs a norm ({none} without, {layer} with LayerNorm)"
    else:
        first = f"This network learns best without a norm ({none}; {layer} with LayerNorm)"
    second = {
        True: f"RMSNorm is better than LayerNorm ({rms})",
        None: f"no difference is shown between RMSNorm and LayerNorm ({rms})",
        False: f"RMSNorm is worse than LayerNorm ({rms})",
    }[better(metric, runs["rms"], runs["layer"])]
    takes = " and ".join(
        f"{_time(saved(times[other], times['rms']))} torch's {name}"
        for other, name in (("layer", "LayerNorm"), ("rms-torch", "RMSNorm"))
    )
    return f"Verdict: {first}; {second}; with our RMSNorm a step takes {takes}."


def better(metric: Metric, ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> bool | None:
    """Whether our norm is better, paired by seed; None: no difference is shown.

    A norm all of whose runs diverged has no figure, and is worse than one that has.
    """
    if found := paired.difference(metric, ours, theirs):
        return found.better
    finished, other = (any(run.result.finished for run in runs) for runs in (ours, theirs))
    return None if finished == other else finished


def _said(row: QualityRow, metric: Metric) -> str:
    return f"{row.metrics[metric.key].mean:{metric.form}}" if metric.key in row.metrics else "diverged"


def _time(share: Spread) -> str:
    low, high = share.interval or (share.median, share.median)
    if low <= 0 <= high:
        return "as long as with"
    return f"{100 * abs(share.median):.1f} % {'less' if low > 0 else 'more'} than with"


def _notes(task: Task, found: Comparison, timed: TimingRecord) -> list[str]:
    runs, rounds = found.quality[0].runs, timed.result.rounds
    recipe = task.recipe
    rates = ", ".join(f"{ROWS[norm]} {recipe.learning_rate(norm):g}" for norm in TRAINED)
    return [
        f"quality: mean ± standard deviation of {runs} seeds; two figures differ if the 95 % interval of their "
        f"difference, paired by seed, excludes 0; learning rates: {rates}",
        f"time: {rounds} rounds, each a training step of every row on the same batch; saved: the median, relative to "
        + ("torch's LayerNorm and torch's RMSNorm, with its 95 % interval" if rounds >= FEWEST else "torch's norms"),
        f"pRMSNorm takes the RMS of the first {100 * recipe.p:g} % of the elements; norms, % of step: by leaving them "
        "out",
        f"picture: {found.plot}; rmsnorm demo --details prints more",
    ]
