"""Quality against the number k of elements that pRMSNorm takes, for networks of several widths, from records."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rmsnorm.spec import partial_count
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.record import RunIdentity, RunRecord
from rmsnorm_lab.experiments.summary import QualityRow, quality_row
from rmsnorm_lab.experiments.task import Metric

WIDTHS = ("width", "hidden")
"""What the models of the tasks call the width of their vectors."""


@dataclass(frozen=True)
class Sweep:
    """The runs of one task with pRMSNorm."""

    task: str
    metric: Metric
    widths: dict[int, dict[int, QualityRow]]
    """Width -> k -> quality over seeds, both rising; at k = width it is RMSNorm."""


def sweeps(records: Sequence[RunRecord]) -> list[Sweep]:
    """A sweep for each task, from all of its runs with pRMSNorm.

    Raises:
        UserError: there are none, or runs of one task and width differ in more than p and the seed.
    """
    runs: dict[tuple[str, int], dict[int, list[RunRecord]]] = {}
    settings: dict[tuple[str, int], RunIdentity] = {}
    for record in records:
        identity = record.identity
        if identity.norm != "prms" or identity.p is None:
            continue
        width = next((identity.model[name] for name in WIDTHS if name in identity.model), None)
        if width is None:
            raise UserError(f"--quality needs networks of one width; those of {record.task} have none. Leave them out.")
        alike = replace(identity, p=None, seed=0)
        if settings.setdefault((record.task, width), alike) != alike:
            raise UserError(
                f"--quality needs runs that differ in p, seed and width alone; those of {record.task} at width {width} "
                "differ in other settings. Keep them in another folder."
            )
        runs.setdefault((record.task, width), {}).setdefault(partial_count(width, identity.p), []).append(record)
    if not runs:
        raise UserError("--quality needs runs with pRMSNorm; there are none. Make them by rmsnorm compare --sweep-p.")
    found: dict[str, Sweep] = {}
    for (task, width), by_k in sorted(runs.items()):
        metric = next(iter(by_k.values()))[0].result.metrics[0]
        rows = {k: quality_row("prms", by_k[k]) for k in sorted(by_k)}
        found.setdefault(task, Sweep(task, metric, {})).widths[width] = rows
    return list(found.values())
