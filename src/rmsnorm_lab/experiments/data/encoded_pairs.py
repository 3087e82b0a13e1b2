"""Sentence pairs in subwords: learnt from the training side, which is then encoded piece by piece."""

from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.files import read_bytes
from rmsnorm_lab.experiments.data.lines import decode
from rmsnorm_lab.experiments.data.loading import Loading
from rmsnorm_lab.experiments.data.prepared import Writer
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import LONGEST, Subwords
from rmsnorm_lab.experiments.memory import give_back
from rmsnorm_lab.experiments.recipes.parallel_text import DataConfig

SUBWORDS = "subwords.json"
"""In the folder of the data: subwords of an earlier run, taken instead of learning them again."""
_CHUNK = 20_000
"""Pairs encoded at a time."""


def prepare(
    corpus_of: Callable[[Loading], Corpus], given: Path | None, config: DataConfig, writer: Writer, loading: Loading
) -> dict[str, Any]:
    """Write both sides of the training pairs that are short enough, as rows of ids.

    Arguments:
        given: the file of subwords to be taken instead of learning them.
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
    return {
        "subwords": subwords.dumps().decode(),
        "sha256": corpus.sha256(),
        "train pairs": total,
        "left out with an empty side": corpus.train.without_text,
        "left out as too long": total - kept,
    }


def _learnt(corpus: Corpus, config: DataConfig, loading: Loading) -> Subwords:
    train = corpus.train
    texts = chain(train.source, train.target)
    found = Subwords.learn(loading.over("learning subwords", texts, 2 * len(train.source)), config.vocabulary)
    give_back()  # the library's words and pairs: 1.2 GiB of 450,000 sentence pairs, which glibc would keep
    return found


def _given(path: Path, config: DataConfig) -> Subwords:
    found = Subwords.loads(decode(read_bytes(path), path), path)
    if found.size != config.vocabulary:
        raise UserError(
            f"{path} must have as many subwords as data.vocabulary says, {config.vocabulary:,}; it has {found.size:,}. "
            f"Pass --set data.vocabulary={found.size}, or take the file out, and subwords are learnt from the text."
        )
    return found


def check_lengths(sentences: Ragged, name: str) -> None:
    """None of a validation or test set may be longer than LONGEST."""
    if (wrong := np.flatnonzero(sentences.lengths > LONGEST)).size:
        raise UserError(
            f"{name}, sentence {wrong[0] + 1:,}: a sentence must have at most {LONGEST:,} subwords, has "
            f"{sentences.lengths[wrong[0]]:,}. Check that the text is one sentence a line."
        )
