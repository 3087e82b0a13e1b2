"""What the two translation tasks share: parallel text, the loss by the word, the search and the scores."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm.errors import UserError
from rmsnorm.experiments import hidden_states, tasks
from rmsnorm.experiments.data import dates
from rmsnorm.experiments.data.batches import Batch, Batches, padded
from rmsnorm.experiments.data.epochs import check_enough
from rmsnorm.experiments.data.parallel import Corpus, Pairs, read_corpus
from rmsnorm.experiments.data.subwords import PAD, SMALLEST, Sentences, Subwords
from rmsnorm.experiments.models.search import search
from rmsnorm.experiments.processes import shared
from rmsnorm.experiments.recipes.common import Recipe
from rmsnorm.experiments.recipes.parallel_text import DataConfig
from rmsnorm.experiments.scores import score, signatures
from rmsnorm.experiments.task import Metric, Source

SUBWORDS = "subwords.json"
"""In the folder of the data: subwords of an earlier run, taken instead of learning them anew."""
EVALUATED_TOGETHER = 128
"""Sentences that are searched at a time."""

Network = Callable[[int, str, str], nn.Module]
"""(vocabulary, norm, kernels) -> the untrained network."""


class ParallelTextTask:
    """A translation task, whatever the network (task.Task)."""

    def __init__(self, name: str, network: Network, data: Path | None, recipe: Recipe) -> None:
        config: DataConfig = recipe.data
        if config.vocabulary < SMALLEST:  # every byte, and the marks
            raise UserError(
                f"data.vocabulary must be at least {SMALLEST}; got {config.vocabulary}. Set it to {SMALLEST} or more."
            )
        self.name, self.recipe, self._network = name, recipe, network
        self.norms, self.default_norms = tasks.NORMS[name], tasks.DEFAULT_NORMS[name]
        if data is None:
            corpus = dates.corpus(*config.stand_in_pairs, config.source, config.target)
        else:
            corpus = read_corpus(data, config.source, config.target)
        self.subwords = _subwords(corpus.train, data, config)
        train, too_long = _within(corpus.train, self.subwords, config.max_length)
        self._batches = Batches(*train, recipe.train.batch, config.by_tokens)
        self._valid, self._tests = _first(corpus.valid, config.valid_pairs), corpus.tests
        self._tokenised = corpus.train.tokenised
        self.metrics = _metrics(corpus, stand_in=data is None)
        self.source = Source(
            name=dates.name() if data is None else data.resolve().name,
            stand_in=data is None,
            sha256=corpus.sha256(),
            details={
                "direction": f"{config.source}-{config.target}",
                **{f"{pairs.name} pairs": len(pairs.source) for pairs in (corpus.train, corpus.valid, *corpus.tests)},
                "left out with an empty side": corpus.train.without_text,
                "left out as too long": too_long,
                "text": "tokenised" if self._tokenised else "plain",
                "subwords": self.subwords.size,
                "subwords sha256": hashlib.sha256(self.subwords.dumps()).hexdigest()[:12],
                **signatures(self._tokenised),
            },
        )
        longer = np.maximum(train[0].lengths, train[1].lengths)
        amount, what = (int(longer.sum()), "tokens") if config.by_tokens else (len(longer), "sentences")
        check_enough(amount, recipe.train.batch, self.source.name, what)
        first = self._tests[0]
        headline = self.metrics[0].key
        self.references = {"copying the source": score(first.source, first.target, self._tokenised)[headline]}

    def files(self) -> dict[str, bytes]:
        """What belongs beside the run: without its subwords a trained network can be used by nobody."""
        return {SUBWORDS: self.subwords.dumps()}

    def model(self, norm: str, kernels: str) -> nn.Module:
        return self._network(self.subwords.size, norm, kernels)

    def batch(self, step: int, seed: int) -> Batch:
        return self._batches(step, seed)

    def initialise(self, model: nn.Module, batch: Any) -> None:
        """Nothing depends on data."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy in nats with label smoothing, summed over the target's ids."""
        source, target = batch
        logits = model(source, target).float()
        smoothing = self.recipe.model.label_smoothing
        return F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum"
        )

    def weight(self, batch: Any) -> float:
        """The target's ids without padding."""
        return int((batch[1] != PAD).sum())

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
        for chosen in _chunks(source):
            ids = padded(target, chosen).to(device)
            yield model.trace(padded(source, chosen).to(device), ids).recurrent_BTG, ids != PAD  # type: ignore[operator]

    def translate(self, model: nn.Module, sentences: list[str], beam: int) -> list[str]:
        """The translations in the sentences' order; which of them are searched together does not matter."""
        source = self.subwords.encode(sentences)
        device = next(model.parameters()).device

        def translated(chosen: Any) -> list[str]:
            ids = padded(source, chosen).to(device)
            limits = torch.from_numpy(source.lengths[chosen]) * 2 + 10
            found, _ = search(model, ids, limits, beam, self.recipe.data.length_penalty)  # type: ignore[arg-type]
            return [self.subwords.decode(words) for words in found.tolist()]

        translations, chunks = [""] * len(sentences), _chunks(source)
        for chosen, texts in zip(chunks, shared(translated, chunks), strict=True):
            for index, text in zip(chosen, texts, strict=True):
                translations[index] = text
        return translations

    def _scores(self, model: nn.Module, pairs: Pairs, beam: int) -> dict[str, float]:
        source, target = self.subwords.encode(pairs.source), self.subwords.encode(pairs.target)
        device = next(model.parameters()).device

        def lost(chosen: Any) -> tuple[float, float]:
            batch = padded(source, chosen).to(device), padded(target, chosen).to(device)
            return float(self.loss(model, batch)), self.weight(batch)

        total, words = (sum(column) for column in zip(*shared(lost, _chunks(source)), strict=True))
        found = score(self.translate(model, pairs.source, beam), pairs.target, self._tokenised)
        return {"loss": total / words, **found}


