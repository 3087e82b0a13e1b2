"""What the two translation tasks share: parallel text, the loss per word, the search and the scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rmsnorm_lab.experiments import hidden_states
from rmsnorm_lab.experiments.data import dates, encoded_pairs, parallel
from rmsnorm_lab.experiments.data import drawn as random_inputs
from rmsnorm_lab.experiments.data.batches import Batch, Batches, padded
from rmsnorm_lab.experiments.data.corpus import Pairs
from rmsnorm_lab.experiments.data.encoded_pairs import SAMPLED, SUBWORDS, check_lengths
from rmsnorm_lab.experiments.data.epochs import check_enough
from rmsnorm_lab.experiments.data.messages import Messages, holds_messages
from rmsnorm_lab.experiments.data.prepared import Prepared, prepare, temporary
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import PAD, Subwords
from rmsnorm_lab.experiments.models.search import search
from rmsnorm_lab.experiments.processes import shared
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.recipes.parallel_text import DataConfig
from rmsnorm_lab.experiments.scores import score, signatures
from rmsnorm_lab.experiments.task import Metric, Source
from rmsnorm_lab.files import sha256_of

EVALUATED_TOGETHER = 128
"""Number of sentences searched together."""
IDS_TOGETHER = 8192
"""Number of ids computed together, padding included: 1 GB of logits for 32,000 subwords."""

Network = Callable[[Recipe, dict[str, int], str, str], nn.Module]
"""(recipe, sizes, norm, kernels) -> the untrained network."""


class ParallelTextTask:
    """A translation task, whatever the network (task.Task)."""

    def __init__(
        self, name: str, network: Network, recipe: Recipe, found: Prepared, source_name: str, stand_in: bool
    ) -> None:
        config: DataConfig = recipe.data
        self.name, self.recipe, self._network = name, recipe, network
        (valid, *tests), tokenised = encoded_pairs.evaluated(found.info), found.info["tokenised"]
        self.subwords = Subwords.loads(found.info["subwords"], Path(SUBWORDS))
        self.sizes = {"vocabulary": self.subwords.size}
        source, target = found.ragged("train.source"), found.ragged("train.target")
        self._batches = Batches(source, target, recipe.train.batch, config.by_tokens, config.pool)
        self._valid, self._tests, self._tokenised = _first(valid, config.valid_pairs), tests, tokenised
        for pairs in (self._valid, *tests):
            for language, side in ((config.source, pairs.source), (config.target, pairs.target)):
                check_lengths(self.subwords.encode(side), f"{pairs.name}, {language}")
        self.metrics = _metrics(tests, tokenised, stand_in)
        self.source = Source(
            name=source_name,
            stand_in=stand_in,
            sha256=found.info["sha256"],
            details={
                "direction": f"{config.source}-{config.target}",
                "train pairs": found.info["train pairs"],
                **{f"{pairs.name} pairs": len(pairs.source) for pairs in (valid, *tests)},
                **{name: found.info[name] for name in ("left out with an empty side", "left out as too long")},
                **found.info["counts"],
                "text": "tokenised" if tokenised else "plain",
                "subwords": self.subwords.size,
                **({SAMPLED: found.info[SAMPLED]} if SAMPLED in found.info else {}),
                "subwords sha256": sha256_of(self.subwords.dumps())[:12],
                **signatures(tokenised),
            },
        )
        longer = np.maximum(source.lengths, target.lengths)
        amount, what = (int(longer.sum()), "tokens") if config.by_tokens else (len(longer), "sentences")
        check_enough(amount, recipe.train.batch, self.source.name, what)
        first = tests[0]
        headline = self.metrics[0].key
        self.references = {"copying the source": score(first.source, first.target, tokenised)[headline]}

    def files(self) -> dict[str, bytes]:
        """The subwords. Without them a trained network cannot be used."""
        return {SUBWORDS: self.subwords.dumps()}

    def model(self, norm: str, kernels: str) -> nn.Module:
        return self._network(self.recipe, self.sizes, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        return self._batches(step, seed)

    def initialise(self, model: nn.Module, seed: int) -> None:
        """Nothing depends on data."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy in nats with label smoothing, summed over the target's ids, or over the sentences' means."""
        if self.recipe.model.loss_of != "sentence_means":
            return self._cross_entropy(model, batch, "sum")
        each_BT = self._cross_entropy(model, batch, "none").view_as(batch[1])
        return (each_BT.sum(1) / (batch[1] != PAD).sum(1)).sum()

    def weight(self, batch: Any) -> float:
        """The target's ids without padding, or the sentences."""
        return _words(batch) if self.recipe.model.loss_of == "words" else len(batch[1])

    def _cross_entropy(self, model: nn.Module, batch: Any, reduction: str) -> Tensor:
        source, target = batch
        logits = model(source, target).float()
        smoothing = self.recipe.model.label_smoothing
        return F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction=reduction
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        if split == "valid":
            return self._scores(model, self._valid, beam=1)
        first, *others = self._tests
        found = self._scores(model, first, self.recipe.data.beam)
        for pairs in others:
            scores = self._scores(model, pairs, self.recipe.data.beam)
            found |= {f"bleu_{pairs.name}": scores["bleu"], f"chrf_{pairs.name}": scores["chrf"]}
        if hasattr(model, "trace"):  # RNNSearch's; the Transformer has no recurrence
            found |= hidden_states.figures(self._traced(model))
        return found

    def _traced(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """The decoder's hidden-to-hidden activations on the validation pairs, and where their targets have words."""
        source, target = self.subwords.encode(self._valid.source), self.subwords.encode(self._valid.target)
        device = next(model.parameters()).device
        for chosen in _chunks(source, target):
            ids = padded(target, chosen).to(device)
            yield model.trace(padded(source, chosen).to(device), ids).recurrent_BTG, ids != PAD  # type: ignore[operator]

    def _scores(self, model: nn.Module, pairs: Pairs[list[str]], beam: int) -> dict[str, float]:
        source, target = self.subwords.encode(pairs.source), self.subwords.encode(pairs.target)
        device = next(model.parameters()).device

        def lost(chosen: Any) -> tuple[float, float]:
            batch = padded(source, chosen).to(device), padded(target, chosen).to(device)
            return float(self._cross_entropy(model, batch, "sum")), _words(batch)

        total, words = (sum(column) for column in zip(*shared(lost, _chunks(source, target)), strict=True))
        translations = translate(model, self.subwords, pairs.source, self.recipe.data, beam)
        found = score(translations, pairs.target, self._tokenised)
        return {"loss": total / words, **found}


def load(name: str, network: Network, data: Path | None, recipe: Recipe) -> ParallelTextTask:
    """The task of that name and network on ``data``, or on dates."""
    if data is None:
        config: DataConfig = recipe.data
        corpus = dates.corpus(*config.stand_in_pairs, config.source, config.target)
        found, of = temporary(partial(encoded_pairs.build, lambda _: corpus, None, config)), dates.name()
    else:
        found, of = _prepared(data, recipe.data), data.resolve().name
    return ParallelTextTask(name, network, recipe, found, of, stand_in=data is None)


def drawn(name: str, network: Network, recipe: Recipe) -> ParallelTextTask:
    """The same on inputs drawn at random."""
    found = random_inputs.pairs(recipe.data, recipe.train.batch)
    return ParallelTextTask(name, network, recipe, found, random_inputs.name(random_inputs.WMT14), stand_in=True)


def _words(batch: Any) -> int:
    return int((batch[1] != PAD).sum())


def preprocessor(files: Mapping[str, bytes]) -> Subwords:
    """The subwords."""
    return Subwords.loads(files[SUBWORDS].decode(), Path(SUBWORDS))


def translate(
    model: nn.Module, subwords: Subwords, sentences: Sequence[str], config: DataConfig, beam: int | None = None
) -> list[str]:
    """The translations in the sentences' order; which of them are searched together does not matter.

    ``beam`` is another than ``config``'s.
    """
    times, more = config.limit
    source = subwords.encode(sentences)
    device = next(model.parameters()).device

    def translated(chosen: Any) -> list[str]:
        ids = padded(source, chosen).to(device)
        limits = torch.from_numpy(source.lengths[chosen]) * times + more
        found, _ = search(
            model,  # type: ignore[arg-type]
            ids,
            limits,
            config.beam if beam is None else beam,
            config.length_penalty,
            config.length_offset,
        )
        return [subwords.decode(words) for words in found.tolist()]

    translations, chunks = [""] * len(sentences), _chunks(source)
    for chosen, texts in zip(chunks, shared(translated, chunks), strict=True):
        for index, text in zip(chosen, texts, strict=True):
            translations[index] = text
    return translations


def _text(data: Path, config: DataConfig) -> parallel.Sets | Messages:
    """WMT's sets where there is a training set; else the catalogs of messages, where there are any."""
    if not parallel.holds_training(data) and holds_messages(data):
        return Messages(data, config.source, config.target)
    return parallel.find(data, config.source, config.target)


def _prepared(data: Path, config: DataConfig) -> Prepared:
    text = _text(data, config)
    given = data / SUBWORDS if (data / SUBWORDS).exists() else None

    def files() -> list[Path]:
        return [*text.files(), *([given] if given else [])]

    settings = {
        "vocabulary": config.vocabulary,
        "max_length": config.max_length,
        **text.settings,
        "learnt from": encoded_pairs.LEARNT_FROM,
        "tokenizers": version("tokenizers"),
    }
    return prepare("translation", data, files, settings, partial(encoded_pairs.build, text.read, given, config))


def _first(pairs: Pairs[list[str]], count: int) -> Pairs[list[str]]:
    return Pairs(pairs.name, pairs.source[:count], pairs.target[:count], pairs.tokenised)


def _chunks(source: Ragged, target: Ragged | None = None) -> list[NDArray[np.int64]]:
    """Groups of sentences of similar length; long sentences come in smaller groups."""
    chunks: list[NDArray[np.int64]] = []
    order = np.argsort(source.lengths, kind="stable")
    longest = (source.lengths if target is None else np.maximum(source.lengths, target.lengths))[order]
    start = 0
    while start < len(order):
        widths = np.maximum.accumulate(longest[start : start + EVALUATED_TOGETHER])
        count = max(int((widths * np.arange(1, len(widths) + 1) <= IDS_TOGETHER).sum()), 1)
        chunks.append(order[start : start + count])
        start += count
    return chunks


def _metrics(tests: Sequence[Pairs[list[str]]], tokenised: bool, stand_in: bool) -> tuple[Metric, ...]:
    """BLEU is the main metric on human text; on the stand-in, which has one right answer, it is exact match."""
    of = " (tokenised)" if tokenised else ""
    exact = Metric("exact", "exact match\n%", True, ".1f")
    if stand_in:
        return (
            exact,
            Metric("bleu", "BLEU\nof this set", True, ".1f"),
            Metric("chrf", "chrF\nof this set", True, ".1f"),
        )
    metrics = []
    for number, pairs in enumerate(tests):
        suffix = f"_{pairs.name}" if number else ""
        metrics.append(Metric(f"bleu{suffix}", f"BLEU{of}\n{pairs.name}", True, ".1f", f"BLEU{of}"))
        metrics.append(Metric(f"chrf{suffix}", f"chrF\n{pairs.name}", True, ".1f", "chrF"))
    return (*metrics, exact)
