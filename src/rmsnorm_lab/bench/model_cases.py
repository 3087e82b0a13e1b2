"""Whole models in the benchmark: a small Llama of transformers with random weights, its steps, its float64 oracle.

``512x1024, forward`` is a prefill of 512 tokens at hidden size 1024, ``1x1024, forward`` the decoding of one token
after 128 others, and ``forward+backward`` a training step without its optimizer.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from rmsnorm_lab.bench.cases import EPS, Case
from rmsnorm_lab.bench.oracle import Inputs, WrongError

VOCABULARY, PAST, HEAD = 4096, 128, 64
LAYERS, WIDE, LAYERS_OF_WIDE = 4, 2048, 2

# Relative to the root mean square of the result. transformers' own model has 1e-6 and 1e-2.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.007}


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """The tokens that all providers share. Dynamo forgets the graphs of other cases, whose number is limited."""
    torch._dynamo.reset()
    draw = torch.Generator().manual_seed(seed)
    return {"ids": torch.randint(VOCABULARY, (1, case.rows + (PAST if decodes(case) else 0)), generator=draw)}


def decodes(case: Case) -> bool:
    return case.rows == 1 and not case.backward


@lru_cache(maxsize=1)
def stock(n: int, dtype: str) -> nn.Module:
    """The model of hidden size n. Gains are random, so that a norm that forgets its gain is wrong."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=n,
        intermediate_size=-(-8 * n // (3 * 64)) * 64,
        num_hidden_layers=_layers(n),
        num_attention_heads=max(1, n // HEAD),
        num_key_value_heads=max(1, n // HEAD),
        rms_norm_eps=EPS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for norm in norms(model):
                norm.weight.add_(0.3 * torch.randn(n))  # type: ignore[operator]
    return model.to(getattr(torch, dtype))


def operations(case: Case) -> float:
    """Of a step's matrix products, roughly: 12·n² weights a layer, and the head."""
    weights = 12 * case.n**2 * _layers(case.n) + VOCABULARY * case.n
    return 2.0 * weights * case.rows * (3 if case.backward else 1)


def _layers(n: int) -> int:
    return LAYERS if n < WIDE else LAYERS_OF_WIDE


def norms(model: nn.Module) -> list[nn.Module]:
    """The model's norms."""
    return [module for module in model.modules() if type(module).__name__ in ("LlamaRMSNorm", "RMSNorm")]


def twin(model: nn.Module) -> nn.Module:
    """A model of modules of its own, with the same parameters: only one model's weights fill the caches."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def step(case: Case, model: Callable[..., Any], inputs: Inputs, parameters: Sequence[Tensor]) -> Callable[[], Any]:
    """The call to time: a prefill, one token's decoding or a training step of ``model``."""
    ids = inputs["ids"]
    if case.backward:

        def train() -> Any:
            for p in parameters:
                p.grad = None
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss

        return train
    if not decodes(case):
        return torch.no_grad()(lambda: model(input_ids=ids, use_cache=False).logits)
    from transformers import DynamicCache, LlamaForCausalLM

    cache: Any = DynamicCache()
    name = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"  # before 5.24
    past = {name: cache, "use_cache": True}
    with torch.no_grad():
        model(input_ids=ids[:, :PAST], **past)
    token = ids[:, PAST:]

    def decode() -> Any:
        logits = model(input_ids=token, **past).logits
        cache.crop(-1)  # the token again
        return logits

    return torch.no_grad()(decode)


def outputs(case: Case, parameters: Sequence[Tensor], result: Tensor) -> tuple[Tensor, ...]:
    """What is compared: the last token's logits, or the loss and all gradients."""
    if not case.backward:
        return (result[:, -1].detach(),)
    gradients = [p.grad.flatten().double() for p in parameters if p.grad is not None]
    return result.detach(), torch.cat(gradients)


class ModelOracle:
    """The model in float64, except where its own code says float32."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.case = case
        model = copy.deepcopy(stock(case.n, case.dtype)).double()
        parameters = [*model.parameters()]
        self.want = outputs(case, parameters, step(case, model, inputs, parameters)())

    def check(self, found: Sequence[Any]) -> dict[str, float]:
        """The relative error of each output, or WrongError."""
        errors = {}
        names = ("loss", "gradients") if self.case.backward else ("logits",)
        for name, output, want in zip(names, found, self.want, strict=True):
            if output.shape != want.shape:
                raise WrongError(f"{name} must be of shape {tuple(want.shape)}; got {tuple(output.shape)}")
            error = float((output.double() - want).norm() / want.norm())
            if not error <= TOLERANCE[self.case.dtype]:
                raise WrongError(f"{name} is {error:.3g} of its size off the float64 model")
            errors[name] = error
        return errors
