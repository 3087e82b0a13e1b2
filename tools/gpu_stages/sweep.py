"""Stage 5: other launch choices than those of choices.py, verified and timed; faster ones go to winners.json."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from gpu_stages import cases
from gpu_stages.serving import fresh_plans, require_served
from gpu_stages.stage import Item, Setting
from rmsnorm.spec import partial_count
from rmsnorm.timing import measure, paired_ratios
from rmsnorm.torch.triton import choices, plans
from rmsnorm.torch.triton.choices import Choice
from rmsnorm_lab.bench import cuda, runner
from rmsnorm_lab.bench.cases import DTYPES, Case
from rmsnorm_lab.bench.torch_providers import Ours

FILE = "winners.json"
ENOUGH = 0.98  # another choice wins if it takes at most this share of the default's time
FACTORS = {"rows": (0.5, 2.0, 4.0), "warps": (0.5, 2.0), "block": (0.5, 2.0), "programs": (0.5, 4 / 3, 2.0)}
STAGES = (1, 2, 3, 4)
LIMITS = (96, 128)  # registers of a forward kernel, which has no limit by default; at 72 all spill
MOST_WARPS, LEAST_BLOCK = 32, 256
MOST_HELD = 2  # times the default's elements a thread: what holds more spills, and takes up to 12 s to compile
LONG = 1 << 20  # a row that fits into no registers


def items(setting: Setting) -> Iterator[Item]:
    for case in cases.swept(setting):
        for kind in kinds(case):
            yield f"{case}: {kind}", partial(_swept, setting, case, kind)


def key(case: Case, kind: str) -> str:
    """What a choice depends on: operation, kernel, length and dtype. An addition shares those of the norm alone."""
    return f"{'rms_norm' if case.adds else case.op} {kind} {case.n} {case.dtype}"


def kinds(case: Case) -> tuple[str, ...]:
    """The functions of choices.py that decide, each for one kernel."""
    if case.op == "rms_norm_gated":
        return ("gated_backward" if case.backward else "gated_forward",)
    if case.op == "rms_norm_quantized":
        return ("quantized",)
    if not case.backward:
        return ("forward",) if case.p == 1 else ("stream",)
    return ("backward",) if choices.backward(case.n, DTYPES[case.dtype]) else ("backward_columns", "backward_rows")


def default(case: Case, kind: str) -> Choice | None:
    length = case.n, DTYPES[case.dtype]
    if kind == "stream":
        return choices.stream(case.n, partial_count(case.n, case.p), length[1])
    if kind == "forward":
        return choices.forward(*length, alone=case.op == "rms_norm")
    if kind == "backward" and case.op == "layer_norm":
        return choices.backward(*length, centred=True, sums=2)
    return getattr(choices, kind)(*length[_any_length(kind) :])


def _any_length(kind: str) -> bool:
    """Whether one choice serves all lengths, so that the function's first argument is not a length."""
    return kind in ("backward_columns", "backward_rows")


def other_kernel(case: Case) -> Choice | None:
    """pRMSNorm's forward pass by the kernel that does not serve by default; None is RMSNorm's."""
    return choices.stream(LONG, 1, DTYPES[case.dtype]) if default(case, "stream") is None else None


def candidates(case: Case, kind: str) -> list[Choice | None]:
    """The default and its neighbours: one field changed, or two that keep a thread's share or a multiprocessor's."""
    found: dict[Choice | None, None] = {default(case, kind): None}
    base = default(case, kind)
    if kind == "stream":
        found[other_kernel(case)] = None
        base = base or other_kernel(case)
    assert base is not None
    if kind == "forward":
        base = choices.forward(case.n, DTYPES[case.dtype])
        found[base] = None
        kernels = (choices.persistent, choices.parts) if case.op == "rms_norm" else (choices.persistent,)
        for other in kernels:
            if (choice := other(case.n, DTYPES[case.dtype])) is not None:
                found[choice] = None
                if choice.programs:
                    found |= {replace(choice, stages=stages): None for stages in (3, 4)}
    for change in _changes(base, kind):
        choice = replace(base, **change)
        long_enough = not choice.looped or choice.block >= LEAST_BLOCK
        several = choice.rows > 1 and choice.looped  # a looped kernel has one row a program
        if not all(change.values()) or choice.warps > MOST_WARPS or several or not long_enough:
            continue
        choice = choices.resident(choice, 32) if choice.programs else choice
        if _held(choice) <= MOST_HELD * _held(base) and _fits(choice):
            found[choice] = None
    return list(found)


