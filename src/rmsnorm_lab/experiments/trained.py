"""A trained network, ready to use: what ``rmsnorm_lab.experiments.load`` returns, and its three verbs."""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import devices, networks, norms, store, tasks
from rmsnorm_lab.experiments.arguments import MOST
from rmsnorm_lab.experiments.data.subwords import LONGEST
from rmsnorm_lab.experiments.learner import Setup, fabric_for
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.record import RunRecord
from rmsnorm_lab.experiments.sampling import sample
from rmsnorm_lab.experiments.task import Task
from rmsnorm_lab.plain import from_plain

VERBS = {"language": "sample", "translation": "translate", "transformer": "translate"}
"""What a task's network can do besides evaluate."""


@dataclass(frozen=True)
class Trained:
    """A trained network with what is needed to use it; see :func:`rmsnorm_lab.experiments.load`."""

    model: nn.Module
    """In evaluation mode, on the device that was asked for; the weights that the recorded test figures are of."""
    task: str
    """One of rmsnorm_lab.experiments.tasks.TASKS."""
    norm: str
    """The normaliser's name."""
    recipe: Recipe
    """All settings of the training."""
    record: RunRecord
    """The run's record: settings, machine, curve and figures."""
    preprocessor: Any
    """What prepares an input for the network: ``Subwords`` (translation, transformer), the characters in the
    order of their ids (language; the id after the last is any other character), the words in the order of their ids
    (reading, retrieval), the ``Whitening`` of pixels (images)."""
    files: Mapping[str, bytes]
    """The files beside the record that the preprocessor was read from, by name."""
    sizes: Mapping[str, int]
    """The parts of the network's shape that the training data decided."""

    def on(self, data: str | os.PathLike[str] | None = None) -> Task:
        """The task on ``data``, or on the stand-in; the network can be used on its batches.

        Raises:
            UserError: the data are missing, or give another vocabulary than the network was trained with.
        """
        if data is None and not self.record.identity.source.stand_in:
            raise UserError(
                f"the run was trained on {self.record.source_name!r}, which is no stand-in. "
                "Pass these data (--data PATH)."
            )
        task = tasks.load(self.task, None if data is None else Path(data), self.recipe)
        if task.sizes != self.sizes or not _alike(task.files(), self.files):
            raise UserError(
                f"the data must have the training files of the run; {task.source.name!r} gives other "
                f"{', '.join(task.files())} or sizes than the network was trained with. Pass the data of the training."
            )
        return task

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, split: str = "test"
    ) -> tuple[Task, dict[str, float]]:
        """The task's figures on ``split`` ("test", or "valid" as the curve has it) of ``data``.

        On the data of the training the figures of "test" are the recorded ones. Other data must have the same training
        files, since the words, the subwords or the whitening are taken from these; their test files may be others.

        Args:
            data: what ``rmsnorm train --data`` takes; None for the stand-in.

        Returns:
            (the task on these data, figure by metric).

        Raises:
            UserError: the data are missing, or give another vocabulary than the network was trained with.
        """
        if split not in ("valid", "test"):
            raise UserError(f"split must be valid or test; got {split!r}. Pass one of these.")
        task = self.on(data)
        identity = self.record.identity
        device = next(self.model.parameters()).device
        fabric = fabric_for(Setup(identity.kernels, str(device), identity.precision))
        with torch.no_grad(), fabric.autocast():
            figures = task.evaluate(self.model, split)
        return task, {key: round(value, 6) for key, value in figures.items()}  # as a record has them

    def translate(self, sentences: Sequence[str], first: int = 1) -> list[str]:
        """The translations, one a sentence, by the beam search of the recipe; an empty sentence stays empty.

        Args:
            first: the number of the first sentence, for messages.

        Raises:
            TypeError: the sentences are no sequence of str.
            UserError: the run is of another task, or a sentence is too long or no text of UTF-8.
        """
        self._must_be("translate")
        if isinstance(sentences, str):
            raise TypeError(f"sentences must be a sequence of str; got the str {sentences!r}. Pass a list of it.")
        for place, sentence in enumerate(sentences, first):
            if not isinstance(sentence, str):
                raise TypeError(
                    f"each sentence must be a str; line {place} is {type(sentence).__name__}. Decode or convert it."
                )
            try:
                sentence.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"a sentence must be text that UTF-8 can hold; line {place} is not: {error.reason} "
                    f"({sentence[error.start]!a}). Remove that character."
                ) from None
        from rmsnorm_lab.experiments.tasks.parallel_text import translate

        full = [place for place, sentence in enumerate(sentences) if sentence.strip()]
        chosen = [sentences[place] for place in full]
        for place, ids in zip(full, self.preprocessor.encode(chosen).lengths if chosen else (), strict=True):
            if ids > LONGEST:
                raise UserError(
                    f"a sentence must have at most {LONGEST} subwords; line {first + place} has {ids}. Split it."
                )
        config, found = self.recipe.data, [""] * len(sentences)
        with torch.no_grad():
            made = translate(self.model, self.preprocessor, chosen, config)
        for place, text in zip(full, made, strict=True):
            found[place] = " ".join(text.splitlines())  # a network may put a line's end anywhere
        return found

    def sample(self, prompt: str = "\n", temperature: float = 1.0, seed: int = 0) -> Iterator[str]:
        """Characters that go on from ``prompt``, without end: ``"".join(itertools.islice(run.sample(), 200))``.

        Args:
            prompt: at least one character; those that the training text lacks are read as one unknown character.
            temperature: 1 draws as the network has learnt, less is more likely text, 0 takes the likeliest character.
            seed: of what is drawn.

        Raises:
            UserError: the run is of another task, or an argument cannot be.
        """
        self._must_be("sample")
        if not prompt:
            raise UserError("the prompt must have a character or more; got none. Leave it out, or pass some text.")
        if not (0 <= temperature < math.inf):
            raise UserError(f"the temperature must be finite, and 0 or above; got {temperature:g}. Pass another.")
        if not 0 <= seed <= MOST["seed"]:
            raise UserError(f"the seed must be from 0 to {MOST['seed']}; got {seed}. Pass another one.")
        places = {character: place for place, character in enumerate(self.preprocessor)}
        ids = [places.get(character, len(places)) for character in prompt]
        drawn = sample(
            self.model,
            ids,
            context=self.recipe.model.context,
            known=len(places),
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )
        return (self.preprocessor[place] for place in drawn)

    def _must_be(self, verb: str) -> None:
        """Refuse a task that does not have this verb, and name the right verb."""
        if (own := VERBS.get(self.task, "evaluate")) != verb:
            of = " or ".join(task for task, its in VERBS.items() if its == verb)
            raise UserError(f"{verb} needs a network of {of}; this one is of {self.task}. Use {own}.")


