"""What tells the experiments of one task apart, for their headings."""

from collections.abc import Sequence
from typing import Any

from rmsnorm_lab.experiments.data.official import is_drawn
from rmsnorm_lab.plain import to_plain
from rmsnorm_lab.report.collect import Experiment


def apart(experiment: Experiment, experiments: Sequence[Experiment]) -> str:
    """What a heading says after the task: the steps, and every setting in which the task's experiments differ."""
    if experiment.train is None:
        setting = experiment.setting
        size = [] if setting.size == "small" else [f"{setting.size} size"]
        of = [] if setting.source.stand_in and not is_drawn(setting.source) else [experiment.source_name]
        return ", ".join(["times alone", *size, *of, *([] if setting.device == "cpu" else [setting.device])])
    own = _leaves(experiment)
    others = [_leaves(each) for each in experiments if each.task == experiment.task and each.train is not None]
    differing = [name for name, value in own.items() if any(other.get(name) != value for other in others)]
    hidden = ("steps", "stand_in", "sha256", "details")  # shown by a badge, or by the data's name
    shown = [
        f"{name.replace('_', ' ')} {own[name]}" for name in differing if name not in hidden and own[name] is not None
    ]
    if "sha256" in differing:
        shown.insert(0, f"{experiment.source_name} ({own['sha256'][:8]})")
    return ", ".join([f"{experiment.train.steps:,} steps", *shown])


def _leaves(experiment: Experiment) -> dict[str, Any]:
    setting = experiment.setting
    settings = {name: getattr(setting, name) for name in ("size", "device", "precision")}
    return {
        **settings,
        "processes": experiment.processes,
        **to_plain(setting.source),
        **setting.model,
        **(setting.data or {}),
        **experiment.training,
    }
