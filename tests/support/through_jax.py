"""rmsnorm.jax as a backend of the conformance suite: results and gradients in one compiled function."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import rmsnorm.jax as functions
from conformance import Backend, Case, from_numpy, to_numpy


@jax.enable_x64(True)
def _run(case: Case, inputs: SimpleNamespace) -> dict[str, torch.Tensor]:
    arrays = {name: jnp.asarray(to_numpy(t)) for name, t in vars(inputs).items() if t is not None}
    leaves = {name: arrays[name] for name in ("x", "weight", "bias", "residual") if name in arrays}
    options: dict[str, Any] = {"eps": case.eps, "axis": (-2, -1) if case.split else -1}
    if case.operation != "layer_norm":
        options |= {"p": case.p, "zero_centered": case.zero_centered}

    @jax.jit
    def step(leaves: dict[str, jax.Array], cotangents: Any) -> Any:
        results, pull = jax.vjp(lambda leaves: getattr(functions, case.operation)(**leaves, **options), leaves)
        return results, pull(cotangents)[0]

    adds = case.operation == "add_rms_norm"
    results, gradients = step(leaves, (arrays["dy"], arrays["grad_residual"]) if adds else arrays["dy"])
    found = dict(zip(("y", "s"), results, strict=True)) if adds else {"y": results}
    found |= {f"d{name}": gradient for name, gradient in gradients.items()}
    return {name: from_numpy(np.array(array)) for name, array in found.items()}


JAX = Backend("jax", _run, castings=("once",))
EXPRESSION = Backend("jax's expression", _run, composite=True, castings=("once",))
"""The same where there are no kernels: this module does not choose, ``native.missing`` does, before it is imported."""
