"""Recurrent layers whose steps are one native call, over those with a call for each step, and over torch's own.

Calls alternate, and medians are compared. With RMSNorm inside; torch's layers have no norm. Takes two minutes.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch

from rmsnorm.torch import GRU, LSTM
from rmsnorm.torch.rnn import products
from rmsnorm_lab import machine

SHAPES = {  # steps, batch, features, hidden
    torch.float32: [
        (100, 1, 64, 64),
        (100, 1, 256, 256),
        (32, 16, 64, 64),
        (30, 16, 256, 256),
        (20, 200, 64, 64),
        (30, 128, 256, 256),
        (30, 64, 512, 512),
    ],
    torch.bfloat16: [(32, 16, 64, 64), (30, 16, 256, 256), (30, 32, 256, 256), (30, 128, 256, 256)],
}
LIMITS = ("AT_ONCE", "AT_ONCE_BFLOAT16")
SECONDS = 0.8  # a case


def limited(function: Callable[[], object], limit: int) -> Callable[[], object]:
    def call() -> None:
        for name in LIMITS:
            setattr(products, name, limit)
        function()

    return call


def compared(kind: type, dtype: torch.dtype, shape: tuple[int, ...], training: bool) -> dict[str, object]:
    steps, batch, features, hidden = shape
    x = torch.randn(steps, batch, features, dtype=dtype, requires_grad=training)
    ours = kind(features, hidden, norm="rms", dtype=dtype)
    theirs = getattr(torch.nn, kind.__name__)(features, hidden, dtype=dtype)

    def of(module: torch.nn.Module) -> Callable[[], object]:
        def call() -> None:
            with torch.set_grad_enabled(training):
                y, _ = module(x)
                if training:
                    y.backward(torch.ones_like(y))

        return call

    ways = {"at once": limited(of(ours), 1 << 62), "step by step": limited(of(ours), 0), "torch": of(theirs)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for call in (*ways.values(), *ways.values()):
        call()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(took["torch"]) < 3:
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - start)
    ms = {name: round(statistics.median(times) * 1e3, 3) for name, times in took.items()}
    over = {name: round(ms["at once"] / ms[name], 2) for name in ("step by step", "torch")}
    case = {"cell": kind.__name__, "dtype": str(dtype).removeprefix("torch."), "shape": shape, "training": training}
    return case | {"threads": torch.get_num_threads(), "rounds": len(took["torch"]), "ms": ms, "at once over": over}


def main() -> None:
    print(json.dumps({"cpu": machine.describe().cpu, "torch": torch.__version__}))
    for threads in (2, 1):
        torch.set_num_threads(threads)
        for dtype, shapes in SHAPES.items():
            for shape in shapes:
                for kind in (LSTM, GRU):
                    for training in (True, False):
                        print(json.dumps(compared(kind, dtype, shape, training)), flush=True)


if __name__ == "__main__":
    main()
