"""Providers that take JAX arrays: this project's functions and the formula, each under ``jax.jit``.

Arguments are converted while building. A timed call leaves no work running.
"""

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from rmsnorm_lab.bench.cases import EPS, PLAIN, Case
from rmsnorm_lab.bench.oracle import Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider, one_pool, only

Function = Callable[..., Any]


class JaxProvider(Provider):
    """A function of JAX arrays, compiled for each shape; JAX differentiates it."""

    needs = ("jax",)

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, case: Case) -> str | None:
        return only(case, *PLAIN) or one_pool(case, self.threads)

    @abstractmethod
    def function(self, case: Case) -> Function:
        """The operation, of the case's operands in order."""

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        # Read once, when JAX or this project's pool starts. XLA's CPU client takes the size of its pool from NPROC.
        os.environ["NPROC"] = os.environ["RMSNORM_NUM_THREADS"] = str(self.threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import jax.numpy as jnp

        arrays = {name: jnp.asarray(t.float().numpy(), dtype=case.dtype) for name, t in inputs.items()}
        operands: list[Any] = [arrays[name] for name in case.operands]
        if case.backward:
            operands.insert(0, (arrays["dy"], arrays["dh"]) if case.adds else arrays["dy"])
        function = jax.jit(_step(case, self.function(case)))
        if len(case.outputs) == 1:
            return Prepared(lambda: function(*operands).block_until_ready())

        def call() -> Any:  # one by one: jax.block_until_ready walks the tree first, which costs a microsecond
            outputs = function(*operands)
            for output in outputs:
                output.block_until_ready()
            return outputs

        return Prepared(call)


def _step(case: Case, function: Function) -> Function:
    """What a case computes: results, results and gradients, or gradients."""
    if not case.backward:
        return function
    import jax

    def step(cotangents: Any, *operands: Any) -> Any:
        outputs, pull = jax.vjp(function, *operands)
        if case.alone:
            return pull(cotangents)
        return (*(outputs if case.adds else (outputs,)), *pull(cotangents))

    return step


class OursJax(JaxProvider):
    name = "rmsnorm-jax"
    summary = "this project, rmsnorm.jax under jax.jit, new output"
    colour = "#444444"
    wide_sums = True

    def refuses(self, case: Case) -> str | None:
        return only(case, *PLAIN, "rms_norm_heads") or one_pool(case, self.threads)

    def function(self, case: Case) -> Function:
        import rmsnorm.jax as ours

        options: dict[str, Any] = {"eps": EPS} if case.p == 1 else {"eps": EPS, "p": case.p}
        if case.op == "layer_norm":
            return lambda x, weight, bias: ours.layer_norm(x, weight, bias, **options)
        if case.op == "add_rms_norm":
            return lambda x, residual, weight: ours.add_rms_norm(x, residual, weight, **options)
        return lambda x, weight: ours.rms_norm(x, weight, **options)


class Jax(JaxProvider):
    name = "jax"
    summary = "the formula under jax.jit, compiled for each shape, new output"
    colour = "#56B4E9"

    def function(self, case: Case) -> Function:
        """The operation in jax.numpy, computed in float32."""
        import jax.numpy as jnp
        from jax.lax import rsqrt

        from rmsnorm.spec import partial_count

        k = partial_count(case.n, case.p)

        def rms_norm(x: Any, weight: Any) -> Any:
            a = x.astype(jnp.float32)
            mean_square = jnp.square(a[:, :k]).mean(-1, keepdims=True)
            return (a * rsqrt(mean_square + EPS) * weight.astype(jnp.float32)).astype(x.dtype)

        def add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
            h = x + residual
            return rms_norm(h, weight), h

        def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
            a = x.astype(jnp.float32)
            centred = a - a.mean(-1, keepdims=True)
            variance = jnp.square(centred).mean(-1, keepdims=True)
            scaled = centred * rsqrt(variance + EPS) * weight.astype(jnp.float32)
            return (scaled + bias.astype(jnp.float32)).astype(x.dtype)

        functions: dict[str, Function]
        functions = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "layer_norm": layer_norm}
        return functions[case.op]
