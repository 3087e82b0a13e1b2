"""The paper's experiments and today's: train the same model with each normaliser, compare quality and time."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmsnorm_lab.experiments.trained import Trained

__all__ = ["load"]


def load(run: str | os.PathLike[str], device: str = "cpu") -> "Trained":
    """The network that ``rmsnorm train`` has trained, ready to be used.

    The result has ``model`` (the torch.nn.Module in evaluation mode, with the weights that the recorded test figures
    are of), ``task``, ``norm``, ``recipe`` (all settings), ``record`` and ``preprocessor`` (the subwords, characters,
    words or whitening that its inputs take), and three methods: ``evaluate(data, split)``, ``translate(sentences)`` and
    ``sample(prompt, temperature, seed)``::

        run = rmsnorm_lab.experiments.load("runs/translation-rms-seed0-0123456789ab.jsonl")
        run.translate(["Monday, November 23, 2026"])

    No data are read, and nothing but tensors and plain values is unpickled (``weights_only=True``). If the run was
    trained with a norm of your own (``--norm my_norm.py:MyNorm``), that file is imported; a relative path is one from
    the current folder.

    Args:
        run: a record that ``rmsnorm train`` has written (its network lies beside it), or a folder with one such run.
        device: where the network goes.

    Raises:
        rmsnorm_lab.errors.UserError: there is no such run, one of its files is missing or damaged, or its own norm is
            missing or has changed.
    """
    from rmsnorm_lab.experiments import trained

    return trained.load(run, device)