def _subwords(train: Pairs, data: Path | None, config: DataConfig) -> Subwords:
    if data is not None and (data / SUBWORDS).exists():
        return Subwords.read(data / SUBWORDS)

    def texts() -> Any:
        yield from train.source
        yield from train.target

    return Subwords.learn(texts(), config.vocabulary)


def _within(train: Pairs, subwords: Subwords, max_length: int) -> tuple[tuple[Sentences, Sentences], int]:
    """Both sides of the pairs that are short enough; how many are not."""
    source, target = subwords.encode(train.source), subwords.encode(train.target)
    short = (source.lengths <= max_length + 1) & (target.lengths <= max_length + 1)
    if not short.any():
        raise UserError(
            f"some training pair must have at most {max_length} subwords a side; of {len(short):,} none has. "
            "Check that the text is one sentence a line."
        )
    chosen = np.flatnonzero(short)
    return (source.only(chosen), target.only(chosen)), len(short) - len(chosen)


def _first(pairs: Pairs, count: int) -> Pairs:
    return Pairs(pairs.name, pairs.source[:count], pairs.target[:count], pairs.tokenised)


def _chunks(sentences: Sentences) -> list[Any]:
    """Sentences of like lengths together."""
    order = np.argsort(sentences.lengths, kind="stable")
    return [order[start : start + EVALUATED_TOGETHER] for start in range(0, len(order), EVALUATED_TOGETHER)]


def _metrics(corpus: Corpus, stand_in: bool) -> tuple[Metric, ...]:
    """BLEU leads on text of people; on the stand-in, which has one right answer, exact match does."""
    of = " (tokenised)" if corpus.train.tokenised else ""
    exact = Metric("exact", "exact match\n%", True, ".1f")
    if stand_in:
        return (
            exact,
            Metric("bleu", "BLEU\nof this set", True, ".1f"),
            Metric("chrf", "chrF\nof this set", True, ".1f"),
        )
    metrics = []
    for number, pairs in enumerate(corpus.tests):
        suffix = f"_{pairs.name}" if number else ""
        metrics.append(Metric(f"bleu{suffix}", f"BLEU{of}\n{pairs.name}", True, ".1f", f"BLEU{of}"))
        metrics.append(Metric(f"chrf{suffix}", f"chrF\n{pairs.name}", True, ".1f", "chrF"))
    return (*metrics, exact)
