"""The session on one page: failures, each case's share of the copy's bandwidth, and launch choices to change."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]


def markdown(lines: Sequence[Line]) -> str:
    parts = [_machine(lines), _counts(lines), _failures(lines), _shares(lines), _replayed(lines)]
    parts += [_host(lines), _winners(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of(lines: Sequence[Line], *stages: str) -> list[Line]:
    return [line for line in lines if line["stage"] in stages]


def _machine(lines: Sequence[Line]) -> str:
    found = {line["item"]: line for line in _of(lines, "machine")}
    known = found.get("versions", {})
    name = known.get("machine", {}).get("gpu", "unknown device")
    packages = ", ".join(f"{name} {version}" for name, version in known.get("packages", {}).items())
    copies = ", ".join(f"{item}: {line['gb_a_second']} GB/s" for item, line in found.items() if "gb_a_second" in line)
    lacking = [f"**In Python**: {why}" for key in ("why_no_native", "why_no_nodes") if (why := known.get(key))]
    return "\n\n".join([f"# {name}", packages, copies, *lacking])


def _counts(lines: Sequence[Line]) -> str:
    """Items of each stage: run, failed, not reached, wrong, declined by the kernels."""
    rows = ["| stage | items | failed | wrong | declined | not reached |", "|---|---|---|---|---|---|"]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = _of(lines, stage)
        late = sum("not reached" in line.get("error", "") for line in own)
        failed = sum("error" in line for line in own) - late
        wrong = sum(bool(line.get("wrong")) for line in own)
        declined = sum(line.get("served") is False for line in own)
        rows.append(f"| {stage} | {len(own)} | {failed} | {wrong} | {declined} | {late} |")
    return "\n".join(rows)


def _failures(lines: Sequence[Line], most: int = 40) -> str:
    said = [
        f"- {line['stage']}: {line['item']}: {line['error']}"
        for line in lines
        if "error" in line and "not reached" not in line["error"]
    ]
    said += [
        f"- {line['stage']}: {line['item']}: {name}: {why}"
        for line in lines
        for name, why in line.get("wrong", {}).items()
    ]
    said += [f"- {line['stage']}: {line['item']}: warned: {text}" for line in lines for text in line.get("warned", ())]
    kinds = Counter(text.split(": ", 2)[-1][:80] for text in said)
    shown = said[:most] + ([f"- and {len(said) - most} more of {len(kinds)} kinds"] if len(said) > most else [])
    return "**Failed**\n\n" + "\n".join(shown) if shown else ""


def _shares(lines: Sequence[Line]) -> str:
    """Each case against the copy of the same bytes: 1 is the copy's speed."""
    timed = [line for line in _of(lines, "shapes", "winners", "quack") if line.get("share_of_copy")]
    names = list(dict.fromkeys(name for line in timed for name in line["share_of_copy"] if name != "copy"))
    if not names:
        return ""
    rows = ["| case, share of the copy's speed | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for line in timed:
        cells = (str(line["share_of_copy"].get(name, "")) for name in names)
        rows.append(f"| {line['stage']}: {line['item']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _replayed(lines: Sequence[Line]) -> str:
    """pRMSNorm's short calls, replayed from a graph: microseconds of each kernel."""
    timed = [line for line in _of(lines, "winners") if line.get("graph_us")]
    names = list(dict.fromkeys(name for line in timed for name in line["graph_us"]))
    rows = ["| from a graph, us | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    rows += [
        f"| {line['item']} | " + " | ".join(str(line["graph_us"].get(name, "")) for name in names) + " |"
        for line in timed
    ]
    return "\n".join(rows) if timed else ""


def _host(lines: Sequence[Line]) -> str:
    timed = [line for line in _of(lines, "host") if "host_us" in line]
    rows = ["| a small call | host, us | from a graph, us |", "|---|---|---|"]
    rows += [f"| {line['item']} | {line['host_us']} | {line.get('graph_us', '')} |" for line in timed]
    return "\n".join(rows) if timed else ""


def _winners(lines: Sequence[Line]) -> str:
    """The fastest choice of each swept case, with its time over the default's."""
    rows = []
    for line in _of(lines, "sweep"):
        if line.get("ratios"):
            best = min(line["ratios"], key=line["ratios"].__getitem__)
            rows.append(f"| {line['item']} | {line['ratios'][best]} | {best} | {line['default']} |")
    if not rows:
        return ""
    return "\n".join(["| swept | time over the default's | choice | default |", "|---|---|---|---|", *rows])
