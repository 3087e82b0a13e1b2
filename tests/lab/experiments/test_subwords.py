"""Subwords, lossless and learnt from their texts alone; and the batches of sentence pairs in them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import dates
from rmsnorm_lab.experiments.data.batches import Batches, padded
from rmsnorm_lab.experiments.data.corpus import Corpus
from rmsnorm_lab.experiments.data.subwords import BEGIN, END, PAD, Subwords


@pytest.fixture(scope="module")
def small() -> Corpus:
    return dates.corpus(train=400, valid=20, test=20)


@pytest.fixture(scope="module")
def subwords(small: Corpus) -> Subwords:
    return Subwords.learn([*small.train.source, *small.train.target], vocabulary=330)


AWKWARD = ["</s> <pad> <s>", "日本語 و \u202f🎉", " two  spaces ", "tab\there", ""]


def test_subwords_are_lossless_and_cannot_be_controlled(subwords: Subwords) -> None:
    encoded = subwords.encode(AWKWARD)
    for index, text in enumerate(AWKWARD):
        ids = encoded[index]
        assert ids[-1] == END
        assert not {PAD, BEGIN, END} & set(ids[:-1].tolist())
        assert subwords.decode(ids.tolist()) == text


@pytest.fixture(scope="module")
def of_spaces() -> Subwords:
    """With subwords that hold several characters of white space."""
    return Subwords.learn(
        ["a    b\t\t\tc's   1.,\n\n\n  \u202f\u202f aa", "  \t \t  é\xa0\xa0\x85"] * 3, vocabulary=400
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("aé1's.,-\t\n   \x1c\x85\u00a0\u202f\u180e日"), max_size=12), max_size=4))
def test_words_are_encoded_as_in_their_sentence(of_spaces: Subwords, texts: list[str]) -> None:
    """encode takes each word once; the library, given whole sentences, must find the same ids."""
    texts = [*texts, *texts, " ".join(texts)]
    encoded = of_spaces.encode(texts)
    assert len(encoded) == len(texts)
    for index, text in enumerate(texts):
        whole = [number + 3 for number in of_spaces._tokenizer.encode(text).ids]
        assert encoded[index].tolist() == [*whole, END]


def test_subwords_learn_from_what_they_are_given_alone(small: Corpus, subwords: Subwords, tmp_path: Path) -> None:
    assert subwords.size == 330
    again = Subwords.learn([*small.train.source, *small.train.target], vocabulary=330)
    assert again.dumps() == subwords.dumps()
    assert b"November" in subwords.dumps()
    assert b"Dezember" not in Subwords.learn(small.train.source, vocabulary=330).dumps()
    (tmp_path / "subwords.json").write_bytes(subwords.dumps())
    read = Subwords.loads((tmp_path / "subwords.json").read_text("utf-8"), tmp_path)
    assert (read.encode(AWKWARD).values == subwords.encode(AWKWARD).values).all()


def test_damaged_subwords(subwords: Subwords, tmp_path: Path) -> None:
    path = tmp_path / "subwords.json"
    path.write_bytes(subwords.dumps()[:1000])
    with pytest.raises(UserError, match=r"subwords\.json must hold the subwords"):
        Subwords.loads(path.read_text("utf-8"), path)


def word_level(subwords: Subwords) -> str:
    """A word-level encoding of four words."""
    return Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "[UNK]": 3}, unk_token="[UNK]")).to_str()


def dropout(subwords: Subwords) -> str:
    found = json.loads(subwords.dumps())
    found["model"]["dropout"] = 0.1  # another result each time
    return json.dumps(found)


def a_byte_missing(subwords: Subwords) -> str:
    found = json.loads(subwords.dumps())
    found["model"]["vocab"] = {word: i for i, word in enumerate(w for w in found["model"]["vocab"] if w != "!")}
    return json.dumps(found)


def a_control_token(subwords: Subwords) -> str:
    found = Tokenizer.from_str(subwords.dumps().decode())
    found.add_special_tokens(["<pad>"])
    return found.to_str()


@pytest.mark.parametrize("foreign", [word_level, dropout, a_byte_missing, a_control_token])
def test_foreign_subwords_are_refused(subwords: Subwords, foreign: object) -> None:
    assert callable(foreign)
    with pytest.raises(UserError, match=r"subwords\.json must hold the subwords as this program saved them"):
        Subwords.loads(foreign(subwords), Path("subwords.json"))


@pytest.fixture(scope="module")
def batches(small: Corpus, subwords: Subwords) -> Batches:
    return Batches(subwords.encode(small.train.source), subwords.encode(small.train.target), 300, by_tokens=True)


def test_an_epoch_sees_every_sentence_once(small: Corpus, subwords: Subwords, batches: Batches) -> None:
    for epoch in (0, 2):
        seen = [
            tuple(subwords.decode(row.tolist()) for row in pair)
            for step in range(epoch * batches.epoch, (epoch + 1) * batches.epoch)
            for pair in zip(*batches(step, seed=3), strict=True)
        ]
        assert sorted(seen) == sorted(zip(small.train.source, small.train.target, strict=True))


def test_batches_keep_to_their_size_and_waste_little(batches: Batches) -> None:
    tokens = padding = 0
    for step in range(batches.epoch):
        source, target = batches(step, seed=0)
        assert len(source) * max(source.shape[1], target.shape[1]) <= 300
        tokens += target.numel()
        padding += int((target == PAD).sum())
    assert padding / tokens < 0.05


def test_a_batch_is_a_function_of_step_and_seed(small: Corpus, subwords: Subwords, batches: Batches) -> None:
    other = Batches(subwords.encode(small.train.source), subwords.encode(small.train.target), 300, by_tokens=True)
    steps = [5, batches.epoch + 1, 0, 5]
    for step in steps:  # in another order, from another object
        first, second = batches(step, seed=1), other(step, seed=1)
        assert (first.source == second.source).all()
        assert (first.target == second.target).all()
    assert any(batches(0, 1).source.shape != batches(0, seed).source.shape for seed in range(2, 8))
    epochs = [batches(step, 1) for step in (0, batches.epoch)]
    assert epochs[0].source.shape != epochs[1].source.shape or (epochs[0].source != epochs[1].source).any()


def test_sentence_batches(subwords: Subwords, small: Corpus) -> None:
    source, target = subwords.encode(small.train.source), subwords.encode(small.train.target)
    by_sentence = Batches(source, target, 64, by_tokens=False)
    sizes = [len(by_sentence(step, 0).source) for step in range(by_sentence.epoch)]
    assert sorted(sizes) == [400 % 64, *[64] * (400 // 64)]
    assert np.array_equal(padded(source, [3])[0].numpy(), source[3])
