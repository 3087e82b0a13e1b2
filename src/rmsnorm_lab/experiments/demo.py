"""The demonstration: one network with each norm, in one table, one picture and one sentence.

Rows are implementations, because that is what people choose between. RMSNorm is one function, and is trained once; its
two implementations are timed.
"""

import argparse
from collections.abc import Mapping, Sequence

from rmsnorm.timing import FEWEST, Spread, saved, spread
from rmsnorm_lab.experiments import interrupts, tasks
from rmsnorm_lab.experiments.comparing import compared, do, output
from rmsnorm_lab.experiments.comparison import Comparison, quality_cell, show_quality, show_times
from rmsnorm_lab.experiments.devices import setup_of
from rmsnorm_lab.experiments.jobs import Job, timings, training
from rmsnorm_lab.experiments.recipes import translation
from rmsnorm_lab.experiments.record import TimingRecord, timings_of
from rmsnorm_lab.experiments.store import opened
from rmsnorm_lab.experiments.summary import Quality, QualityRow, percent
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
        table(found, timed).show(console)
        for line in (verdict(found.quality, task.metrics[0], timed), *_notes(task, found, timed)):
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


def verdict(quality: Sequence[QualityRow], metric: Metric, timed: TimingRecord) -> str:
    """What the figures say, in one sentence."""
    of = {each.norm: each for each in quality}
    figures = {norm: each.metrics.get(metric.key) for norm, each in of.items()}
    times = timed.result.milliseconds
    none, layer, rms = (_said(figures[norm], metric) for norm in ("none", "layer", "rms"))
    needed = better(figures["layer"], figures["none"], metric)
    if needed is True:
        first = f"This network needs a norm ({none} without, {layer} with LayerNorm)"
    elif needed is None:
        first = f"No norm makes a difference to this network's quality ({none} without, {layer} with LayerNorm)"
    else:
        first = f"This network learns best without a norm ({none}; {layer} with LayerNorm)"
    ranks = {True: "better than", None: "as good as", False: "worse than"}
    second = f"RMSNorm is {ranks[better(figures['rms'], figures['layer'], metric)]} LayerNorm ({rms})"
    takes = " and ".join(
        f"{_time(saved(times[other], times['rms']))} torch's {name}"
        for other, name in (("layer", "LayerNorm"), ("rms-torch", "RMSNorm"))
    )
    return f"Verdict: {first}; {second}; with our RMSNorm a step takes {takes}."


def better(ours: Quality | None, theirs: Quality | None, metric: Metric) -> bool | None:
    """Whether our mean is better by more than both standard deviations together; None: neither is.

    A norm all of whose runs diverged has no figure, and is worse than one that has.
    """
    if ours is None or theirs is None:
        return None if ours is theirs else ours is not None
    ahead = (ours.mean - theirs.mean) * (1 if metric.higher_is_better else -1)
    return None if abs(ahead) <= (ours.sd or 0) + (theirs.sd or 0) else ahead > 0


def _said(figure: Quality | None, metric: Metric) -> str:
    return "diverged" if figure is None else f"{figure.mean:{metric.form}}"


def _time(share: Spread) -> str:
    low, high = share.interval or (share.median, share.median)
    if low <= 0 <= high:
        return "as long as with"
    return f"{100 * abs(share.median):.1f} % {'less' if low > 0 else 'more'} than with"


def _notes(task: Task, found: Comparison, timed: TimingRecord) -> list[str]:
    runs, rounds = found.quality[0].runs, timed.result.rounds
    recipe = task.recipe
    rates: Mapping[str, float] = {ROWS[norm]: recipe.learning_rate(norm) for norm in TRAINED}
    return [
        f"quality: mean ± standard deviation of {runs} seeds; two figures differ if they are further apart than both "
        f"deviations together; learning rates: {', '.join(f'{norm} {rate:g}' for norm, rate in rates.items())}",
        f"time: {rounds} rounds, each a training step of every row on the same batch; saved: the median, relative to "
        + ("torch's LayerNorm and torch's RMSNorm, with its 95 % interval" if rounds >= FEWEST else "torch's norms"),
        f"pRMSNorm takes the RMS of the first {100 * recipe.p:g} % of the elements; norms, % of step: by leaving them "
        "out",
        f"picture: {found.plot}; rmsnorm demo --details prints more",
    ]
