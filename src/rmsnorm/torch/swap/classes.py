"""A norm in place: the module's class becomes a subclass of it whose forward calls this project's functions.

The module itself does not change: its attributes, parameters, hooks, name and place in the model are what they were.
"""

import copy
import copyreg
import functools
from typing import Any, cast

import torch
from torch.compiler import is_compiling

from rmsnorm.torch.swap.conventions import Convention
from rmsnorm.torch.swap.gated import GatedConvention

ORIGINAL = "_rmsnorm_original"
"""The attribute of a derived class that is the class it was derived from."""


@functools.cache
def derived(original: type[torch.nn.Module], convention: Convention | GatedConvention) -> type[torch.nn.Module]:
    """``original`` with ``convention`` for its forward; name, qualified name and module are the original's, since
    models are initialised by the names of their classes."""

    @functools.wraps(original.forward)
    def forward(self, *args, **kwargs):
        # A compiled graph holds the module's own operations, which Inductor fuses with what is around them.
        if not kwargs and not is_compiling():
            y = convention(self, *args)
            if y is not None:
                return y
        return original.forward(self, *args, **kwargs)

    def reduce(self, protocol):
        """Pickled as the original: a file loads where this package is not installed."""
        _, _, *state = cast(tuple, original.__reduce_ex__(self, protocol))
        return copyreg._reconstructor, (original, object, None), *state  # type: ignore[attr-defined]

    def deepcopy(self, memo):
        """A copy is served as its original is."""
        make, arguments, state, *_ = cast(tuple, original.__reduce_ex__(self, 4))
        twin = memo[id(self)] = make(*arguments)
        twin.__setstate__(copy.deepcopy(state, memo))
        return twin

    def prepare_scriptable(self):
        """torch.jit.script would put whatever is returned here into the model."""
        raise NotImplementedError(
            f"torch.jit.script does not compile {original.__name__} while swap_norms serves it; call restore() first, "
            "or use torch.jit.trace or torch.export"
        )

    members: dict[str, Any] = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__prepare_scriptable__": prepare_scriptable,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        ORIGINAL: original,
    }
    if not hasattr(original, "__deepcopy__"):
        members["__deepcopy__"] = deepcopy
    metaclass: Any = type(original)
    # A class that is moved below the original does not call its __init_subclass__, where some libraries list classes.
    made = metaclass(original.__name__, (torch.nn.Module,), members)
    try:
        made.__bases__ = (original,)
    except TypeError:  # the original has __slots__
        made = metaclass(original.__name__, (original,), members)
    return cast(type[torch.nn.Module], made)


def original_class(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class that a swapped module had; None for a module that is not swapped."""
    return getattr(type(module), ORIGINAL, None)
