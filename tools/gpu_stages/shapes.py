"""Stages 3, 6 and 8: the key shapes; ours, the copy and the peers are verified and then timed in turn.

Records have the bench's format and are appended to a file that `rmsnorm bench --from` reads.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu_stages import cases, host, sweep
from gpu_stages.serving import fresh_plans, served
from gpu_stages.stage import Item, Setting
from rmsnorm.spec import partial_count
from rmsnorm.torch.triton import choices
from rmsnorm_lab.bench import gpu_providers, providers, records, runner, torch_providers
from rmsnorm_lab.bench.cases import Case

RECORDS = "records.jsonl"
AGAIN = "records-winners.jsonl"
COMPILED = "records-compiled.jsonl"
OWN = {"rmsnorm": torch_providers.Ours(), "rmsnorm-full": torch_providers.OursFull()}
SHORT = 1 << 24  # bytes
PEERS = ("rmsnorm", "rmsnorm-full", "F.rms_norm", "F.layer_norm", "liger", "copy")


def items(setting: Setting) -> Iterator[Item]:
    """Stage 3; torch.compile comes last, because it takes seconds a case."""
    for case in cases.shapes(setting):
        yield str(case), partial(_measured, setting, case, PEERS, setting.folder / RECORDS)
    for case in cases.shapes(setting):
        plain = case.op == "rms_norm" and case.dtype == "bfloat16"
        if case.n in cases.COMPILED and plain and not setting.rehearsal:
            names = ("rmsnorm", "torch.compile", "copy")
            yield f"{case}, torch.compile", partial(_measured, setting, case, names, setting.folder / COMPILED)


def with_winners(setting: Setting) -> Iterator[Item]:
    """Stage 6: those cases of stage 3 whose launch choice the sweep changed, and pRMSNorm's table."""
    winners = sweep.winners(setting.folder)
    for case in cases.shapes(setting):
        for kind in sweep.kinds(case):
            if (choice := winners.get(sweep.key(case, kind))) is not None:
                yield f"{case}: {kind}", partial(_chosen, setting, case, kind, choice)
    for case in cases.partial(setting):
        yield str(case), partial(_partial, setting, case)


def beside_quack(setting: Setting) -> Iterator[Item]:
    """Stage 8, in a process of its own: newer torch uses quack's kernels for F.rms_norm once they can be imported."""
    names = ("rmsnorm", "quack", "copy")
    if why := gpu_providers.Quack().missing():
        yield "quack", lambda: {"skipped": why}
        return
    for case in cases.shapes(setting):
        if case.n in cases.BESIDE_QUACK and case.op in ("rms_norm", "add_rms_norm") and case.dtype == "bfloat16":
            yield str(case), partial(_measured, setting, case, names, setting.folder / RECORDS)


def _chosen(setting: Setting, case: Case, kind: str, choice: Any) -> dict[str, Any]:
    with sweep.chosen(case, kind, choice):
        return _measured(setting, case, ("rmsnorm", "copy"), setting.folder / AGAIN)


def _partial(setting: Setting, case: Case) -> dict[str, Any]:
    """pRMSNorm beside RMSNorm. Calls shorter than the host's cost are also replayed from a CUDA graph."""
    names = ("rmsnorm", "rmsnorm-full", "copy")
    found = _measured(setting, case, names, setting.folder / RECORDS)
    if case.bytes <= SHORT and not setting.rehearsal:
        found["graph_us"] = {name: host.replayed(case, provider) for name, provider in OWN.items()}
        if case.direction == "forward" and partial_count(case.n, case.p) <= choices.HEAD:
            with sweep.chosen(case, "stream", sweep.other_kernel(case)), fresh_plans({}):
                found["graph_us"]["the other kernel"] = host.replayed(case, OWN["rmsnorm"])
    return found


def _measured(setting: Setting, case: Case, names: Iterable[str], path: Path) -> dict[str, Any]:
    wanted = providers.choose([p for p in providers.all_providers(1) if "cuda" in p.devices], list(names))
    missing = {p.name: why for p in wanted if (why := p.missing())}
    installed = [p for p in wanted if p.name not in missing]
    own: dict[Any, Any] = {}
    with fresh_plans(own):
        record = runner.run_case(case, installed, setting.plan, lambda what: None)
    record.skipped.update(missing)
    records.append(path, record)
    times = {name: round(result.median_ns / 1e3, 2) for name, result in record.results.items()}
    copied = record.results.get("copy")
    shares = {name: round(copied.median_ns / r.median_ns, 3) for name, r in record.results.items()} if copied else {}
    return {"us": times, "share_of_copy": shares, "wrong": record.wrong, **served(setting, own)}
