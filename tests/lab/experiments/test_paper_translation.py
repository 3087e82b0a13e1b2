"""What the paper's size of both translations has of its own: the loss, the batches, the Transformer's embeddings and
dropout, how long a translation may be, and the recipes."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "tokenizers", "sacrebleu", "babel"):
    pytest.importorskip(_package)

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import tasks  # noqa: E402
from rmsnorm_lab.experiments.data.batches import Batches  # noqa: E402
from rmsnorm_lab.experiments.data.ragged import Ragged  # noqa: E402
from rmsnorm_lab.experiments.data.subwords import END, PAD  # noqa: E402
from rmsnorm_lab.experiments.models import encoder_decoder  # noqa: E402
from rmsnorm_lab.experiments.recipes.parallel_text import LOSSES  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402
from rmsnorm_lab.experiments.tasks import parallel_text  # noqa: E402

SMALL = {
    "translation": ["model.embedding=8", "model.hidden=8", "train.batch=8"],
    "transformer": ["model.width=16", "model.feed_forward=8", "model.layers=1", "model.heads=2", "train.batch=200"],
}
DATA = ["data.stand_in_pairs=100,10,10", "data.vocabulary=300"]


@pytest.fixture(scope="module", params=SMALL)
def task(request):
    return tasks.load(request.param, None, changed(tasks.recipe(request.param), [*SMALL[request.param], *DATA]))


@pytest.mark.parametrize("loss_of", LOSSES)
def test_the_loss_is_a_mean_of_what_is_named(task, loss_of, monkeypatch):
    torch.manual_seed(0)
    model, batch = task.model("rms", "unfused").eval(), task.batch(1, 0)
    with torch.no_grad():
        before = task.evaluate(model, "valid")["loss"]
    recipe = replace(task.recipe, model=replace(task.recipe.model, loss_of=loss_of))
    monkeypatch.setattr(task, "recipe", recipe)
    log_p, eps = model(*batch).double().log_softmax(-1), recipe.model.label_smoothing
    sums, means, words = [], [], 0
    for of_sentence, target in zip(log_p, batch.target, strict=True):
        length = int((target != PAD).sum())
        nats = [-(1 - eps) * of_sentence[t, target[t]] - eps * of_sentence[t].mean() for t in range(length)]
        sums.append(sum(nats))
        means.append(sum(nats) / length)
        words += length
    expected = {
        "words": sum(sums) / words,
        "sentences": sum(sums) / len(sums),
        "sentence_means": sum(means) / len(means),
    }[loss_of]
    found = task.loss(model, batch) / task.weight(batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    with torch.no_grad():  # the curve is by words whatever is trained on
        assert task.evaluate(model, "valid")["loss"] == before


def test_a_pool_is_sorted_within_and_random_between():
    rng, size, pool = np.random.default_rng(0), 3, 4
    lengths = rng.integers(1, 20, (2, 31))
    source, target = (Ragged.of(np.repeat(np.arange(31), each), each) for each in lengths)  # a sentence is its number
    batches, whole = Batches(source, target, size, False, pool=pool), Batches(source, target, size, False)
    runs = []
    for epoch in (0, 1):
        order = np.random.Generator(np.random.PCG64([7, epoch])).permutation(31)  # the place of each sentence
        placed = [np.flatnonzero(order // (size * pool) == run) for run in range(3)]
        expected = set()
        for run in placed:
            ordered = sorted(run, key=lambda i: (lengths[1][i], lengths[0][i], order[i]))
            expected |= {tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)}
        found = [
            tuple(batches(step, 7).source[:, 0].tolist())
            for step in range(epoch * batches.epoch, (epoch + 1) * batches.epoch)
        ]
        assert set(found) == expected
        assert sorted(i for each in found for i in each) == list(range(31))
        runs.append(expected)
    assert runs[0] != runs[1]
    assert {tuple(whole(step, 7).source[:, 0].tolist()) for step in range(whole.epoch)} != runs[0]


def test_a_pool_is_of_sentences():
    with pytest.raises(UserError, match=r"data\.pool must be null where data\.by_tokens is true; got 3"):
        changed(tasks.recipe("transformer"), ["data.pool=3"])


@pytest.mark.parametrize("limit", [(2, 10), (1, 50), (0, 7)])
def test_a_translation_is_as_long_as_the_recipe_allows(task, limit, monkeypatch):
    sentences, seen = ["a" * 1, "a" * 3, ""], {}

    def search(model, ids, limits, beam, length_penalty, length_offset):
        lengths = (ids != PAD).sum(1)
        seen.update(zip(lengths.tolist(), limits.tolist(), strict=True))
        seen["rest"] = (beam, length_penalty, length_offset)
        return torch.full((len(ids), 1), END), None

    encoded = task.subwords.encode(sentences)
    monkeypatch.setattr(parallel_text, "search", search)
    config = replace(task.recipe.data, limit=limit, length_offset=5)
    parallel_text.translate(task.model("rms", "unfused"), task.subwords, sentences, config)
    assert seen.pop("rest") == (4, task.recipe.data.length_penalty, 5)
    assert seen == {n: limit[0] * n + limit[1] for n in encoded.lengths.tolist()}


def transformer(*settings):
    recipe = changed(tasks.recipe("transformer"), [*SMALL["transformer"], *settings])
    return tasks.module("transformer").network(recipe, {"vocabulary": 20}, "rms", "unfused")


def test_attention_drops_its_weights_in_training_alone(monkeypatch):
    dropped, real = [], torch.nn.functional.scaled_dot_product_attention

    def attention(*args, dropout_p=0.0, **kwargs):
        dropped.append(dropout_p)
        return real(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(encoder_decoder.F, "scaled_dot_product_attention", attention)
    model, batch = transformer("model.attention_dropout=0.3"), torch.randint(5, 20, (2, 3, 4))
    model(*batch)
    assert dropped == [0.3] * 3  # of source, target, and target to source
    dropped.clear()
    model.eval()(*batch)
    assert dropped == [0.0] * 3


def test_the_source_may_have_an_embedding_of_its_own_and_all_words_a_bias():
    torch.manual_seed(0)
    model = transformer("model.source_embedding=true", "model.embedding_bias=true")
    assert model.source_embedding.weight.std().item() == pytest.approx(0.25, rel=0.1)  # 1/√16
    assert not model.embedding_bias.any()
    torch.nn.init.normal_(model.embedding_bias)
    read = {}
    model.encoder[0].register_forward_pre_hook(lambda _, given: read.update(source=given[0]))
    model.decoder[0].register_forward_pre_hook(lambda _, given: read.update(target=given[0]))
    source, target = torch.randint(5, 20, (2, 3, 4))
    model(source, target)
    places = encoder_decoder.positions(0, 4, 16, torch.device("cpu"))
    torch.testing.assert_close(
        read["source"], 4 * model.source_embedding.weight[source] + model.embedding_bias + places
    )
    torch.testing.assert_close(
        read["target"][:, 1:], 4 * model.embedding.weight[target[:, :-1]] + model.embedding_bias + places[1:]
    )
    plain = transformer()
    assert not {"embedding_bias", "source_embedding.weight"} & plain.state_dict().keys()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "translation",
            {
                "train.clip": "global",
                "train.clip_norm": 1.0,
                "train.best": True,
                "model.loss_of": "sentences",
                "data.beam": 12,
                "data.length_penalty": 1.0,
                "data.limit": (0, 200),
                "data.pool": 20,
            },
        ),
        (
            "transformer",
            {
                "train.clip": "global",
                "train.clip_norm": 5.0,
                "train.best": True,
                "model.loss_of": "sentence_means",
                "model.attention_dropout": 0.1,
                "model.source_embedding": True,
                "model.embedding_bias": True,
                "data.beam": 4,
                "data.length_penalty": 0.6,
                "data.length_offset": 5,
                "data.limit": (1, 50),
            },
        ),
        ("reading", {"model.read_width": 240, "data.longest": None, "model.biases": "paper"}),
    ],
)
def test_the_papers_size_is_as_its_code(task, expected):
    recipe = importlib.import_module(f"rmsnorm_lab.experiments.recipes.{task}").paper()
    for name, value in expected.items():
        part, _, key = name.partition(".")
        assert getattr(getattr(recipe, part), key) == value, name
