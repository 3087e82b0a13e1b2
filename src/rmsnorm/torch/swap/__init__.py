"""The norms of a model on this project's kernels, whatever their classes are: :func:`swap_norms`."""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from torch import nn

from rmsnorm.torch.swap.classes import derived, original_class
from rmsnorm.torch.swap.conventions import Convention
from rmsnorm.torch.swap.gated import GatedConvention
from rmsnorm.torch.swap.gated_probe import judge_gated, takes_a_gate
from rmsnorm.torch.swap.probe import judge, looks_like_a_norm
from rmsnorm.torch.swap.shadow import Left, check_structure, key, takes_one_argument, undisturbed, unwritten
from rmsnorm.torch.swap.table import Row, table

__all__ = ["Row", "Swapped", "swap_norms"]

Filter = Callable[[str, nn.Module], bool]
Verdict = Convention | GatedConvention | str | None
"""What serves a module; or why it is left; or None for what is no norm."""


class Swapped:
    """What :func:`swap_norms` did: ``rows``, one for each norm; ``print`` shows them. ``restore()`` undoes it."""

    def __init__(self, rows: list[Row], modules: list[nn.Module]) -> None:
        self.rows = rows
        """A :class:`Row` for each norm that was found, swapped or left."""
        self._classes = [(module, type(module)) for module in modules]

    def restore(self) -> None:
        """Gives the modules their classes back; a second time it does nothing.

        Raises:
            RuntimeError: the class of a module was changed since (a parametrization does it); all others are restored.
        """
        others = []
        for module, served in self._classes:
            if type(module) is served:
                module.__class__ = served._rmsnorm_original  # type: ignore[attr-defined]
            elif type(module) is not served._rmsnorm_original:  # type: ignore[attr-defined]
                others.append(module)
        self._classes = [(m, served) for m, served in self._classes if m in others]
        if others:
            raise RuntimeError(
                f"restore() must find the classes that swap_norms() set, got {type(others[0]).__name__} for "
                f"{len(others)} modules; undo what was done to them since, and restore again"
            )

    def __enter__(self) -> "Swapped":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def __str__(self) -> str:
        return table(self.rows)

    def __repr__(self) -> str:
        swapped = sum(row.why is None for row in self.rows)
        return f"<swap_norms: {swapped} swapped, {len(self.rows) - swapped} left; print it for the table>"


