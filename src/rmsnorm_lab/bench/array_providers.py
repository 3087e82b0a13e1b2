"""Providers that take NumPy arrays: this project's functions, plain NumPy and ONNX Runtime.

Arguments are converted while building. A timed call copies none of them, and leaves no work running.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rmsnorm_lab.bench.cases import EPS, PLAIN, QUANTIZED, Case
from rmsnorm_lab.bench.oracle import Array, Inputs
from rmsnorm_lab.bench.provider import Prepared, Provider, not_installed, one_pool, only


def _arrays(inputs: Inputs) -> dict[str, Array]:
    """Tensors as NumPy arrays, without a copy; bfloat16 as the dtype that ml_dtypes adds to NumPy."""

    def array(tensor: torch.Tensor) -> Array:
        if tensor.dtype != torch.bfloat16:
            return tensor.numpy()
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    return {name: array(tensor) for name, tensor in inputs.items()}


class OursNumPy(Provider):
    name = "rmsnorm-numpy"
    summary = "this project, rmsnorm.numpy, new output"
    colour = "#666666"
    wide_sums = True

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, case: Case) -> str | None:
        if case.dtype == "bfloat16" and (lacking := not_installed("ml_dtypes")):
            return f"NumPy's bfloat16: {lacking}"
        if case.alone:
            return "only torch's and JAX's providers have a backward pass alone"
        return only(case, *PLAIN, "rms_norm_heads", *QUANTIZED) or one_pool(case, self.threads)

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        os.environ["RMSNORM_NUM_THREADS"] = str(self.threads)  # read when the pool starts, at the first call
        import rmsnorm.numpy as ours

        arrays = _arrays(inputs)
        x, weight = arrays["x"], arrays["weight"]
        options: dict[str, Any] = {"eps": EPS} if case.p == 1 else {"eps": EPS, "p": case.p}
        forward: Callable[[], Any]
        if case.op == "layer_norm":
            forward = partial(ours.layer_norm, x, weight, arrays["bias"], eps=EPS)
        elif case.adds:
            function: Callable[..., Any] = ours.add_rms_norm_quantized if case.quantized else ours.add_rms_norm
            forward = partial(function, x, arrays["residual"], weight, **options)
        elif case.quantized:
            forward = partial(ours.rms_norm_quantized, x, weight, **options)
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


class OursNumPyOut(OursNumPy):
    name = "rmsnorm-numpy-out"
    summary = "this project, rmsnorm.numpy, into out="
    colour = "#444444"
    fresh = False

    def refuses(self, case: Case) -> str | None:
        if case.backward or case.op not in ("rms_norm", "layer_norm"):
            return "out= exists for the forward passes of rms_norm and layer_norm"
        return super().refuses(case)

    def build(self, case: Case, inputs: Inputs) -> Prepared:
        forward: Callable[..., Any] = super().build(case, inputs).call
        return Prepared(partial(forward, out=np.empty_like(_arrays(inputs)["x"])))


class NumPy(Provider):
    name = "numpy"
    summary = "the formula in NumPy, one thread"
    colour = "#E69F00"

    def refuses(self, case: Case) -> str | None:
        if case.backward:
            return "the formula in NumPy has no backward pass"
        if refused := only(case, *PLAIN):
            return refused
        return None if case.dtype == "float32" else "the formula is measured in float32 alone"

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
        return None if case.dtype == "float32" else "its RMSNormalization has float32 alone on a CPU"

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
