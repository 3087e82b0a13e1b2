"""One profile of a model: its step is tried in every variant, then timed in rounds, then reported."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from statistics import median
from time import monotonic, perf_counter_ns
from typing import Any

import torch
from torch import nn

from rmsnorm.timing import Call, Plan, Spread, Within, measure, saved, spread
from rmsnorm.torch.accelerate import accelerate
from rmsnorm.torch.profile.kept import Kept
from rmsnorm.torch.profile.report import NormCost, NormProfile
from rmsnorm.torch.profile.variants import Calls, Functions, forwards, recorded, without
from rmsnorm.torch.swap import Row, swap_norms

Step = Callable[[nn.Module], object]
Variants = dict[str, Callable[[], AbstractContextManager[Any]]]
Progress = Callable[[str, float | None], None]

MODEL, SWAPPED, ACCELERATED, BARE = "model", "swap_norms", "accelerate", "no norms"
FEWEST_ROUNDS, MOST_ROUNDS = 7, 1000
SAMPLE_NS, LEAD_NS = 2e7, 5e7
_OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)


class Profiler:
    """One profile: the step tried in every variant, then timed."""

    def __init__(self, model: nn.Module, step: Step, kept: Kept, tell: Progress) -> None:
        self.model, self.kept, self.tell = model, kept, tell
        self.call = partial(step, model)
        self.notes: list[str] = []

    def profile(self, seconds: float, rounds: int | None) -> NormProfile:
        self.tell("looking for norms", None)
        by_name = dict(self.model.named_modules())
        classes = {module: type(module) for module in by_name.values()}
        with swap_norms(self.model) as swapped:
            served = {module: type(module) for module, kind in classes.items() if type(module) is not kind}
        rows = {by_name[row.name]: row for row in swapped.rows}

        self.tell("trying the step", None)
        with recorded(rows) as calls, Functions() as functions:
            self.call()
        self.kept.learn()
        groups = _groups(rows, calls)
        self._note_others(rows, calls, functions.calls)

        variants: Variants = {MODEL: nullcontext}
        if any(module in served for group in groups for module in group):
            variants[SWAPPED] = partial(_of_classes, served)
        if functions.calls["F.rms_norm"]:
            variants[ACCELERATED] = accelerate
        names = _names(groups, rows)
        variants |= self._without(groups, names, calls)
        variants = {name: context for name, context in variants.items() if self._holds(name, context, rows, calls)}
        times = self._times(variants, seconds, rounds)
        return self._report(groups, names, rows, calls, times)

    def _note_others(self, rows: Mapping[nn.Module, Row], calls: Calls, functions: Counter[str]) -> None:
        for name, kind in (("F.rms_norm", nn.RMSNorm), ("F.layer_norm", nn.LayerNorm)):
            of_modules = sum(calls[m].total() for m in rows if type(m).forward is kind.forward)
            if functions[name] > of_modules:
                self.notes.append(
                    f"{name} is called {functions[name] - of_modules} times outside of torch's modules: "
                    "swap_norms does not reach a function, and no row has it unless it is in a norm's class"
                )
        others = Counter(type(m).__name__ for m in self.model.modules() if isinstance(m, _OTHER_NORMS))
        if others:
            listed = ", ".join(f"{count} {name}" for name, count in others.items())
            self.notes.append(f"{listed}: not counted, since they normalise over other dimensions or examples")
        if idle := sum(not calls[module] for module in rows):
            self.notes.append(f"{idle} norms of the model are not called in a step")
        if not any(calls.values()) and not functions.total():
            raise ValueError(
                f"the step must call a norm of the model, and it calls none of {len(rows)}; a norm is a module that "
                "swap_norms(model) lists"
            )

    def _without(self, groups: list[list[nn.Module]], names: list[str], calls: Calls) -> Variants:
        """All norms left out, and each group, if there is more than one."""
        identities = {m: f for group in groups for m in group if (f := without(calls[m])) is not None}
        for group, name in zip(groups, names, strict=True):
            if group[0] not in identities:
                self.notes.append(f"{name}: its result is no tensor of the input's shape, so it cannot be left out")
        variants: Variants = {BARE: partial(forwards, identities)} if identities else {}
        for group, name in zip(groups, names, strict=True):
            if len(groups) > 1 and group[0] in identities:
                variants[f"without {name}"] = partial(forwards, {m: identities[m] for m in group})
        return variants

    def _holds(
        self, name: str, context: Callable[[], AbstractContextManager[Any]], rows: Mapping[nn.Module, Row], calls: Calls
    ) -> bool:
        """One untimed step: whether it succeeds, and calls the norms as the model's own step does."""
        if name == MODEL:
            return True
        self.tell(f"trying {name}", None)
        self.kept.rewind()
        try:
            with context(), recorded(rows) as now:
                self.call()
        except Exception as error:
            self.notes.append(f"{name}: not timed, the step raises {_line(error)}")
            return False
        if _shapes(now) == _shapes(calls):
            return True
        self.notes.append(
            f"{name}: not timed, since the work depends on the numbers: norms are called "
            f"{sum(c.total() for c in now.values())} times, the model's own {sum(c.total() for c in calls.values())}, "
            "or with other shapes"
        )
        return False

    def _times(self, variants: Variants, seconds: float, rounds: int | None) -> dict[str, list[float]]:
        @contextmanager
        def placed(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
            self.kept.rewind()
            with context():
                yield

        def pause(done: int, most: int) -> None:
            if done == 0:
                self.tell("round 1", None)
                return
            spent = monotonic() - start
            by_rounds = spent / done * ((rounds or FEWEST_ROUNDS) - done)
            left = by_rounds if rounds else max(by_rounds, seconds - spent)
            self.tell(f"round {done + 1}", max(left, 0.0))

        def drop(name: str, error: Exception) -> None:
            if name == MODEL:
                raise error
            self.notes.append(f"{name}: no longer timed, the step raises {_line(error)}")

        start = monotonic()
        limits = (FEWEST_ROUNDS, MOST_ROUNDS) if rounds is None else (rounds, rounds)
        plan = Plan(budget_ns=seconds * 1e9, sample_ns=SAMPLE_NS, lead_ns=LEAD_NS, rounds=limits)
        timed = {name: Within(self.call, partial(placed, context)) for name, context in variants.items()}
        return measure(timed, plan, sample=self._sample, pause=pause, drop=drop)

    def _sample(self, call: Call, repeats: int) -> float:
        """Nanoseconds a step; before each, the clock is stopped and what the last one changed is put back."""
        assert isinstance(call, Within)
        spent = 0
        with call.context():
            for _ in range(repeats):
                self.kept.rewind()
                start = perf_counter_ns()
                call.call()
                spent += perf_counter_ns() - start
        return spent / repeats

    def _report(
        self,
        groups: list[list[nn.Module]],
        names: list[str],
        rows: Mapping[nn.Module, Row],
        calls: Calls,
        times: dict[str, list[float]],
    ) -> NormProfile:
        def share(name: str) -> Spread | None:
            return saved(times[MODEL], times[name]) if name in times else None

        norms = []
        for group, name in zip(groups, names, strict=True):
            seen = sum((calls[module] for module in group), Counter())
            variant = f"without {name}" if len(groups) > 1 else BARE
            gone = zip(times[MODEL], times.get(variant, ()), strict=False)
            us = [(a - b) / 1e3 / seen.total() for a, b in gone]
            norms.append(
                NormCost(
                    cls=rows[group[0]].cls,
                    n=next(iter(seen)).n,
                    rows=tuple(sorted({each.rows for each in seen})),
                    dtype=" ".join(dict.fromkeys(str(each.dtype).removeprefix("torch.") for each in seen)),
                    modules=len(group),
                    calls=seen.total(),
                    share=share(variant),
                    us=spread(us) if us else None,
                    served_by=rows[group[0]].convention,
                    why=rows[group[0]].why,
                )
            )
        return NormProfile(
            norms=norms,
            step_ms=median(times[MODEL]) / 1e6,
            cost=share(BARE),
            swap=share(SWAPPED),
            accelerate=share(ACCELERATED),
            notes=self.notes,
            threads=torch.get_num_threads(),
            rounds=len(times[MODEL]),
            times_ns={name: [round(t, 1) for t in taken] for name, taken in times.items()},
        )


def _groups(rows: Mapping[nn.Module, Row], calls: Calls) -> list[list[nn.Module]]:
    """The modules that are called, together where class, call and shapes are the same."""
    groups: dict[Any, list[nn.Module]] = {}
    for module, row in rows.items():
        if calls[module]:
            groups.setdefault((row.cls, row.convention, row.why, frozenset(calls[module])), []).append(module)
    return list(groups.values())


def _names(groups: list[list[nn.Module]], rows: Mapping[nn.Module, Row]) -> list[str]:
    """The class of each group, numbered where several have the same."""
    classes = [rows[group[0]].cls for group in groups]
    return [f"{c} {classes[:i].count(c) + 1}" if classes.count(c) > 1 else c for i, c in enumerate(classes)]


def _shapes(calls: Calls) -> dict[nn.Module, Counter[tuple[int, int]]]:
    return {module: Counter((each.rows, each.n) for each in seen.elements()) for module, seen in calls.items()}


def _line(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")


@contextmanager
def _of_classes(served: Mapping[nn.Module, type[nn.Module]]) -> Iterator[None]:
    """The modules are of the given classes meanwhile."""
    before = {module: type(module) for module in served}
    try:
        for module, kind in served.items():
            module.__class__ = kind
        yield
    finally:
        for module, kind in before.items():
            module.__class__ = kind
