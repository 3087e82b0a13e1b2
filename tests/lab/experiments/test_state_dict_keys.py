"""The names of every network's parameters and buffers: a kept network is loaded by them, so none may change.

``state_dict_keys.json`` holds them for each task and normaliser, and for its kernels where these differ. A network that
must have other names needs a way to load those that were kept before, and then its new names there.
"""

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from rmsnorm_lab.experiments import norms, tasks  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import KERNELS  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402

KEPT = json.loads(Path(__file__).with_name("state_dict_keys.json").read_text())
SIZES = {"vocabulary": 11, "features": 6, "channels": 1, "classes": 4}
SMALLEST = {
    "language": ["model.width=16", "model.layers=1", "model.heads=2", "model.feed_forward=8", "model.qk_norm=true"],
    "translation": ["model.embedding=4", "model.hidden=6"],
    "transformer": ["model.width=8", "model.layers=1", "model.heads=2", "model.feed_forward=8", "model.pre_norm=true"],
    "images": ["model.widths=4,8"],
    "reading": ["model.width=8", "model.word_width=8"],
    "retrieval": ["model.width=8", "model.word_width=8"],
}
OWN = "import torch\n\ndef Own(width):\n    return torch.nn.RMSNorm(width)\n"


def keys(task, norm, kernels):
    """Every name once, layers and directions by N instead of their number."""
    recipe = changed(tasks.recipe(task), SMALLEST[task], task)
    network = tasks.module(task).network(recipe, SIZES, norm, kernels)
    return sorted({re.sub(r"\.\d+", ".N", name) for name in network.state_dict()})


def recorded(task):
    """(normaliser, kernels or "" for all) -> names."""
    for listed, names in KEPT[task].items():
        for each in listed.split(", "):
            norm, _, kernels = each.partition(" ")
            yield (norm, kernels), names


@pytest.mark.parametrize("task", tasks.TASKS)
def test_networks_have_the_names_that_they_were_kept_with(task, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    registered = {"own": norms.of_user(f"{tmp_path}/own.py:Own")}
    kept = dict(recorded(task))
    for norm in (*norms.of_task(task), "own"):
        for kernels in KERNELS:
            expected = kept.get((norm, kernels)) or kept[norm, ""]
            assert keys(task, registered.get(norm, norm), kernels) == expected, (norm, kernels)
