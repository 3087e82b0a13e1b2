"""The translation tasks: training, losses, subwords, official files, what they refuse."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments.data import encoded_pairs
from rmsnorm_lab.experiments.data.batches import Batch
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import PAD, Subwords
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.recipes import transformer as transformer_recipe
from rmsnorm_lab.experiments.recipes import translation as translation_recipe
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.recipes.settings import changed
from rmsnorm_lab.experiments.run import Run
from rmsnorm_lab.experiments.tasks import transformer, translation
from rmsnorm_lab.experiments.tasks.parallel_text import SUBWORDS, ParallelTextTask, _chunks


def tiny(module: Any, **changes: Any) -> Recipe:
    """Seconds of work: the recipe in miniature."""
    recipe: Recipe = importlib.import_module(
        f"rmsnorm_lab.experiments.recipes.{module.__name__.rpartition('.')[2]}"
    ).small()
    sizes = {"embedding": 12, "hidden": 16} if module is translation else {"width": 16, "feed_forward": 32}
    size = 16 if module is translation else 300
    return replace(
        recipe,
        model=replace(recipe.model, **sizes),
        train=replace(recipe.train, steps=4, batch=size, evaluations=1),
        data=replace(recipe.data, **{"stand_in_pairs": (300, 20, 30), "vocabulary": 300} | changes),
    )


@pytest.fixture(scope="module", params=[translation, transformer], ids=["translation", "transformer"])
def task(request: pytest.FixtureRequest) -> ParallelTextTask:
    return request.param.load(None, tiny(request.param))


def test_a_task_trains(task: ParallelTextTask) -> None:
    outcomes = [Run(task, Setup(kernels="unfused"), "rms", seed).finish() for seed in (0, 0, 1)]
    assert outcomes[0].status == "finished"
    assert outcomes[0].quality is not None
    assert {"loss", "exact", "bleu", "chrf"} <= set(outcomes[0].quality)
    losses = [outcome.curve.valid["loss"] for outcome in outcomes]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][-1] < losses[0][0]


def test_loss_is_a_sum_over_words(task: ParallelTextTask) -> None:
    """Slices of a batch add up to it, which is what several processes rely on."""
    torch.manual_seed(0)
    model, batch = task.model("rms", "unfused"), task.batch(2, 0)
    total, words = task.loss(model, batch), task.weight(batch)
    parts = [Batch(*(side[rows] for side in batch)) for rows in (slice(0, 5), slice(5, None))]
    torch.testing.assert_close(sum(task.loss(model, part) for part in parts), total)
    assert sum(map(task.weight, parts)) == words == (batch.target != PAD).sum()
    logits = model(*batch).log_softmax(-1)
    eps = task.recipe.model.label_smoothing
    by_word = -(1 - eps) * logits.gather(-1, batch.target[..., None])[..., 0] - eps * logits.mean(-1)
    torch.testing.assert_close((by_word * (batch.target != PAD)).sum(), total)


def test_source_says_what_it_is(task: ParallelTextTask) -> None:
    source = task.source
    assert source.stand_in
    assert source.name.startswith("Babel ")
    assert "tok:13a" in source.details["BLEU"]
    assert [source.details[f"{name} pairs"] for name in ("train", "valid", "test")] == [300, 20, 30]
    assert all(isinstance(value, int | str) for value in source.details.values())  # a table's note prints them
    assert task.metrics[0].key == "exact"
    assert task.references == {"copying the source": 0.0}
    assert task.files()[SUBWORDS].startswith(b"{")


class Copier:
    """A translator that says the source again."""

    def __call__(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        return torch.zeros(*target_BT.shape, 400)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def encode(self, source_BS: Tensor) -> tuple[Tensor, ...]:
        return (source_BS,)

    def start(self, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.zeros(len(memory[0]), dtype=torch.int64),)

    def step(self, memory: Any, state: Any, words_B: Tensor) -> tuple[Tensor, Any]:
        place = state[0].clamp(max=memory[0].shape[1] - 1)
        word = memory[0].gather(1, place[:, None])[:, 0]
        return 50 * nn.functional.one_hot(word, 400).float(), (state[0] + 1,)


def parallel_folder(folder: Path) -> Path:
    """Official-looking files in which every translation is the sentence itself, except the last of newstest2017."""
    for split, count in (("train", 40), ("valid", 4)):
        lines = [f"{split} sentence number {number} says &amp; {'so ' * (number % 5)}" for number in range(count)]
        for language in ("en", "de"):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    for name in ("newstest2014", "newstest2017"):
        for language, part in (("en", "src"), ("de", "ref")):
            words = [f"{name} number {number} says </s> too" for number in range(5)]
            if (name, part) == ("newstest2017", "ref"):
                words[-1] = "ganz etwas anderes"
            segments = "".join(f'<seg id="{number}">{line}</seg>\n' for number, line in enumerate(words))
            text = f'<{part}set>\n<doc docid="d">\n{segments}</doc>\n</{"src" if part == "src" else "ref"}set>\n'
            (folder / f"{name}-ende-{part}.{language}.sgm").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("module", [translation, transformer])
def test_official_files_from_end_to_end(module: Any, tmp_path: Path) -> None:
    task = module.load(parallel_folder(tmp_path), tiny(module))
    assert not task.source.stand_in
    assert [metric.key for metric in task.metrics] == [
        "bleu",
        "chrf",
        "bleu_newstest2017",
        "chrf_newstest2017",
        "exact",
    ]
    scores = task.evaluate(Copier(), "test")
    assert scores["bleu"] == pytest.approx(100)
    assert scores["exact"] == 100
    assert 0 < scores["bleu_newstest2017"] < 95
    assert set(scores) == {metric.key for metric in task.metrics} | {"loss"}
    assert set(task.evaluate(Copier(), "valid")) == {"bleu", "chrf", "exact", "loss"}
    assert task.references["copying the source"] == pytest.approx(100)

    (tmp_path / SUBWORDS).write_bytes(module.load(None, tiny(module)).files()[SUBWORDS])
    taken = module.load(tmp_path, tiny(module))
    assert taken.source.details["subwords sha256"] != task.source.details["subwords sha256"]
    assert taken.files()[SUBWORDS] == (tmp_path / SUBWORDS).read_bytes()


def test_subwords_are_learnt_from_a_bounded_number_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = parallel_folder(tmp_path), tiny(translation, vocabulary=295)
    whole = translation.load(folder, recipe)
    assert encoded_pairs.SAMPLED not in whole.source.details  # 40 pairs: all of them

    monkeypatch.setattr(encoded_pairs, "LEARNT_FROM", 10)
    sampled = translation.load(folder, recipe)
    assert sampled.source.details[encoded_pairs.SAMPLED] == 10
    assert sampled.source.details["train pairs"] == len(sampled._batches.source) == 40
    every_fourth = (folder / "train.en").read_text("utf-8").split("\n")[3:40:4]
    learnt = Subwords.learn([*every_fourth, *every_fourth], recipe.data.vocabulary)
    assert sampled.files()[SUBWORDS] == learnt.dumps() != whole.files()[SUBWORDS]

    (tmp_path / SUBWORDS).write_bytes(learnt.dumps())
    given = translation.load(folder, recipe)
    assert encoded_pairs.SAMPLED not in given.source.details


@pytest.mark.parametrize(("total", "most"), [(1, 3), (5, 5), (4, 5), (7, 3), (4_500_966, 1_000_000)])
def test_a_sample_is_evenly_spread(total: int, most: int) -> None:
    chosen = np.frombuffer(encoded_pairs.spread(total, most), np.uint8)
    assert len(chosen) == total
    assert int(chosen.sum()) == min(total, most)
    gaps = np.diff(np.flatnonzero(chosen))
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_given_subwords_must_be_as_many_as_asked_for(tmp_path: Path) -> None:
    parallel_folder(tmp_path)
    (tmp_path / SUBWORDS).write_bytes(translation.load(None, tiny(translation)).files()[SUBWORDS])
    recipe = tiny(translation)
    other = replace(recipe, data=replace(recipe.data, vocabulary=310))
    with pytest.raises(UserError, match=r"subwords.json must have as many .* 310; it has 300\. .*vocabulary=300"):
        translation.load(tmp_path, other)


@pytest.mark.parametrize("stem", ["valid.en", "valid.de"])
def test_a_sentence_of_400_000_words_is_refused(tmp_path: Path, stem: str) -> None:
    path = parallel_folder(tmp_path) / stem
    lines = path.read_text("utf-8").split("\n")
    path.write_text("\n".join([lines[0], "word " * 400_000, *lines[2:]]), "utf-8")
    with pytest.raises(
        UserError, match=rf"{stem.split('.')[0]}.*{stem[-2:]}, sentence 2: .*at most 1,024 subwords; it has \d"
    ):
        translation.load(tmp_path, tiny(translation))


def test_long_sentences_are_evaluated_in_smaller_numbers() -> None:
    lengths = np.array([3] * 200 + [900] * 10 + [9000])
    source = Ragged.of(np.zeros(lengths.sum(), np.int32), lengths)
    short = Ragged.of(np.zeros(3 * 211, np.int32), np.full(211, 3))
    for chunks in (_chunks(source), _chunks(short, source)):
        assert [len(chunk) for chunk in chunks] == [128, 72, 9, 1, 1]
        assert np.concatenate(chunks).tolist() == [*range(211)]


def test_long_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = parallel_folder(tmp_path)
    lengths = translation.load(folder, tiny(translation))._batches.source.lengths
    cut = int(lengths.max()) - 1  # END is not counted: the longest pairs are too long by one
    shorter = translation.load(folder, tiny(translation, max_length=cut - 1))
    assert shorter.source.details["left out as too long"] == int((lengths == cut + 1).sum()) > 0
    assert shorter._batches.source.lengths.max() <= cut
    with pytest.raises(UserError, match="at most 1 subwords a side; of 40 none has"):
        translation.load(folder, tiny(translation, max_length=1))


@pytest.mark.parametrize(
    ("module", "assignment", "message"),
    [
        (translation, "data.vocabulary=258", r"data\.vocabulary must be at least 259; got 258"),
        (translation, "data.beam=0", r"data\.beam must be at least 1"),
        (translation, "data.length_penalty=NaN", r"data\.length_penalty must be finite; got nan"),
        (translation, "data.stand_in_pairs=[300, 0, 5]", r"data\.stand_in_pairs must be at least 1; got 0"),
        (translation, "train.batch=0", r"train\.batch must be at least 1"),
        (translation, "train.batch=301", r"a step takes 301 sentences; the training part of 'Babel .*' has 300"),
        (transformer, "train.batch=99999", r"a step takes 99999 tokens; the training part of 'Babel .*' has \d{4,5}\."),
        (translation, "data.target=xx", r"locales that Babel knows; got 'xx'"),
        (translation, "model.label_smoothing=1.0", r"model\.label_smoothing must be at least 0 and below 1; got 1"),
        (translation, "model.hidden=0", r"model\.hidden must be at least 1; got 0"),
        (transformer, "model.heads=3", r"model\.width must be an even multiple of model\.heads; got 16 and 3"),
        (transformer, "model.layers=0", r"model\.layers must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused(module: Any, assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.load(None, changed(tiny(module), [assignment]))


def test_other_languages() -> None:
    task = translation.load(None, changed(tiny(translation), ["data.target=fr"]))
    assert task.source.details["direction"] == "en-fr"
    assert any("janvier" in line for line in task._tests[0].target)


@pytest.mark.parametrize("module", [translation_recipe, transformer_recipe])
def test_recipes_are_complete(module: Any) -> None:
    assert module.small().size == "small"
    paper = module.paper()
    assert paper.size == "paper"
    assert paper.data.vocabulary == 32_000
    assert hash(paper) != hash(module.small())
