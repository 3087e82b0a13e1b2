"""What ``rmsnorm train`` and ``rmsnorm compare`` have in common on the command line. Nothing heavy is imported here."""

import argparse
import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

from rmsnorm_lab.errors import UserError, nearest
from rmsnorm_lab.experiments import norms, tasks
from rmsnorm_lab.experiments.recipes import settings
from rmsnorm_lab.experiments.recipes.checked import LARGEST
from rmsnorm_lab.experiments.recipes.common import KERNELS, PRECISIONS, Recipe
from rmsnorm_lab.files import named

if TYPE_CHECKING:
    from rmsnorm_lab.experiments.trained import Trained


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments of both commands."""
    parser.epilog = "Every setting of a task's recipe can be changed by --set NAME=VALUE; --set x lists them."
    add = parser.add_argument
    add(
        "--data",
        type=named,
        metavar="PATH",
        help="the task's official files, or your own in the same form (default: a stand-in from installed packages)",
    )
    add(
        "--size",
        choices=tasks.SIZES,
        default="small",
        help="recipe: small takes minutes on two cores, medium (translation, transformer) 4,000 steps, "
        "paper has the paper's dimensions (default: %(default)s)",
    )
    for flag, which in (("--source", "translated from"), ("--target", "translated into")):
        add(flag, metavar="LANGUAGE", help=f"translation, transformer: language {which} (default: the recipe's)")
    add("--steps", type=int, metavar="N", help="training steps of each run (default: the recipe's)")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change settings of the recipe, such as train.learning_rate=0.001 model.width=256 p=0.125; "
        "--set x lists all settings with their values",
    )
    add(
        "--kernels",
        choices=KERNELS,
        default="rmsnorm",
        help="kernels to train with: unfused, every norm in framework operators; rmsnorm, this project's LayerNorm and "
        "RMSNorm; best, torch's LayerNorm and this project's RMSNorm (default: %(default)s)",
    )
    add("--device", default="cpu", help="device to train on: cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="32-true",
        help="32-true: everything in float32; bf16-mixed: matrix products in bfloat16 (default: %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add(
        "--out",
        type=named,
        default="runs",
        metavar="FOLDER",
        help="folder for records, plots and checkpoints (default: %(default)s)",
    )
    add(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="training steps between checkpoints; the last two are kept (default: one at each evaluation)",
    )
    add("--overwrite", action="store_true", help="run again what is already recorded, and replace its record")
    add("--json", action="store_true", help="print the result as JSON")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of the commands that use a trained network."""
    parser.add_argument(
        "run",
        type=named,
        metavar="RUN",
        help="record written by `rmsnorm train` (a .jsonl file, with its network next to it), or a folder with one "
        "such run",
    )
    parser.add_argument("--device", default="cpu", help="device to compute on (default: %(default)s)")


def loaded(args: argparse.Namespace) -> "Trained":
    """The trained network that the command line names."""
    trained = imported("trained")
    found: Trained = trained.load(args.run, args.device)
    return found


def norms_help() -> str:
    """The normalisers of each task; tasks with the same ones together. Then what others there can be."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for task in tasks.TASKS:
        alike.setdefault(norms.of_task(task), []).append(task)
    return "; ".join(f"{', '.join(of)}: {' '.join(names)}" for names, of in alike.items()) + f"; {OWN}"


OWN = "or your own, FILE.py:NAME or package.module:NAME"


def tasks_of(args: argparse.Namespace, named: Sequence[str], several: Sequence[str], *more: str) -> list[str]:
    """The tasks of the command line, each once; ``more`` are other names that are taken for one.

    argparse takes a task after an option with several values (`compare --norm layer rms language`) for one of these
    values. None of them is a task's name, so tasks are moved out of them; ``several`` names those options.
    """
    known = (*tasks.TASKS, *more)
    found, others = list(named), []
    for option in several:
        if values := getattr(args, option):
            found += [value for value in values if value in known]
            setattr(args, option, [value for value in values if value not in known])
            others += getattr(args, option)
    must = f"TASK must be one of {', '.join(known)}"
    if not found:
        meant = next(filter(None, (nearest(value, known) for value in others)), " Pass one of these.")
        raise UserError(f"{must}; got none.{meant}")
    for name in found:
        if name not in known:
            raise UserError(f"{must}; got {name!r}.{nearest(name, known) or ' Pass one of these.'}")
    return list(dict.fromkeys(found))


MOST = {"threads": 1024, "seeds": 10_000, "seed": 2**63 - 1}
"""OpenMP keeps its team on the stack, which 99,999 threads overflow; every seed is a planned run of each normaliser;
torch's generators take 64 bits. Other numbers: LARGEST."""


