"""One sentence of what each experiment shows of RMSNorm against LayerNorm, and one for all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rmsnorm.timing import Spread
from rmsnorm_lab.experiments import paired
from rmsnorm_lab.experiments.paired import Difference
from rmsnorm_lab.experiments.record import TimingRecord
from rmsnorm_lab.experiments.summary import percent, time_row
from rmsnorm_lab.report.collect import Experiment
from rmsnorm_lab.table import count

AGAINST = {
    "unfused": "with norms in framework operators",
    "rmsnorm": "with this project's kernels for both",
    "best": "against torch's LayerNorm",
}
"""Setting -> how a sentence names it."""


@dataclass(frozen=True)
class Verdict:
    """What an experiment shows of RMSNorm against LayerNorm."""

    quality: str
    """A clause; empty if one of them alone was trained."""
    difference: Difference | None
    saved: dict[str, Spread]
    """Setting -> share of LayerNorm's step, where both were timed."""
    timings: dict[str, TimingRecord] = field(default_factory=dict)
    """Setting -> the record of that share; experiments that differ in their training alone have it in common."""

    @property
    def sentence(self) -> str:
        clauses = [self.quality] if self.quality else ["RMSNorm and LayerNorm were not both trained"]
        clauses += [_saving(share, AGAINST[kernels]) for kernels, share in self.saved.items()]
        return _capital("; ".join(clauses)) + "."


def verdict(experiment: Experiment) -> Verdict:
    """Of the runs of the first setting that has both norms."""
    quality, found = "" if experiment.lines else "nothing was trained", None
    for kernels in experiment.lines:
        of = {line.norm: line.records for line in experiment.main(kernels)}
        if "rms" in of and "layer" in of:
            metric = experiment.result.metrics[0]
            quality = paired.said(metric, "rms", of["rms"], "layer", of["layer"])
            found = paired.difference(metric, of["rms"], of["layer"])
            break
    saved = {}
    for kernels, timing in experiment.timings.items():
        if "rms" in timing.identity.norms and (share := time_row("rms", timing).saved):
            saved[kernels] = share
    return Verdict(quality, found, saved, {kernels: experiment.timings[kernels] for kernels in saved})


def _saving(share: Spread, against: str) -> str:
    median, interval = percent(share)
    outcome = quicker(share)
    if not interval:
        return f"too few rounds show a saving {against} ({median} %)"
    if outcome is None:
        return f"no saving is shown {against} ({median} % {interval})"
    if outcome:
        return f"RMSNorm saves {median} % {interval} of a step {against}"
    return f"RMSNorm takes longer {against} (it saves {median} % {interval} of a step)"


def quicker(share: Spread) -> bool | None:
    """Whether time is saved; None: the interval holds 0, as it is printed, or there is none."""
    if share.interval is None:
        return None
    low, high = (round(100 * bound, 1) for bound in share.interval)
    return None if low <= 0 <= high else low > 0


def of_all(tasks: Sequence[str], found: Sequence[Verdict]) -> str:
    """The sentence for the whole page. ``tasks``: of each verdict."""
    clauses = []
    decided = [(task, each.difference.better) for task, each in zip(tasks, found, strict=True) if each.difference]
    if decided:
        parts = []
        for outcome, words in ((None, "no difference from LayerNorm is shown"), (True, "better"), (False, "worse")):
            where = list(dict.fromkeys(task for task, better in decided if better is outcome))
            number = sum(better is outcome for _, better in decided)
            if number:
                tasks_of_it = "" if outcome is None else f" ({', '.join(where)})"
                parts.append(f"{words} in {number} of {count(len(decided), 'experiment')}{tasks_of_it}")
        clauses.append(f"RMSNorm's quality: {', '.join(parts)}")
    for kernels, words in AGAINST.items():
        shares = _of_each_timing(found, kernels)
        if not shares:
            continue
        parts = []
        for outcome, verb in ((True, "saves"), (False, "costs")):
            of = sorted(abs(100 * share.median) for share in shares if quicker(share) is outcome)
            if of:
                ends = dict.fromkeys(f"{end:.1f}" for end in (of[0], of[-1]))  # one where they round to the same
                parts.append(f"{verb} {' to '.join(ends)} % of a step in {len(of)} of {len(shares)}")
        if not parts:
            parts = [f"shows no saving in {len(shares)} of {len(shares)}"]
        clauses.append(f"{words} RMSNorm {' and '.join(parts)}")
    return _capital("; ".join(clauses) or "no experiment has both RMSNorm and LayerNorm") + "."


def _of_each_timing(found: Sequence[Verdict], kernels: str) -> list[Spread]:
    """The shares, that of each record once."""
    with_share = [each for each in found if kernels in each.saved]
    return list({id(each.timings.get(kernels, each)): each.saved[kernels] for each in with_share}.values())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
