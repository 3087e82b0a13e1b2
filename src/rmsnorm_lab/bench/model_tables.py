"""Records of whole models as tables: the time of each variant over that of the model it is compared with."""

from collections.abc import Callable, Sequence

from rmsnorm.timing import Spread, paired_ratios, spread
from rmsnorm_lab.bench.records import Record
from rmsnorm_lab.table import Row, Table

COMPARED = {
    "swapped": "stock",
    "no-norm": "stock",
    "accelerated": "nn.RMSNorm",
    "compiled": "stock",
    "compiled-swapped": "compiled",
}
"""Each variant, and the model whose time it is divided by."""


def model_ratios(record: Record) -> dict[str, str]:
    """For each of ``COMPARED`` that was timed, the median of the paired ratios and its 95 % interval."""
    times = {name: result.times_ns for name, result in record.results.items()}
    return {
        name: _ratio(spread(paired_ratios(times[name], times[base])))
        for name, base in COMPARED.items()
        if name in times and base in times
    }


def model_table(records: Sequence[Record], duration: Callable[[float], str]) -> Table:
    """A row for each record; ``duration`` writes a time."""
    rows = []
    for record in records:
        case, found = record.case, model_ratios(record)
        what = "training step" if case.backward else "one token" if case.rows == 1 else f"prefill of {case.rows}"
        label = f"{case.n}, {case.dtype}, {case.threads}: {what}"
        stock = duration(record.results["stock"].median_ns) if "stock" in record.results else "–"
        rows.append(Row(label, [stock, *(found.get(name, "–") for name in COMPARED)]))
    headings = ["hidden size, dtype, threads", "stock", *(f"{name} ÷ {base}" for name, base in COMPARED.items())]
    return Table(headings, rows, title="Llama: time of a step, ratios with 95 % intervals")


def _ratio(found: Spread) -> str:
    """``0.90 [0.88, 0.91]``."""
    if found.interval is None:
        return f"{found.median:.2f}"
    low, high = found.interval
    return f"{found.median:.2f} [{low:.2f}, {high:.2f}]"
