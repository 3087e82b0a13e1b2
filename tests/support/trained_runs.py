"""Small trained runs of every task."""

import random

from rmsnorm.cli import main
from rmsnorm_lab.experiments.data import digit_scenes
from tiny_runs import TINY, corpus

TEXTS = ["data.stand_in_pairs=300,20,30", "data.vocabulary=300"]
SETTINGS = {
    "language": TINY,
    "translation": [*TEXTS, "model.embedding=12", "model.hidden=16", "train.batch=16"],
    "transformer": [*TEXTS, "model.width=16", "model.feed_forward=32", "train.batch=300", "data.beam=2"],
    "images": ["model.widths=4,8", "train.best=true"],
    "reading": ["model.width=8", "model.word_width=8", "train.batch=6"],
    "retrieval": ["model.width=8", "model.word_width=8", "train.batch=6", "data.fold=2"],
}
NORMS = {"language": "batch", "translation": "weight", "transformer": "prms", "images": "weight", "reading": "batch"}


def questions(folder):
    draw = random.Random(0)
    for name, count in (("train", 20), ("dev", 5), ("test", 9)):
        words = [[draw.choice(["@entity1", "@entity2", "red", "blue", "saw"]) for _ in range(8)] for _ in range(count)]
        text = "".join(f"who saw @placeholder\n@entity1\n@entity1 {' '.join(context)} .\n\n" for context in words)
        (folder / f"{name}.txt").write_text(text)


def data_of(task, folder):
    """Small data, or None for a stand-in that is small itself."""
    folder.mkdir(exist_ok=True)
    if task == "language":
        return corpus(folder)
    if task == "reading":
        questions(folder)
    elif task == "retrieval":
        digit_scenes.write(folder, {"train": 8, "valid": 3, "test": 4})
    else:
        return None
    return folder


def train(task, folder, *more, status=0):
    data, out = data_of(task, folder / "data"), folder / "runs"
    words = ["train", task, "--norm", NORMS.get(task, "rms"), "--out", str(out), "--threads", "1", "--steps", "4"]
    words += ["--data", str(data)] if data else []
    assert main([*words, *more, "--set", *SETTINGS[task], "train.evaluations=2"]) == status
    return out, data
