"""What the page says in words beside an experiment's tables: its settings, and notes on its runs."""

import re
from collections.abc import Sequence
from typing import Any

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.comparison import in_words
from rmsnorm_lab.experiments.summary import mixed_machines
from rmsnorm_lab.report.collect import Experiment, Line


def facts(experiment: Experiment) -> list[tuple[str, str]]:
    setting, train = experiment.setting, experiment.train
    source = setting.source
    details = [f"{key} {in_words(value)}" for key, value in source.details.items()]
    return [
        ("data", _short(", ".join([experiment.source_name, *details, f"sha256 {source.sha256}"]))),
        ("setting", f"{setting.size} size, {setting.device}, {setting.precision}"),
        ("model", _settings({**setting.model, **(setting.data or {})})),
        ("training", _settings(experiment.training) if train else f"batch {experiment.batch}; nothing was trained"),
    ]


def _short(text: str) -> str:
    """Hashes in it cut to 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}\b", r"\1", text)


def _settings(settings: dict[str, Any]) -> str:
    """'width 128, layers 3': all settings that are not off."""
    shown = {name: value for name, value in settings.items() if value is not None and value is not False}
    return ", ".join(
        f"{name.replace('_', ' ')}" + ("" if value is True else f" {value}") for name, value in shown.items()
    )


def notes(experiment: Experiment, kernels: str, swept: Sequence[Line]) -> list[str]:
    """Notes to the tables of one setting's runs. ``swept``: the lines that a sweep shows."""
    main = experiment.main(kernels)
    rates: dict[float, list[str]] = {}
    for line in main:
        rates.setdefault(line.learning_rate, []).append(norms.label(line.norm))
    learned = "; ".join(f"{rate:g}" + ("" if len(rates) == 1 else f" ({', '.join(of)})") for rate, of in rates.items())
    found = [f"learning rate {learned}"]
    if mean := experiment.setting.model.get("init_mean"):
        found.append(
            f"weights drawn around {mean:g} instead of 0, as in the paper's Fig. 4, where LayerNorm creeps from 1.4 to "
            "3.8 BLEU and RMSNorm climbs from 3.0 to 16.8"
        )
    found += [f"pRMSNorm of the first {100 * line.p:g} %" for line in main if line.p is not None]
    sources = {norms.label(line.norm): line.records[0].norm_source for line in main}
    found += [f"{name} is {source}" for name, source in sources.items() if source is not None]
    form = experiment.result.metrics[0].form
    found += [f"{name} would give {value:{form}}" for name, value in experiment.result.references.items()]
    others = [line for line in experiment.lines[kernels] if line not in main]
    if elsewhere := [line for line in others if line not in swept]:
        listed = [
            norms.label(line.norm)
            + ("" if line.p is None else f" of the first {100 * line.p:g} %")
            + f" at {line.learning_rate:g}"
            for line in elsewhere
        ]
        found.append(f"also recorded, not shown: {', '.join(listed)}")
    if mixed := mixed_machines(experiment.records):
        found.append(f"the records differ in {'; '.join(mixed)}")
    return found
