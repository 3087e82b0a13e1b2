"""The smallest run of a language model: its text, its settings, its command lines, and what it leaves."""

import json
import random

# A model that takes a millisecond a step.
TINY = [
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.feed_forward=48",
    "model.context=32",
    "data.evaluation_windows=32",
]
SHORT = ["timing.warmup_rounds=1", "timing.rounds=6"]  # the fewest that have an interval
STEPS = 200
RUNS = 8  # of language(): four normalisers × two seeds


def corpus(folder):
    draw = random.Random(0)
    path = folder / "words.txt"
    path.write_text("\n".join(draw.choice(["alpha", "beta", "gamma"]) for _ in range(4000)))
    return path


def language(out, *more, steps=2, seeds=2):
    data = out.parent / "words.txt"
    timed = () if {"--timing-rounds", "--sweep-lr", "--sweep-p"} & set(more) else SHORT
    return [
        *("compare", "language", "--data", str(data), "--out", str(out), "--threads", "1"),
        *("--steps", str(steps), "--seeds", str(seeds), "--set", *TINY, *timed, *more),
    ]


def arguments(text, out, *more, steps=STEPS):
    data = ["--data", str(text), "--out", str(out), "--threads", "1", "--steps", str(steps)]
    return ["train", "language", "--norm", "batch", *data, "--set", *TINY, *more]  # with buffers, beside parameters


def result(out):
    (path,) = out.glob("*.jsonl")
    found = json.loads(path.read_text())["result"]
    curve = {key: value for key, value in found["curve"].items() if key != "seconds"}
    return found["quality"], curve


def contents(out):
    return {path.name: path.read_bytes() for path in out.glob("*.jsonl")}


def checkpoints(out):
    return sorted((out / "checkpoints").glob("*.pt"))
