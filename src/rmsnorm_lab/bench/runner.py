"""One case from its inputs to its record: build, verify, then time."""

import gc
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from time import perf_counter
from typing import TypeAlias

import torch

from rmsnorm.timing import QUICK, Call, Plan, measure, wall_clock
from rmsnorm_lab import machine
from rmsnorm_lab.bench import chain_cases, cuda, device_oracle, model_cases, oracle, recurrent_oracle, rotary_cases
from rmsnorm_lab.bench.cases import Case
from rmsnorm_lab.bench.chain_cases import ChainOracle
from rmsnorm_lab.bench.model_cases import ModelOracle
from rmsnorm_lab.bench.oracle import Inputs, Oracle, WrongError
from rmsnorm_lab.bench.provider import Prepared, Provider
from rmsnorm_lab.bench.records import Machine, Record, Result
from rmsnorm_lab.bench.recurrent_oracle import RecurrentOracle
from rmsnorm_lab.bench.rotary_cases import RotaryOracle

AnyOracle: TypeAlias = Oracle | RecurrentOracle | ModelOracle | ChainOracle | RotaryOracle

# A step of a model is 10 000 times as long as a call of a norm.
MODEL_PLAN = Plan(budget_ns=20e9, sample_ns=20e6, rounds=(11, 99))


def plan_of(case: Case, plan: Plan) -> Plan:
    """How long to measure the case, if norms are measured by ``plan``."""
    return MODEL_PLAN if case.kind == "model" and plan != QUICK else plan


def run_case(case: Case, providers: Sequence[Provider], plan: Plan, tell: Callable[[str], None]) -> Record:
    """Verify and time the installed ``providers`` on one case.

    ``tell`` is called with what is being done, outside of every sample. A provider that fails or returns wrong numbers
    is recorded as such and not timed.
    """
    torch.set_num_threads(case.threads)
    _free_large_tensor()
    inputs = make_inputs(case)
    oracles: dict[Case, AnyOracle] = {}
    calls: dict[str, Call] = {}
    spins_s: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    wrong: dict[str, str] = {}
    providers = [p for p in providers if p.kind == case.kind and case.device in p.devices]
    device = cuda.describe() if case.device == "cuda" else None
    for provider in providers:
        if why := provider.refuses(case):
            skipped[provider.name] = why
            continue
        tell(f"verifying {provider.name}")
        try:
            if device:
                calls[provider.name], errors[provider.name] = _on_cuda(provider, case, inputs, oracles, device)
                spins_s[provider.name] = 0.0
                continue
            prepared = provider.build(case, inputs)
            errors[provider.name] = verify(provider, prepared, case, inputs, oracles)
            calls[provider.name], spins_s[provider.name] = prepared.call, prepared.spins_s
        except Exception as error:  # a peer's failure of any type is a result, and the run goes on
            wrong[provider.name] = reason(error)
    oracles.clear()

    gc.collect()
    gc.disable()
    start, before = perf_counter(), machine.others_seconds()
    try:
        times = measure(
            calls,
            plan_of(case, plan),
            spins_s=spins_s,
            sample=cuda.sample if device else wall_clock,
            drop=lambda name, error: wrong.update({name: reason(error)}),
            pause=lambda done, rounds: tell(f"round {done + 1} of {rounds}"),
        )
    finally:
        gc.enable()
    after, elapsed = machine.others_seconds(), perf_counter() - start
    others = None if before is None or after is None else round(max(0.0, after - before) / elapsed, 2)
    results = {}
    for provider in providers:
        if provider.name in times:
            results[provider.name] = Result(
                computes=provider.computes(case).operation,
                fresh=provider.fresh and not case.inplace,
                limit=provider.limit,
                errors={name: float(f"{error:.3g}") for name, error in errors[provider.name].items()},
                times_ns=[round(time, 1) for time in times[provider.name]],
            )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made_on = Machine(**vars(machine.describe()), **(vars(device) if device else {}))
    return Record(case, now, made_on, others, results, skipped, wrong)


def _on_cuda(
    provider: Provider,
    case: Case,
    inputs: Inputs,
    oracles: dict[Case, AnyOracle],
    device: cuda.Device,
) -> tuple[Call, dict[str, float]]:
    """The call to time, over several sets of inputs in turn, and the provider's errors on the first set."""
    first = provider.build(case, inputs)
    cuda.poison(inputs)
    errors = verify(provider, first, case, inputs, oracles)
    more = range(1, cuda.copies(case, int(device.l2_mib * 2**20)))
    others = (provider.build(case, {name: t.clone() for name, t in inputs.items()}).call for _ in more)
    return cuda.in_turn([first.call, *others]), errors


