"""The translation tasks: RNNSearch and the Transformer, their masks, their equations, their tasks."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plain_rnn
from rmsnorm_lab.errors import UserError
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data import encoded_pairs
from rmsnorm_lab.experiments.data.batches import Batch
from rmsnorm_lab.experiments.data.ragged import Ragged
from rmsnorm_lab.experiments.data.subwords import BEGIN, END, PAD, Subwords
from rmsnorm_lab.experiments.learner import Setup
from rmsnorm_lab.experiments.models.encoder_decoder import EncoderDecoder, positions
from rmsnorm_lab.experiments.models.rnnsearch import RNNSearch
from rmsnorm_lab.experiments.models.search import search
from rmsnorm_lab.experiments.recipes import transformer as transformer_recipe
from rmsnorm_lab.experiments.recipes import translation as translation_recipe
from rmsnorm_lab.experiments.recipes.common import KERNELS, Recipe
from rmsnorm_lab.experiments.recipes.settings import changed
from rmsnorm_lab.experiments.run import Run
from rmsnorm_lab.experiments.tasks import transformer, translation
from rmsnorm_lab.experiments.tasks.parallel_text import SUBWORDS, ParallelTextTask, _chunks

V = 23
RNN = translation_recipe.ModelConfig(embedding=10, hidden=12, init_std=0.4)
TRANSFORMER = transformer_recipe.ModelConfig(width=16, feed_forward=24, heads=2, layers=2)


def rnnsearch(norm: str, kernels: str = "unfused", config: Any = RNN) -> RNNSearch:
    torch.manual_seed(7)
    return perturbed(RNNSearch(V, config, norms.made(norm, kernels, 0.3)))


def encoder_decoder(norm: str, pre_norm: bool = False, kernels: str = "unfused") -> EncoderDecoder:
    torch.manual_seed(7)
    made = EncoderDecoder(V, replace(TRANSFORMER, pre_norm=pre_norm), norms.made(norm, kernels, 0.3))
    return perturbed(made)


def perturbed(model: Any) -> Any:
    """Gains and biases away from 1 and 0, where mistakes with them show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def a_batch(rows: int = 5, seed: int = 0) -> Batch:
    """Random sentences of unequal lengths, padded."""
    generator = torch.Generator().manual_seed(seed)

    def side(longest: int) -> Tensor:
        ids = torch.randint(3, V, (rows, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        places = torch.arange(longest)
        ids[places == lengths[:, None] - 1] = END
        ids[places >= lengths[:, None]] = PAD
        return ids

    return Batch(side(7), side(6))


MODELS = [
    *[pytest.param(lambda norm=norm: rnnsearch(norm), id=f"rnnsearch-{norm}") for norm in norms.of_task("translation")],
    *[
        pytest.param(lambda norm=norm, pre=pre: encoder_decoder(norm, pre), id=f"{'pre' if pre else 'post'}-{norm}")
        for norm in norms.of_task("transformer")
        for pre in (False, True)
    ],
]


@pytest.mark.parametrize("make", MODELS)
def test_padding_changes_nothing(make: Any) -> None:
    model, batch = make(), a_batch()
    with torch.no_grad():
        logits = model(*batch)
        assert logits.shape == (*batch.target.shape, V)
        wider = Batch(*(nn.functional.pad(side, (0, 3), value=PAD) for side in batch))
        torch.testing.assert_close(model(*wider)[:, :6], logits, rtol=1e-5, atol=1e-5)
        for row, (source, target) in enumerate(zip(*batch, strict=True)):
            source, target = source[source != PAD][None], target[target != PAD][None]
            alone = model(source, target)[0]
            torch.testing.assert_close(logits[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_no_word_sees_itself_or_what_follows(make: Any) -> None:
    model, (source, target) = make(), a_batch()
    with torch.no_grad():
        logits = model(source, target)
        changed = target.clone()
        changed[:, 3] = (target[:, 3] + 1) % (V - 3) + 3
        after = model(source, changed)
    assert torch.equal(after[:, :4], logits[:, :4])
    assert not torch.allclose(after[:, 4:], logits[:, 4:], atol=1e-3)


@pytest.mark.parametrize("make", MODELS)
def test_word_by_word_equals_all_at_once(make: Any) -> None:
    model, (source, target) = make(), a_batch()
    with torch.no_grad():
        expected, memory = model(source, target), model.encode(source)
        state, word = model.start(memory), torch.full_like(target[:, 0], BEGIN)
        for place in range(target.shape[1]):
            logits, state = model.step(memory, state, word)
            torch.testing.assert_close(logits, expected[:, place], rtol=1e-5, atol=1e-5)
            word = target[:, place]


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_has_a_gradient(make: Any) -> None:
    model, batch = make(), a_batch()
    model(*batch)[..., 3:].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("make", [MODELS[4], MODELS[-4]])
def test_search_scores_are_the_models(make: Any, beam: int) -> None:
    """What the search says of its best sentence is what teacher forcing gives for that sentence."""
    model, (source, _) = make(), a_batch()
    with torch.no_grad():
        words, scores = search(model, source, torch.full((len(source),), 9), beam, length_penalty=1.0)
        log_p = torch.log_softmax(model(source, words), dim=-1).gather(-1, words[..., None])[..., 0]
    spoken = words != PAD
    torch.testing.assert_close((log_p * spoken).sum(1) / spoken.sum(1), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_kernels_agree(norm: str) -> None:
    batch = a_batch()
    with torch.no_grad():
        for make in (rnnsearch, lambda norm, kernels: encoder_decoder(norm, kernels=kernels)):
            models = [make(norm, kernels=kernels) for kernels in KERNELS]
            assert norm == "none" or len({str(model) for model in models}) > 1  # not one implementation thrice
            for model in models[1:]:
                model.load_state_dict(models[0].state_dict())
                torch.testing.assert_close(model(*batch), models[0](*batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "rms"])
def test_attention_is_a_distribution_over_words(norm: str) -> None:
    model, (source, target) = rnnsearch(norm), a_batch()
    attention = model.trace(source, target).attention_BTS
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    assert (attention[(source == PAD)[:, None].expand_as(attention)] == 0).all()
    assert attention.std() > 0.01  # not uniform


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_rnnsearch_is_its_equations(norm: str) -> None:
    """The conditional GRU by hand, in float64, for one sentence."""
    model = rnnsearch(norm)
    source, target = a_batch(rows=1)
    get = {name: value.detach().double() for name, value in model.state_dict().items()}

    named = {"none": None, "prms": "rms"}.get(norm, norm)
    p = 0.3 if norm == "prms" else 1.0

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ get[f"{name}.weight"].T
        return y if named is None else plain_rnn.normalize(y, named, p, 1e-5) * get[f"{name}.gain"]

    def gru(name: str, suffix: str = "") -> plain_rnn.Plain:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh")
        own = {kind: get[key] for kind in kinds if (key := f"{name}.{kind}{suffix}") in get}
        return plain_rnn.Plain("GRU", own, named, p, 1e-5, "paper")

    words = get["source_embedding.weight"][source[0]]
    zero = torch.zeros(12, dtype=torch.float64)
    forward = gru("encoder.directions.0", "_l0").run(words, zero, None)[0]
    backward = gru("encoder.directions.1", "_l0").run(words, zero, None, reverse=True)[0]
    h = torch.stack([torch.cat(pair) for pair in zip(forward, backward, strict=True)])

    state = torch.tanh(linear("first_state", h.mean(0)) + get["first_bias"])
    word_cell, context_cell = gru("word_cell"), gru("context_cell")
    expected, hidden_sides = [], []
    for word in [BEGIN, *target[0, :-1].tolist()]:
        y = get["target_embedding.weight"][word]
        hidden_sides.append(word_cell.preactivations(y, state)[1] - word_cell.b_hh)
        middle, _ = word_cell.step(y, state, None)
        keys = linear("attend_context", h) + get["attend_bias"]
        alpha = torch.softmax(torch.tanh(keys + linear("attend_state", middle)) @ get["attend_score"], 0)
        context = alpha @ h
        state, _ = context_cell.step(context, middle, None)
        read = linear("read_state", state) + linear("read_word", y) + linear("read_context", context)
        expected.append(get["logits.weight"] @ torch.tanh(read + get["read_bias"]) + get["logits.bias"])

    with torch.no_grad():
        traced = model.trace(source, target)
        torch.testing.assert_close(model(source, target), traced.logits_BTV)
    torch.testing.assert_close(traced.logits_BTV[0].double(), torch.stack(expected), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(traced.recurrent_BTG[0].double(), torch.stack(hidden_sides), rtol=2e-5, atol=2e-5)


def test_post_norm_and_pre_norm_are_their_equations() -> None:
    """One encoder layer by hand, without its attention: values and output projection are made zero."""
    x, seen = torch.randn(2, 4, 16), torch.ones(2, 1, 1, 4, dtype=torch.bool)
    for pre_norm in (False, True):
        layer = encoder_decoder("rms", pre_norm).encoder[0]
        with torch.no_grad():
            layer.attention.out.weight.zero_()
            norms = layer.attend.norm, layer.feed.norm
            attended = x + layer.attention.out.bias
            if not pre_norm:
                attended = norms[0](attended)
            fed = norms[1](attended) if pre_norm else attended
            y = layer.feed_forward.up(fed).clamp(min=0) @ layer.feed_forward.out.weight.T + layer.feed_forward.out.bias
            expected = attended + y if pre_norm else norms[1](attended + y)
            torch.testing.assert_close(layer(x, seen), expected)


def test_transformers_count_their_norms() -> None:
    for pre_norm, count in ((False, 2 * 2 + 2 * 3), (True, 2 * 2 + 2 * 3 + 2)):
        norms = [name for name, _ in encoder_decoder("layer", pre_norm).named_modules() if name.endswith("norm")]
        assert len(norms) == count + (0 if pre_norm else 2)  # post-norm: the two identities after the stacks


def test_positions() -> None:
    found = positions(5, 8, 6, torch.device("cpu"))
    for row, t in zip(found.tolist(), (5.0, 6.0, 7.0), strict=True):
        angles = [t / 10_000 ** (2 * i / 6) for i in range(3)]
        expected = [*map(torch.sin, map(torch.tensor, angles)), *map(torch.cos, map(torch.tensor, angles))]
        assert row == pytest.approx([value.item() for value in expected], abs=1e-5)


def test_all_normalisers_start_from_the_same_weights() -> None:
    def matrices(model: nn.Module) -> dict[str, Tensor]:
        """Every matrix by name; under WeightNorm what its parts make."""
        kinds = ("weight", "weight_ih", "weight_hh", "weight_ih_l0", "weight_hh_l0")
        found = {(path, kind): getattr(part, kind, None) for path, part in model.named_modules() for kind in kinds}
        return {key: value.detach() for key, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}

    for task, make in (("translation", rnnsearch), ("transformer", encoder_decoder)):
        first = matrices(make("none"))
        assert len(first) >= 14
        for norm in norms.of_task(task):
            for kernels in KERNELS:
                other = matrices(make(norm, kernels=kernels))
                assert other.keys() == first.keys()
                for name, value in first.items():
                    torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def test_weights_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    config = translation_recipe.ModelConfig(embedding=64, hidden=96)
    model = RNNSearch(500, config, norms.made("rms", "unfused"))
    assert model.source_embedding.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert model.read_context.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert model.word_cell.weight_ih.std().item() == pytest.approx(0.01, rel=0.03)
    for square in (*model.word_cell.weight_hh.split(96), model.read_word.weight):
        torch.testing.assert_close(square @ square.T, torch.eye(len(square)), rtol=0, atol=1e-5)
    torch.manual_seed(0)
    shifted = RNNSearch(500, replace(config, init_mean=0.2), norms.made("rms", "unfused"))
    for (name, weight), plain in zip(shifted.named_parameters(), model.parameters(), strict=True):
        if weight.ndim == 2 or name == "attend_score":
            torch.testing.assert_close(weight, plain + 0.2)


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


@pytest.mark.parametrize("make", MODELS)
def test_a_slice_without_sentences_adds_nothing(make: Any) -> None:
    """Of a batch of one sentence the second process gets none."""
    model, (source, target) = make(), a_batch()
    logits = model(source[:0], target[:0])
    nn.functional.cross_entropy(logits.flatten(0, 1), target[:0].flatten(), reduction="sum").backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


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
