"""Providers with their own array types: this project's NumPy functions, plain NumPy, ONNX Runtime and JAX.

Arguments are converted while building. A timed call copies none of them, and leaves no work running.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rmsnorm_lab.bench.cases import EPS, PLAIN, Case
from rmsnorm_lab.bench.oracle import Array, Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider, not_installed, only


def _arrays(inputs: Inputs) -> dict[str, Array]:
    """Tensors as NumPy arrays, without a copy; bfloat16 as the dtype that ml_dtypes adds to NumPy."""

    def array(tensor: torch.Tensor) -> Array:
        if tensor.dtype != torch.bfloat16:
            return tensor.numpy()
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    return {name: array(tensor) for name, tensor in inputs.items()}


def _refused(case: Case, threads: int) -> str | None:
    if case.alone:
        return "only torch's providers have a backward pass alone"
    if case.threads == threads:
        return None
    return f"its thread pool has a fixed size per process, here {threads}: measure with --threads {case.threads}"


class OursNumPy(Provider):
    name = "rmsnorm-numpy"
    summary = "this project, rmsnorm.numpy, new output"
    colour = "#666666"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, case: Case) -> str | None:
        if case.dtype == "bfloat16" and (lacking := not_installed("ml_dtypes")):
            return f"NumPy's bfloat16: {lacking}"
        return only(case, *PLAIN, "rms_norm_heads") or _refused(case, self.threads)

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        os.environ["RMSNORM_NUM_THREADS"] = str(self.threads)  # read when the pool starts, at the first call
        import rmsnorm.numpy as ours

        arrays = _arrays(inputs)
        x, weight = arrays["x"], arrays["weight"]
        options: dict[str, Any] = {"eps": EPS} if case.p == 1 else {"eps": EPS, "p": case.p}
        forward: Callable[[], Any]
        if case.op == "layer_norm":
            forward = partial(ours.layer_norm, x, weight, arrays["bias"], eps=EPS)
        elif case.op == "add_rms_norm":
            forward = partial(ours.add_rms_norm, x, arrays["residual"], weight, **options)
        else:
            forward = partial(ours.rms_norm, x, weight, **options)
        if not case.backward:
            return Prepared(forward)
        dy = arrays["dy"]

        def rms_norm() -> tuple[Any, ...]:
            return forward(), *ours.rms_norm_backward(dy, x, weight, **options)[:2]

        def layer_norm() -> tuple[Any, ...]:
            return forward(), *ours.layer_norm_backward(dy, x, weight, eps=EPS, bias=True)

        def add_rms_norm() -> tuple[Any, ...]:
            y, h = forward()
            dx, dweight, _ = ours.add_rms_norm_backward(dy, arrays["dh"], h, weight, **options)
            return y, h, dx, dx, dweight

        steps: dict[str, Callable[[], Any]]
        steps = {"layer_norm": layer_norm, "add_rms_norm": add_rms_norm}
        return Prepared(steps.get(case.op, rms_norm))


class NumPy(Provider):
    name = "numpy"
    summary = "the formula in NumPy, one thread"
    colour = "#E69F00"

    def refuses(self, case: Case) -> str | None:
        if case.backward:
            return "the formula in NumPy has no backward pass"
        if refused := only(case, *PLAIN):
            return refused
        return None if case.dtype == "float32" else "NumPy itself has no bfloat16"

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        from rmsnorm.spec import partial_count

        arrays, k = _arrays(inputs), partial_count(case.n, case.p)
        x, weight, bias, residual = (arrays.get(name, np.empty(0)) for name in ("x", "weight", "bias", "residual"))

        def rms_norm() -> Array:
            head = x[:, :k]
            return x / np.sqrt(np.mean(head * head, axis=-1, keepdims=True) + EPS) * weight

        def add_rms_norm() -> tuple[Array, Array]:
            h = x + residual
            head = h[:, :k]
            return h / np.sqrt(np.mean(head * head, axis=-1, keepdims=True) + EPS) * weight, h

        def layer_norm() -> Array:
            centred = x - np.mean(x, axis=-1, keepdims=True)
            return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + EPS) * weight + bias

        calls: dict[str, Callable[[], Any]]
        calls = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "layer_norm": layer_norm}
        return Prepared(calls[case.op])


class OnnxRuntime(Provider):
    """RMSNormalization of opset 23 and LayerNormalization, one node a graph, on the CPU provider."""

    name = "onnxruntime"
    summary = "ONNX Runtime's operator, session.run, new output"
    colour = "#009E73"
    needs = ("onnx", "onnxruntime")

    def refuses(self, case: Case) -> str | None:
        if case.backward:
            return "ONNX Runtime's operators have no backward pass"
        if case.p != 1:
            return "its operator has no p"
        if refused := only(case, *PLAIN):
            return refused
        return None if case.dtype == "float32" else "its RMSNormalization has no bfloat16 on a CPU"

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        session, names = _session(case)
        feed = {name: array for name, array in _arrays(inputs).items() if name in names}
        return Prepared(partial(session.run, None, feed), tuple, _spins(case))


class OnnxRuntimeOut(OnnxRuntime):
    name = "onnxruntime-out"
    summary = "ONNX Runtime's operator, inputs and output bound"
    fresh = False

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        import onnxruntime

        session, names = _session(case)
        arrays, binding = _arrays(inputs), session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        for name in names:
            binding.bind_ortvalue_input(name, value(arrays[name]))
        outputs = [value(np.zeros_like(arrays["x"])) for _ in case.outputs]
        for name, output in zip(case.outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        call = partial(session.run_with_iobinding, binding)
        return Prepared(call, lambda _: [output.numpy() for output in outputs], _spins(case))


def _spins(case: Case) -> float:
    """How long worker threads spin for more work: 20 to 40 ms on a 2.6 GHz server, seen in the time of a copy."""
    return 0.04 if case.threads > 1 else 0.0


def _session(case: Case) -> tuple[Any, Sequence[str]]:
    """An inference session for the case, and the names of its inputs."""
    import onnxruntime
    from onnx import TensorProto, helper

    vectors = ["weight", "bias"] if case.op == "layer_norm" else ["weight"]
    operator = "LayerNormalization" if case.op == "layer_norm" else "RMSNormalization"
    normalised, nodes, matrices = "x", [], ["x"]
    if case.op == "add_rms_norm":
        normalised, matrices = "h", ["x", "residual"]
        nodes.append(helper.make_node("Add", matrices, ["h"]))
    nodes.append(helper.make_node(operator, [normalised, *vectors], ["y"], axis=-1, epsilon=EPS))

    def typed(names: Sequence[str], shape: Sequence[int]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]

    full = [case.rows, case.n]
    graph = helper.make_graph(
        nodes, case.op, typed(matrices, full) + typed(vectors, [case.n]), typed(case.outputs, full)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, matrices + vectors


class Jax(Provider):
    name = "jax"
    summary = "the formula under jax.jit, compiled for each shape, new output"
    colour = "#56B4E9"
    needs = ("jax",)

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, case: Case) -> str | None:
        return only(case, *PLAIN) or _refused(case, self.threads)

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        # JAX reads both once, when it starts. XLA's CPU client takes the size of its pool from NPROC.
        os.environ["NPROC"] = str(self.threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import jax.numpy as jnp

        formula, names = _jax_formula(case)
        arrays = {name: jnp.asarray(t.float().numpy(), dtype=case.dtype) for name, t in inputs.items()}
        operands: list[Any] = [arrays[name] for name in names]
        if not case.backward:
            function = jax.jit(formula)
        else:
            several = case.op == "add_rms_norm"

            def step(cotangents: Any, *operands: Any) -> Any:
                y, pull = jax.vjp(formula, *operands)
                return (*y, *pull(cotangents)) if several else (y, *pull(cotangents))

            function = jax.jit(step)
            operands.insert(0, (arrays["dy"], arrays["dh"]) if several else arrays["dy"])
        if len(case.outputs) == 1:
            return Prepared(lambda: function(*operands).block_until_ready())

        def call() -> Any:  # one by one: jax.block_until_ready walks the tree first, which costs a microsecond
            outputs = function(*operands)
            for output in outputs:
                output.block_until_ready()
            return outputs

        return Prepared(call)


def _jax_formula(case: Case) -> tuple[Callable[..., Any], Sequence[str]]:
    """The operation in jax.numpy, computed in float32, and the names of its operands."""
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

    choices: dict[str, tuple[Callable[..., Any], Sequence[str]]] = {
        "rms_norm": (rms_norm, ("x", "weight")),
        "add_rms_norm": (add_rms_norm, ("x", "residual", "weight")),
        "layer_norm": (layer_norm, ("x", "weight", "bias")),
    }
    return choices[case.op]