def _free_large_tensor() -> None:
    """Bring the allocator into the state that a network's first step leaves.

    glibc returns free memory to the system beyond a limit of 128 KiB, which grows to the size of the largest block that
    was freed, up to 32 MiB. Until then small steps have hundreds of page faults, or none, by chance of the heap.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)  # with malloc's header the block must not exceed 32 MiB


def make_inputs(case: Case) -> Inputs:
    if case.recurrent:
        return recurrent_oracle.make_inputs(case)
    if case.kind == "model":
        return model_cases.make_inputs(case)
    if case.kind == "chain":
        return chain_cases.make_inputs(case)
    if case.kind == "rotary":
        return rotary_cases.make_inputs(case)
    return oracle.make_inputs(case, device=cuda.DEVICE if case.device == "cuda" else "cpu")


def _oracle(case: Case, inputs: Inputs) -> AnyOracle:
    if case.recurrent:
        return RecurrentOracle(case, inputs)
    if case.kind == "model":
        return ModelOracle(case, inputs)
    if case.kind == "chain":
        return ChainOracle(case, inputs)
    if case.kind == "rotary":
        return RotaryOracle(case, inputs)
    return (device_oracle.make_oracle if case.device == "cuda" else Oracle)(case, inputs)


def reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, WrongError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def verify(
    provider: Provider,
    prepared: Prepared,
    case: Case,
    inputs: Inputs,
    oracles: dict[Case, AnyOracle],
) -> dict[str, float]:
    """The provider's errors, or WrongError. The oracle is computed once for each operation."""
    if provider.limit:
        return {}
    computed = provider.computes(case)
    if computed not in oracles:
        oracles[computed] = _oracle(computed, inputs)
    truth, outputs = oracles[computed], prepared.outputs(prepared.call())
    return truth.check(outputs, provider.wide_sums) if isinstance(truth, Oracle) else truth.check(outputs)


def seconds(case: Case, providers: Sequence[Provider], plan: Plan) -> float:
    """Roughly how many seconds a case takes: compiling, the oracle, and the rounds. For the progress bar."""
    there = [p for p in providers if p.kind == case.kind and case.device in p.devices]
    names = [p.name for p in there if p.refuses(case) is None]
    if case.device == "cuda":  # the oracle, compiling, the rounds
        return 2.0 + len(names) + 15.0 * ("torch.compile" in names)
    if case.recurrent:  # at the 100 GFLOP/s of one processor; the oracle's four loops take twice as long each
        a_round = len(names) * case.work[0] / 1e11
        return 4 * 2 * case.work[0] / 1e11 + max(plan.budget_ns / 1e9, (plan.rounds[0] + 3) * a_round)
    if case.kind == "model":  # building, the float64 model and two compilers; a step at 100 GFLOP/s for each thread
        a_step = model_cases.operations(case) / 1e11 / case.threads + 5e-3
        own = plan_of(case, plan)
        return 60 * len(names) / 7 + 8 * a_step + max(own.budget_ns / 1e9, own.rounds[0] * len(names) * a_step)
    if case.kind == "chain":  # a compilation for each; a pass over memory for each link
        a_round = len(names) * chain_cases.PAIRS * case.bytes * (8 if case.backward else 3) / 1e10
        return 8.0 * len(names) + max(plan.budget_ns / 1e9, (plan.rounds[0] + 6) * a_round)
    if case.kind == "rotary":  # compiling; the oracle; each of the separate sequences takes ten times a copy's time
        a_round = 10 * len(names) * case.bytes_moved / 1.1e10
        return 8.0 + case.bytes * 4e-8 + max(plan.budget_ns / 1e9, (plan.rounds[0] + 3) * a_round)
    building = 0.3 + ("torch.compile" in names) * (1.5 if case.backward else 0.7)
    a_round = sum(_SLOWNESS.get(name, 2.0) for name in names) * case.bytes_moved / 1.1e10
    oracle = case.rows * case.n * (4e-7 if case.backward else 1e-8)
    return building + oracle + max(plan.budget_ns / 1e9, (plan.rounds[0] + 3) * a_round)


# Multiples of the copy's time in large cases, which dominate the estimate.
_SLOWNESS = {"copy": 1, "rmsnorm-out": 1, "onnxruntime-out": 1.5, "F.rms_norm": 12, "formula": 12, "numpy": 12}
