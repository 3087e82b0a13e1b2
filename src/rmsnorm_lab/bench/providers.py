"""The list of all providers of the benchmark."""

from collections.abc import Sequence

from rmsnorm_lab.bench import (
    array_providers,
    chain_providers,
    gpu_providers,
    jax_providers,
    model_providers,
    recurrent_providers,
    rotary_providers,
    torch_providers,
)
from rmsnorm_lab.bench.case_sets import named
from rmsnorm_lab.bench.provider import Provider


def all_providers(threads: int) -> list[Provider]:
    """Every known provider, this project's first, the limits last.

    ``threads`` is the size of a provider's own thread pool if it is fixed once per process; such a provider serves only
    cases of that many threads.
    """
    return [
        torch_providers.Ours(),
        torch_providers.OursOut(),
        torch_providers.OursSeparate(),
        torch_providers.OursFull(),
        array_providers.OursNumPy(threads),
        array_providers.OursNumPyOut(threads),
        jax_providers.OursJax(threads),
        torch_providers.TorchRMSNorm(),
        torch_providers.TorchLayerNorm(),
        torch_providers.Accelerated(),
        torch_providers.Formula(),
        torch_providers.Compiled(),
        *gpu_providers.providers(),
        array_providers.OnnxRuntime(),
        array_providers.OnnxRuntimeOut(),
        jax_providers.Jax(threads),
        array_providers.NumPy(),
        torch_providers.Clone(),
        torch_providers.Copy(),
        *recurrent_providers.providers(),
        *model_providers.providers(),
        *chain_providers.providers(),
        *rotary_providers.providers(),
    ]


def choose(providers: Sequence[Provider], names: Sequence[str] | None) -> list[Provider]:
    """Those of the given names, in the list's order; all of them if no names are given."""
    for name in names or ():
        named("provider", name, (provider.name for provider in providers))
    return [provider for provider in providers if not names or provider.name in names]
