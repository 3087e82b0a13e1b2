"""The usual calls and their autograd nodes in C++ (nodes.cpp), where they were built for the torch that runs.

The build makes them where it finds torch (``pip install --no-build-isolation``), for that version alone: torch's C++
interface changes with each. Without them the calls go through Python, with the same results.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from rmsnorm import native
from rmsnorm.native.codes import NORM_KINDS
from rmsnorm.torch import eager, kernels


def gradients(
    norm: int,
    dy: Tensor,
    plus: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    wants: eager.Wants,
    eps: float,
    *how: float | bool | str,
) -> eager.Gradients:
    """What a C++ node leaves to Python: layouts to be copied, and whatever is differentiated or mapped over."""
    how = how if NORM_KINDS[norm] == "rms" else ()
    return eager.gradients(NORM_KINDS[norm], dy, plus, input, input.shape[-dims:], weight, bias, wants, eps, *how)


def _connected() -> tuple[ModuleType | None, str | None]:
    """The module, or why there is none."""
    if native.missing:
        return None, native.missing
    try:
        _nodes = import_module("rmsnorm.torch._nodes")
    except ImportError:  # not built, or for another torch: then symbols are missing
        return None, "not built for this torch; `pip install --no-build-isolation .` beside torch builds them"
    if torch.__version__.partition("+")[0] != _nodes.built_for.partition("+")[0]:
        return None, f"built for torch {_nodes.built_for}, this is {torch.__version__}; build them again"
    if not _nodes.connect(native.kernels.c_api, gradients, kernels.FLAGS):
        return None, "of another version of rmsnorm than its kernels; install it again"
    return _nodes, None


module, why_not = _connected()
