"""Sentence pairs as subwords. Subwords are learnt from the training set, which is then encoded in chunks."""

from collections.abc import Callable, Mapping
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.corpus import Corpus, Pairs
from rmsnorm_lab.experiments.data.input_files import read_bytes
from rmsnorm_lab.experiments.data.lines import decode
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.prepared import Writer
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import LONGEST, Subwords
from rmsnorm_lab.experiments.memory import give_back
from rmsnorm_lab.experiments.recipes.parallel_text import DataConfig

SUBWORDS = "subwords.json"
"""The file in the data's folder that holds subwords of an earlier run. They are used instead of learning new ones."""
SAMPLED = "pairs for subwords"
"""The key in a source's details. It is there only if subwords were learnt from a sample of the pairs."""
LEARNT_FROM = 1_000_000
"""Subwords are learnt from at most this many pairs. The library keeps every different word in memory, about 1 KB each.
Text has ever more of them: 1.0 million different words in 1 million pairs, 2.1 million in the 4.5 million of WMT14."""
_CHUNK = 50_000
"""Pairs encoded at a time."""


def build(
    corpus_of: Callable[[Loading], Corpus], given: Path | None, config: DataConfig, writer: Writer, loading: Loading
) -> dict[str, Any]:
    """Write both sides of the training pairs as rows of ids. Pairs that are too long are left out and counted.

    Arguments:
        given: a file of subwords to use instead of learning them.
    """
    corpus = corpus_of(loading)
    subwords = _learnt(corpus, config, loading) if given is None else _given(given, config)
    kept = 0
    dtype = np.uint16 if subwords.size <= 1 << 16 else np.int32
    pairs = loading.over(
        "encoding", zip(corpus.train.source, corpus.train.target, strict=False), len(corpus.train.source)
    )
    while chunk := list(islice(pairs, _CHUNK)):
        source, target = (subwords.encode([pair[side] for pair in chunk]) for side in (0, 1))
        short = np.maximum(source.lengths, target.lengths) <= config.max_length + 1
        for name, side in (("source", source.only(short)), ("target", target.only(short))):
            writer.ragged(f"train.{name}", side.values.astype(dtype), side.lengths)
        kept += int(short.sum())
    total = len(corpus.train.source)
    if not kept:
        raise UserError(
            f"some training pair must have at most {config.max_length} subwords a side; of {total:,} none has. "
            "Check that the text is one sentence a line."
        )
    loading.step("hashing the text")
    sampled = given is None and total > LEARNT_FROM
    return {
        "subwords": subwords.dumps().decode(),
        "sha256": corpus.sha256(),
        "train pairs": total,
        **({SAMPLED: LEARNT_FROM} if sampled else {}),
        "left out with an empty side": corpus.train.without_text,
        "left out as too long": total - kept,
        "counts": dict(corpus.counts),
        "tokenised": corpus.train.tokenised,
        "evaluated": [[pairs.name, pairs.source, pairs.target] for pairs in (corpus.valid, *corpus.tests)],
    }


def evaluated(info: Mapping[str, Any]) -> list[Pairs[list[str]]]:
    """The validation set and the test sets, from what :func:`build` returned."""
    return [Pairs(name, source, target, info["tokenised"]) for name, source, target in info["evaluated"]]


def _learnt(corpus: Corpus, config: DataConfig, loading: Loading) -> Subwords:
    train = corpus.train
    chosen = spread(len(train.source), LEARNT_FROM)
    texts = chain(compress(train.source, chosen), compress(train.target, chosen))
    found = Subwords.learn(loading.over("learning subwords", texts, 2 * chosen.count(1)), config.vocabulary)
    give_back()  # glibc would keep what the library frees: 1.2 GiB after 450,000 pairs
    return found


def spread(total: int, most: int) -> bytes:
    """A byte for each of ``total`` items: 1 for the ``most`` that are chosen, or for all if there are no more.

    The chosen ones are evenly spread, because a corpus is often several corpora one after the other.
    """
    count = min(total, most)
    return np.diff(np.arange(total + 1) * count // total).astype(np.uint8).tobytes()


def _given(path: Path, config: DataConfig) -> Subwords:
    found = Subwords.loads(decode(read_bytes(path), path), path)
    if found.size != config.vocabulary:
        raise UserError(
            f"{path} must have as many subwords as data.vocabulary says, {config.vocabulary:,}; it has {found.size:,}. "
            f"Pass --set data.vocabulary={found.size}, or take the file out, and subwords are learnt from the text."
        )
    return found


def check_lengths(sentences: Ragged, name: str) -> None:
    """Raise if a sentence of a validation or test set has more than LONGEST subwords."""
    if (wrong := np.flatnonzero(sentences.lengths > LONGEST)).size:
        raise UserError(
            f"{name}, sentence {wrong[0] + 1:,}: a sentence must have at most {LONGEST:,} subwords; it has "
            f"{sentences.lengths[wrong[0]]:,}. Check that the text is one sentence a line."
        )