def at_least(args: argparse.Namespace, least: int, *flags: str) -> None:
    """Refuse numbers that are too small or too large."""
    for flag in flags:
        number, most = getattr(args, flag.replace("-", "_")), MOST.get(flag, LARGEST)
        if number is not None and number < least:
            raise UserError(f"--{flag} must be at least {least}; got {number}. Pass --{flag} {least} or more.")
        if number is not None and number > most:
            raise UserError(f"--{flag} must be at most {most}; got {number}. Pass a smaller number.")


def numbers(flag: str, values: Sequence[str] | None) -> list[float] | None:
    """The values of a flag as numbers, each once."""
    found: dict[float, None] = {}
    for value in values or ():
        try:
            found[float(value)] = None
        except ValueError:
            raise UserError(f"{flag} must be numbers; got {value!r}. Pass numbers, such as 0.001.") from None
    return None if values is None else list(found)


def norms_of(names: Sequence[str] | None, task: str) -> list[str]:
    """The chosen normalisers of a task in the order of its table, then the user's own; 'rms layer' and 'rms,layer' are
    the same."""
    allowed = norms.of_task(task)
    given = [name for part in names or norms.by_default(task) for name in _parts(part) if name]
    chosen = {name for name in given if not is_own(name)}
    must = f"--norm must name some of {', '.join(allowed)} for {task}"
    if unknown := sorted(chosen - set(allowed)):
        raise UserError(f"{must}; got {unknown[0]!r}.{nearest(unknown[0], allowed) or f' Pass one of these, {OWN}.'}")
    if not given:
        raise UserError(f"{must}; got none. Pass one of these, {OWN}.")
    return [*(name for name in allowed if name in chosen), *own_norms(given)]


def _parts(value: str) -> list[str]:
    """What commas separate in a value of ``--norm``; a file may have them in its name."""
    return [value] if is_own(value) and os.path.isfile(value.rpartition(":")[0]) else value.split(",")


def is_own(name: str) -> bool:
    """Whether a value of ``--norm`` is a norm of the user's own."""
    return ":" in name or name.endswith(".py")


def own_norms(names: Sequence[str]) -> list[str]:
    """Import and register the user's own norms among the values of ``--norm``; their names in the registry."""
    quiet_torch()
    return list(dict.fromkeys(norms.of_user(name) for name in names if is_own(name)))


def recipe_of(args: argparse.Namespace, task: str, chosen: Sequence[str], times: bool) -> Recipe:
    """The task's recipe with what the command line changes.

    Args:
        chosen: the normalisers of the command.
        times: whether it times steps.
    """
    if not any(norms.entry(norm).takes_p for norm in chosen) and any(
        assignment.startswith("p=") for assignment in args.set
    ):
        raise UserError(f"p is of pRMSNorm alone; got --norm {' '.join(chosen)}. Pass --norm prms, or leave p out.")
    flags = {"train.steps": args.steps, "timing.rounds": getattr(args, "timing_rounds", None)}
    languages = {"data.source": args.source, "data.target": args.target}
    if any(languages.values()) and not hasattr(tasks.recipe(task, args.size).data, "source"):
        raise UserError(f"--source and --target are of translation and transformer; got {task}. Leave them out.")
    flags |= languages
    of_flags = [f"{name}={value}" for name, value in flags.items() if value]  # 0 rounds: no timing, whatever is set
    recipe = settings.changed(tasks.recipe(task, args.size), [*args.set, *of_flags], f"{task}'s recipe")
    if idle := [assignment for assignment in args.set if assignment.startswith("timing.") and not times]:
        raise UserError(f"this command times nothing, so timing has no effect; got --set {idle[0]}. Leave it out.")
    timing, rounds = recipe.timing, flags["timing.rounds"]
    if rounds and not any(assignment.startswith("timing.warmup_rounds=") for assignment in args.set):
        # With few rounds the warm-up should not take longer than the rounds that are shown.
        recipe = replace(recipe, timing=replace(timing, warmup_rounds=min(timing.warmup_rounds, rounds)))
    return recipe


def imported(first: str, *others: str) -> ModuleType:
    """A module of rmsnorm_lab.experiments. ``others`` are imported too, so that a missing package is reported now."""
    quiet_torch()
    found, *_ = (importlib.import_module(f"rmsnorm_lab.experiments.{name}") for name in (first, *others))
    return found


def quiet_torch() -> None:
    """Before torch is imported: its C++ code reports every start and stop of the profiler to stderr."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