def load(run: str | os.PathLike[str], device: str = "cpu") -> Trained:
    """See :func:`rmsnorm_lab.experiments.load`."""
    devices.check(device)
    path = _record_of(Path(run))
    record = store.read(path)
    if not isinstance(record, RunRecord):
        raise UserError(f"RUN must be the record of a training; {str(path)!r} is of a timing. Pass another one.")
    identity, network = record.identity, networks.read(path)
    if record.norm_source is not None:
        _import_norm(record.norm_source, identity.norm, path)
    recipe = _recipe(record, path)
    module = tasks.module(record.task)
    try:
        model: nn.Module = module.network(recipe, network.sizes, identity.norm, identity.kernels)
        model.load_state_dict(network.weights)
    except (RuntimeError, KeyError, TypeError) as error:
        raise _of_another_version(networks.path_of(path), error) from None
    files = networks.files_of(path, network)
    return Trained(
        model=model.to(device).eval(),
        task=record.task,
        norm=identity.norm,
        recipe=recipe,
        record=record,
        preprocessor=module.preprocessor(files),
        files=files,
        sizes=network.sizes,
    )


def _import_norm(source: str, name: str, path: Path) -> None:
    """Register the user's own norm that a run was trained with, if it is still the same."""
    try:
        found = norms.of_user(source)
    except UserError as error:
        raise UserError(f"{path} was trained with the norm {source}, which must be there as it was: {error}") from None
    if found != name:
        raise UserError(
            f"{path} was trained with the norm {source} as {name}; it is {found} now: its source has changed. "
            "Put the file back as it was, or train again."
        )


def _record_of(run: Path) -> Path:
    """The record that RUN names: itself, or the only one with a network in the folder."""
    if not run.exists():
        raise UserError(f"RUN must be a record or its folder; {str(run)!r} does not exist. Check the spelling.")
    if not run.is_dir():
        if run.is_file() and run.suffix == ".jsonl":
            return run
        record = run.with_name(run.name.removesuffix(networks.SUFFIX) + ".jsonl")
        pass_on = f"Pass {str(record)!r}." if run.name.endswith(networks.SUFFIX) else "Pass one of these."
        raise UserError(f"RUN must be a record (a .jsonl file) or its folder; got {str(run)!r}. {pass_on}")
    records = sorted(run.glob("*.jsonl"))
    usable = [path for path in records if networks.path_of(path).is_file()]
    if len(usable) == 1:
        return usable[0]
    if usable:
        listed = "\n".join(f"  {path}" for path in usable)
        raise UserError(f"RUN must be one run; {str(run)!r} holds {len(usable)}. Name one of them:\n{listed}")
    raise UserError(
        f"RUN must be a run with its network; {str(run)!r} holds none, and {len(records)} records. "
        "rmsnorm train makes one."
    )


def _recipe(record: RunRecord, path: Path) -> Recipe:
    """The recipe that a record's settings are of."""
    identity = record.identity
    try:
        usual = tasks.recipe(record.task, identity.size)
        model, data = _part(usual.model, identity.model), _part(usual.data, identity.data)
        return replace(usual, model=model, data=data, train=identity.train, p=identity.p or usual.p, learning_rates=())
    except (ValueError, AttributeError, ModuleNotFoundError) as error:
        raise _of_another_version(path, error) from None


def _part(usual: Any, values: dict[str, Any] | None) -> Any:
    if values is None:
        return None
    return from_plain(type(usual), values)


def _of_another_version(path: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(f"{path} must be of this version's networks; it is not ({reason}). Train again.")


def _alike(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> bool:
    """Whether two preprocessors are the same, numbers up to the rounding of another machine."""
    return ours.keys() == theirs.keys() and all(
        _close(ours[name], theirs[name]) if name.endswith(".npz") else ours[name] == theirs[name] for name in ours
    )


def _close(ours: bytes, theirs: bytes) -> bool:
    with np.load(io.BytesIO(ours)) as mine, np.load(io.BytesIO(theirs)) as other:
        return mine.files == other.files and all(
            mine[name].shape == other[name].shape and np.allclose(mine[name], other[name], rtol=1e-5, atol=1e-8)
            for name in mine.files
        )