def _changes(base: Choice, kind: str) -> Iterator[dict[str, int]]:
    fields = [name for name in FACTORS if getattr(base, name) and (name != "block" or base.looped)]
    if kind == "backward_rows":
        fields.remove("programs")  # its grid is not of resident programs
    factors: list[dict[str, float]] = [{name: factor} for name in fields for factor in FACTORS[name]]
    if not base.looped:
        factors += [{"rows": r, "warps": w} for r in FACTORS["rows"] for w in FACTORS["warps"]]
    if "programs" in fields:
        factors += [{"warps": w, "programs": 1 / w} for w in FACTORS["warps"]]
    for factor in factors:
        yield {name: int(getattr(base, name) * by) for name, by in factor.items()}
    if base.programs or (kind == "forward" and base.looped):
        # With three, rows that are read twice would take 300 KB of shared memory.
        yield from ({"stages": stages} for stages in STAGES if base.hold or stages < 3)
    if kind == "forward":
        yield from ({"registers": most} for most in LIMITS)


def _held(choice: Choice) -> float:
    """Elements that a thread holds of each operand."""
    return choice.block * choice.rows / (32 * choice.warps)


def _fits(choice: Choice) -> bool:
    """Whether a backward kernel's x, dy, gain and sum can have registers; or two of them where rows are read again."""
    return not choice.programs or _held(choice) * (4 if choice.hold else 2) < (choice.registers or 255)


@contextmanager
def chosen(case: Case, kind: str, choice: Choice | None) -> Iterator[None]:
    """``choice`` for every row of the case's length and direction."""
    usual, own = getattr(choices, kind), None if _any_length(kind) else case.n
    setattr(choices, kind, lambda m, *args: choice if own in (None, m) else usual(m, *args))
    try:
        yield
    finally:
        setattr(choices, kind, usual)


def _swept(setting: Setting, case: Case, kind: str) -> dict[str, Any]:
    inputs, provider = runner.make_inputs(case), Ours()
    calls: dict[str, Callable[[], Any]] = {}
    by_name: dict[str, Choice | None] = {}
    failed: dict[str, str] = {}
    oracles: dict[Any, Any] = {}
    for choice in candidates(case, kind):
        name, own = _name(choice), {}
        try:
            with chosen(case, kind, choice), fresh_plans(own), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                prepared = provider.build(case, inputs)
                cuda.poison(inputs)
                runner.verify(provider, prepared, case, inputs, oracles)
                require_served(setting, own, warned)
        except Exception as error:  # a kernel that does not compile, say
            failed[name] = runner.reason(error)
            continue
        calls[name], by_name[name] = partial(_call_with, own, prepared.call), choice
    plan = replace(setting.plan, sample_ns=min(setting.plan.sample_ns, 5e6), rounds=(5, 7))
    drop = lambda name, error: failed.update({name: runner.reason(error)})  # noqa: E731
    times = measure(calls, plan, sample=cuda.sample, drop=drop)
    usual = times.pop(_name(default(case, kind)), None)
    if not usual:
        return {"error": "the default choice failed", "failed": failed}
    ratios = {name: round(median(paired_ratios(series, usual)), 4) for name, series in times.items()}
    best = min(ratios, key=ratios.__getitem__, default=None)
    if best is not None and ratios[best] <= ENOUGH:
        found = {"choice": by_name[best] and asdict(by_name[best]), "time_over_default": ratios[best]}
        _keep(setting.folder / FILE, key(case, kind), found)
    return {
        "default": _name(default(case, kind)),
        "default_us": round(median(usual) / 1e3, 2),
        "ratios": ratios,
        "failed": failed,
    }


def _name(choice: Choice | None) -> str:
    return "RMSNorm's kernel" if choice is None else " ".join(f"{name}={v}" for name, v in asdict(choice).items())


def _call_with(own: dict[Any, Any], call: Callable[[], Any]) -> Any:
    plans.plans = own
    return call()


def _keep(path: Path, name: str, choice: dict[str, Any]) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | {name: choice}, indent=2) + "\n")


def winners(folder: Path) -> dict[str, Choice]:
    """The sweep's winners, by key()."""
    path = folder / FILE
    found = json.loads(path.read_text()) if path.exists() else {}
    return {
        name: Choice(**won["choice"] | {"rest": tuple(won["choice"]["rest"])})
        for name, won in found.items()
        if won["choice"]
    }
