"""Records of models and chains as tables: the time of each variant over that of the one it is compared with."""

from collections.abc import Callable, Sequence

from rmsnorm.timing import Spread, paired_ratios, spread
from rmsnorm_lab.bench.chain_cases import PAIRS
from rmsnorm_lab.bench.records import Record
from rmsnorm_lab.table import Row, Table

COMPARED = {
    "swapped": "stock",
    "no-norm": "stock",
    "accelerated": "nn.RMSNorm",
    "compiled": "stock",
    "compiled-swapped": "compiled",
    "chain-rms_norm": "chain-F.rms_norm",
    "chain-add_rms_norm": "chain-F.rms_norm",
}
"""Each variant, and the one whose time it is divided by."""


_CHAINS = ("chain-F.rms_norm", "chain-rms_norm", "chain-add_rms_norm")
_MODELS = [name for name in COMPARED if name not in _CHAINS]


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
        what = "one token" if case.rows == 1 else f"{'training step' if case.backward else 'prefill'} of {case.rows}"
        label = f"{case.n}, {case.dtype}, {case.threads}: {what}"
        stock = duration(record.results["stock"].median_ns) if "stock" in record.results else "–"
        rows.append(Row(label, [stock, *(found.get(name, "–") for name in _MODELS)]))
    headings = ["hidden size, dtype, threads", "stock", *(f"{name} ÷ {COMPARED[name]}" for name in _MODELS)]
    return Table(headings, rows, title="Llama: time of a step, ratios with 95 % intervals")


def chain_table(records: Sequence[Record], duration: Callable[[float], str]) -> Table:
    """The same for compiled chains; a time is one link's, an addition and a norm."""
    rows = []
    for record in records:
        case, found, stock = record.case, model_ratios(record), record.results.get(_CHAINS[0])
        label = f"{case.shape.replace('x', ' × ')}, {case.dtype}, {case.direction}"
        time = duration(stock.median_ns / PAIRS) if stock else "–"
        rows.append(Row(label, [time, *(found.get(name, "–") for name in _CHAINS[1:])]))
    threads = ", ".join(str(t) for t in dict.fromkeys(record.case.threads for record in records))
    headings = ["shape, dtype, direction", "a link of F.rms_norm", "rms_norm ÷ it", "add_rms_norm ÷ it"]
    return Table(headings, rows, title=f"Compiled chains: ratios with 95 % intervals; threads: {threads}")


def _ratio(found: Spread) -> str:
    """``0.90 [0.88, 0.91]``."""
    if found.interval is None:
        return f"{found.median:.2f}"
    low, high = found.interval
    return f"{found.median:.2f} [{low:.2f}, {high:.2f}]"
