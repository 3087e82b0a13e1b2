"""RMSNorm and pRMSNorm, right and at the hardware's limit.

Nothing heavy is imported here; ask for the namespace of your framework:

- ``from rmsnorm.torch import RMSNorm, rms_norm, add_rms_norm``
- ``from rmsnorm.numpy import rms_norm``

or type ``rmsnorm info`` in a shell.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":  # importlib.metadata costs milliseconds: only for those who ask
        from importlib.metadata import version

        return version("rmsnorm")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