def swap_norms(model: nn.Module, *, layer_norms: bool = True, filter: Filter | None = None) -> Swapped:
    r"""Every norm of ``model`` that this project's functions reproduce takes them on a CPU, in place.

    .. math:: y_i = \frac{x_i - c}{\sqrt{\frac{1}{k} \sum_{j \le k} (x_j - c)^2 + eps}} \, g_i + b_i, \qquad
              c = 0 \text{ or } \mu, \qquad g = w \text{ or } 1 + w

    A norm is found by its numbers, not by its name: each distinct module is run on prepared rows, on a shadow with
    parameters of its own, and it is swapped only if a call of :func:`rms_norm`, :func:`layer_norm` or
    :func:`rms_norm_gated` gives the same results and gradients. That holds for Hugging Face's classes, those of other
    libraries and your own. A module that nothing reproduces is left, and the table says why.

    A swapped module keeps its object, parameters, attributes, hooks and names; its class becomes a subclass of its
    class. ``isinstance``, ``state_dict``, ``copy.deepcopy`` (the copy is swapped too), ``torch.save`` (the file holds
    the original class) and ``save_pretrained`` work as before. The module's own forward serves what was not verified:
    other dtypes, further arguments, other devices; and compiled graphs, where Inductor fuses it.

    Args:
        model: any module, also one norm; it may be on any device and of any dtype.
        layer_norms: LayerNorms too, not RMSNorms alone.
        filter: called with the name and the module; a module for which it is false is not looked at.

    Results: 16-bit ones are the module's own except for ties (at most 0.04 % of them differ, by a unit in the last
    place); float32 ones differ by up to 2 units. dtypes are those that the module returns.

    Returns:
        an object with ``rows``, a table when printed, and ``restore()``; as a context manager it restores at the end.

    Raises:
        TypeError: the model is no module, or an argument is of another type.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019); the modules of the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8))
        >>> swapped = swap_norms(model)
        >>> [(row.name, row.convention) for row in swapped.rows]
        [('1', 'rms_norm(weight)')]
        >>> swapped.restore()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(layer_norms, bool):
        raise TypeError(f"layer_norms must be a bool, got {type(layer_norms).__name__}")
    if filter is not None and not callable(filter):
        raise TypeError(f"filter must be callable or None, got {type(filter).__name__}")
    judged: dict[tuple, Verdict] = {}
    rows: list[Row] = []
    found: list[tuple[nn.Module, type[nn.Module]]] = []
    for name, module in model.named_modules():
        if filter is not None and not filter(name, module):
            continue
        verdict = _verdict(module, judged)
        if isinstance(verdict, Convention | GatedConvention) and verdict.norm == "layer" and not layer_norms:
            verdict = "it is a LayerNorm, and layer_norms=False"
        if isinstance(verdict, Convention | GatedConvention):
            try:
                found.append((module, derived(type(module), verdict)))  # type: ignore[arg-type]  # mypy and lru_cache
            except Exception as error:  # the class refuses subclasses
                verdict = f"its class has no subclass: {type(error).__name__}: {error}"
        if verdict is not None:
            rows.append(Row.of(name, module, verdict))
    for module, served in found:
        module.__class__ = served
    return Swapped(rows, [module for module, _ in found])


def _verdict(module: nn.Module, judged: dict[tuple, Verdict]) -> Verdict:
    """The convention; or why it is left; or None for what is no norm."""
    if _is_torchs_other(module) or _contains_others(module):
        return None
    reason = _why_not_run(module)
    kind = reason, *key(module)
    if kind not in judged:
        judged[kind] = _judged(module) if reason is None else (reason if _is_a_norm(module) else None)
    return judged[kind]


def _why_not_run(module: nn.Module) -> str | None:
    try:
        check_structure(module)
    except Left as reason:
        return str(reason)
    if takes_one_argument(module) or takes_a_gate(module):
        return None
    return "its forward takes neither an input alone nor an input and a gate"


def _judged(module: nn.Module) -> Verdict:
    reason: str
    try:
        with undisturbed(), unwritten(module):
            return _judge(module)
    except Left as left:
        reason = str(left)
    except Exception as error:
        reason = f"it raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    return reason if _is_a_norm(module) else None


def _is_a_norm(module: nn.Module) -> bool:
    """One of torch's two, or what computes like a norm: a name says nothing."""
    if isinstance(module, nn.RMSNorm | nn.LayerNorm) or original_class(module):
        return True
    found = False
    with suppress(Exception), undisturbed(), unwritten(module):
        found = looks_like_a_norm(module)
    return found


def _judge(module: nn.Module) -> Convention | GatedConvention:
    """As a norm with a gate where forward takes one: such a module is called with it, if it is called without too."""
    if not takes_a_gate(module):
        return judge(module)
    try:
        return judge_gated(module)
    except Exception:
        if takes_one_argument(module):
            with suppress(Exception):
                return judge(module)
        raise


def _is_torchs_other(module: nn.Module) -> bool:
    """torch's own modules that are none of its two norms, and containers of modules."""
    if isinstance(module, nn.RMSNorm | nn.LayerNorm):
        return False
    return type(module).__module__.startswith("torch.nn.modules.")


def _contains_others(module: nn.Module) -> bool:
    """A block, whose parts are looked at themselves. torch's two norms are none, whatever has been hung on them."""
    return not isinstance(module, nn.RMSNorm | nn.LayerNorm) and next(module.children(), None) is not None
