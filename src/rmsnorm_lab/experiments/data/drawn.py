"""Inputs drawn at random in the shape of the official data, from a fixed seed: the time of a step needs no content.

Lengths are gamma distributed with the published means; words are uniform.

    WMT14 En-De   25.8 and 24.4 words a sentence (Luong et al. 2015); taken as 28 of 32,000 subwords on both sides
    CNN           23.6 words a sentence, 12.5 a question (Chen et al. 2016)
    COCO          10.5 words a caption, about 27,000 different words; 4096 numbers an image
    CIFAR-10      32 × 32 × 3 pixels, ten classes; whitened, so of mean 0 and variance 1
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsnorm_lab.experiments.data.captions import FIRST_WORD as FIRST_CAPTION_WORD
from rmsnorm_lab.experiments.data.captions import PER_IMAGE
from rmsnorm_lab.experiments.data.captions import SPLITS as OF_CAPTIONS
from rmsnorm_lab.experiments.data.cloze import FOLDERS
from rmsnorm_lab.experiments.data.cloze_ids import FIRST_WORD
from rmsnorm_lab.experiments.data.digits import Images
from rmsnorm_lab.experiments.data.epochs import numpy_generator
from rmsnorm_lab.experiments.data.official import DRAWN, INPUTS
from rmsnorm_lab.experiments.data.prepared import Prepared
from rmsnorm_lab.experiments.data.subwords import END, Subwords
from rmsnorm_lab.experiments.recipes import parallel_text, reading
from rmsnorm_lab.experiments.task import Source
from rmsnorm_lab.files import sha256_of

Array = NDArray[Any]
SEED = 0

WMT14, CNN, COCO, CIFAR10, TEXT = "WMT14 En-De", "CNN", "COCO", "CIFAR-10", "text"
"""What the inputs have the shape of."""
PAIRS, SUBWORDS_A_SENTENCE = 20_000, 28.0
QUESTIONS, WORDS_A_SENTENCE, SENTENCES, WORDS_A_QUESTION, ENTITIES = 2560, 23.6, 32.3, 12.5, 26
IMAGES, WORDS_A_CAPTION, CAPTION_WORDS, FEATURES = 1280, 10.5, 27_000, 4096
PIXELS, CLASSES = (3, 32, 32), 10
CHARACTERS = 255


def name(shape: str) -> str:
    """Of the data, in headings and records."""
    return f"inputs {DRAWN} in the shape of {shape} (seed {SEED})"


def details(shape: str) -> dict[str, Any]:
    """What a record says of the data."""
    return {INPUTS: DRAWN, "in the shape of": shape, "seed": SEED}


def source(shape: str, *arrays: Array, **counts: int) -> Source:
    """The description of arrays that were drawn."""
    return Source(name(shape), True, _digest(*arrays), {**details(shape), **counts})


def pairs(config: parallel_text.DataConfig, batch: int) -> Prepared:
    """Sentence pairs; those that are too long are left out, as of WMT's. Subwords and test sets are without meaning."""
    draws = numpy_generator(SEED)
    subwords = Subwords.unlearnt(config.vocabulary)
    wanted = max(PAIRS, batch)
    of_source = _lengths(draws, SUBWORDS_A_SENTENCE, wanted, spread=3)
    of_target = (of_source * draws.normal(1.0, 0.2, wanted)).round().clip(1).astype(np.int64)
    kept = np.flatnonzero(np.maximum(of_source, of_target) <= config.max_length)
    if not config.by_tokens:
        kept = kept[: len(kept) // batch * batch]  # whole batches
    arrays: dict[str, Array] = {}
    for side, lengths in (("source", of_source[kept] + 1), ("target", of_target[kept] + 1)):
        ids = draws.integers(END + 1, subwords.size, lengths.sum(), np.int32)
        ids[np.cumsum(lengths) - 1] = END
        arrays |= {f"train.{side}": ids, f"train.{side}.lengths": lengths}
    info = {
        "subwords": subwords.dumps().decode(),
        "sha256": _digest(*arrays.values()),
        "train pairs": len(kept),
        "left out with an empty side": 0,
        "left out as too long": 0,
        "counts": details(WMT14),
        "tokenised": False,
        "evaluated": [["valid", ["0"], ["1"]], ["test", ["0"], ["1"]]],
    }
    return Prepared(arrays, info)


def questions(config: reading.DataConfig, batch: int) -> Prepared:
    """Cloze questions. A word in ten is an entity."""
    draws, count = numpy_generator(SEED), max(QUESTIONS, batch)
    entities = draws.integers(2, ENTITIES, count, np.int32, endpoint=True)
    arrays: dict[str, Array] = {"entities": entities, "answers": draws.integers(entities, dtype=np.int32)}
    sentences = config.sentences or SENTENCES
    of_context = _lengths(draws, WORDS_A_SENTENCE * sentences, count, spread=4 * sentences)
    of_context = of_context if config.longest is None else of_context.clip(max=config.longest)
    for part, lengths in (("contexts", of_context), ("questions", _lengths(draws, WORDS_A_QUESTION, count, spread=8))):
        words = draws.integers(FIRST_WORD, FIRST_WORD + config.vocabulary, lengths.sum(), np.int32)
        entity = -1 - draws.integers(np.repeat(entities, lengths), dtype=np.int32)
        ids = np.where(draws.random(len(words)) < 0.1, entity, words)
        arrays |= {part: ids, f"{part}.lengths": lengths}
    info = {"words": [str(word) for word in range(config.vocabulary)], "majority": 100 / ENTITIES}
    return Prepared({f"{split}.{each}": array for split in FOLDERS for each, array in arrays.items()}, info)


def captions(batch: int) -> Prepared:
    """Images as non-negative features of norm 1, with five captions each."""
    draws, count = numpy_generator(SEED), max(IMAGES, batch)
    images = draws.standard_normal((count, FEATURES), np.float32).clip(0)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    lengths = _lengths(draws, WORDS_A_CAPTION, PER_IMAGE * count, spread=20)
    words = draws.integers(FIRST_CAPTION_WORD, FIRST_CAPTION_WORD + CAPTION_WORDS, lengths.sum(), np.int32)
    arrays = {"images": images, "captions": words, "captions.lengths": lengths}
    info = {"words": [str(word) for word in range(CAPTION_WORDS)]}
    return Prepared({f"{split}.{each}": array for split in OF_CAPTIONS for each, array in arrays.items()}, info)


def images(count: int) -> Images:
    """As whitened."""
    draws = numpy_generator(SEED)
    pixels = draws.standard_normal((count, *PIXELS), np.float32)
    labels = draws.integers(CLASSES, size=count)
    return Images(pixels, labels, pixels[:CLASSES], labels[:CLASSES], CLASSES, _digest(pixels, labels))


def characters(count: int) -> NDArray[np.uint8]:
    return numpy_generator(SEED).integers(CHARACTERS, size=count, dtype=np.uint8)


def _lengths(draws: np.random.Generator, mean: float, count: int, spread: float) -> NDArray[np.int64]:
    """At least 1; the standard deviation is mean / √spread."""
    return draws.gamma(spread, mean / spread, count).round().clip(1).astype(np.int64)


def _digest(*arrays: Array) -> str:
    return sha256_of(np.ascontiguousarray(array).tobytes() for array in arrays)
