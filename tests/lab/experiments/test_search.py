"""Beam search against brute force, and scores against sacrebleu's own."""

import itertools
import math

import pytest
import sacrebleu
import torch
from torch import Tensor

from rmsnorm_lab.experiments.data.subwords import BEGIN, END, PAD
from rmsnorm_lab.experiments.models.search import Tensors, search
from rmsnorm_lab.experiments.scores import score, signatures

WORDS = 3  # besides PAD, BEGIN and END
V = 3 + WORDS


class Table:
    """A translator by a random table: the next word depends on the source, the last two words and the place."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2.5 * torch.randn(7, V, V, 9, V, generator=generator)

    def encode(self, source_BS: Tensor) -> Tensors:
        return (source_BS.sum(dim=1) % 7,)

    def start(self, memory: Tensors) -> Tensors:
        zeros = torch.zeros_like(memory[0])
        return zeros, zeros  # the word before the last; the place

    def step(self, memory: Tensors, state: Tensors, words_B: Tensor) -> tuple[Tensor, Tensors]:
        before, place = state
        return self.logits[memory[0], before, words_B, place], (words_B, place + 1)


def brute_force(
    table: Table, source: Tensor, limit: int, length_penalty: float, offset: int
) -> tuple[list[int], float]:
    """The best of all sentences of at most ``limit`` words, END included."""
    best: tuple[list[int], float] = ([], -math.inf)
    for length in range(limit):
        for words in itertools.product(range(3, V), repeat=length):
            sentence, total, state, last = [*words, END], 0.0, table.start((source,)), torch.tensor([BEGIN])
            memory = table.encode(source[None])
            state = table.start(memory)
            for place, word in enumerate(sentence):
                logits, state = table.step(memory, state, last)
                if place < limit - 1:  # at the limit END is not chosen but forced: it costs what it costs
                    total += torch.log_softmax(logits[0], 0)[word].item()
                else:
                    total += torch.log_softmax(logits[0], 0)[END].item()
                last = torch.tensor([word])
            value = total / ((offset + len(sentence)) / (offset + 1)) ** length_penalty
            if value > best[1]:
                best = sentence, value
    return best


def ended(row: Tensor) -> list[int]:
    """A row up to its END, which nothing but PAD may follow."""
    words = row.tolist()
    end = words.index(END)
    assert set(words[end + 1 :]) <= {PAD}
    return words[: end + 1]


@pytest.mark.parametrize(("length_penalty", "offset"), [(0.0, 0), (0.6, 0), (1.0, 0), (0.6, 5), (2.0, 5)])
def test_a_wide_beam_finds_the_best_of_all(length_penalty: float, offset: int) -> None:
    table, limit = Table(0), 4
    source = torch.tensor([[5, 3, END], [4, END, PAD], [3, 3, END]])
    widest = sum(WORDS**length for length in range(limit))
    words, scores = search(table, source, torch.full((3,), limit), widest, length_penalty, offset)
    for row, found, sentence in zip(words, scores, source, strict=True):
        expected, value = brute_force(table, sentence, limit, length_penalty, offset)
        assert ended(row) == expected
        assert found.item() == pytest.approx(value, abs=1e-5)


def test_a_beam_of_one_is_greedy() -> None:
    table, limit = Table(1), 8
    source = torch.tensor([[5, 3, END], [4, 4, END]])
    words, _ = search(table, source, torch.full((2,), limit))
    for row, sentence in zip(words, source, strict=True):
        memory, last, expected = table.encode(sentence[None]), BEGIN, []
        state = table.start(memory)
        while last != END:
            logits, state = table.step(memory, state, torch.tensor([last]))
            logits[0, [PAD, BEGIN]] = -math.inf
            last = int(logits[0].argmax()) if len(expected) < limit - 1 else END
            expected.append(last)
        assert ended(row) == expected


@pytest.mark.parametrize("beam", [1, 3])
def test_a_sentence_does_not_depend_on_its_neighbours(beam: int) -> None:
    table = Table(2)
    source = torch.tensor([[5, 3, END], [4, END, PAD], [3, 5, END], [5, 5, END]])
    limits = torch.tensor([8, 3, 5, 6])
    together, scores = search(table, source, limits, beam)
    for index, limit in enumerate(limits.tolist()):
        alone, value = search(table, source[index : index + 1], limits[index : index + 1], beam)
        assert ended(together[index]) == ended(alone[0])
        assert len(ended(together[index])) <= limit
        assert scores[index].item() == pytest.approx(value.item(), abs=1e-6)


HYPOTHESES = ["Der Hund läuft schnell nach Hause .", "Am 3. Mai 2026, 17:08", "ganz anders"]
REFERENCES = ["Der Hund läuft nach Hause.", "Am 3. Mai 2026, 17:08", "etwas ganz anderes &amp; mehr"]


def test_scores_are_sacrebleus() -> None:
    found = score(HYPOTHESES, REFERENCES, tokenised=False)
    assert found["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert found["exact"] == pytest.approx(100 / 3)
    assert 0 < found["bleu"] < 100
    tokenised = score(HYPOTHESES, REFERENCES, tokenised=True)["bleu"]
    assert tokenised == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="none", force=True).score
    assert tokenised != found["bleu"]


def test_bleu_as_its_definition_says() -> None:
    """exp(mean log precision) · brevity penalty by hand: precisions 5/6, 4/5, 3/4, 2/3; 6 words for 7."""
    found = score(["a b c d e x"], ["a b c d e f g"], tokenised=False)["bleu"]
    assert found == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25 * math.exp(1 - 7 / 6))


def test_signatures_say_how() -> None:
    assert "tok:13a" in signatures(tokenised=False)["BLEU"]
    assert "tok:none" in signatures(tokenised=True)["BLEU"]
    assert f"version:{sacrebleu.__version__}" in signatures(tokenised=False)["chrF"]
