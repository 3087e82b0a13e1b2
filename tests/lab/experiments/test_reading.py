"""The task `reading`: the network against plain NumPy, padding, permuted entities, batches, the majority baseline."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.data import cloze_ids  # noqa: E402
from rmsnorm_lab.experiments.data.cloze import Question  # noqa: E402
from rmsnorm_lab.experiments.data.prepared import temporary  # noqa: E402
from rmsnorm_lab.experiments.recipes import reading as recipes  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import EPS, KERNELS  # noqa: E402
from rmsnorm_lab.experiments.task import Source  # noqa: E402
from rmsnorm_lab.experiments.tasks import reading  # noqa: E402

SMALL = recipes.small()
RECIPE = replace(
    SMALL,
    model=replace(SMALL.model, word_width=5, width=4),
    train=replace(SMALL.train, batch=6),
    data=replace(SMALL.data, vocabulary=8, longest=12),
)
WORDS = [f"w{i}" for i in range(12)]


def question(rng, least=3):
    entities = [f"@entity{i}" for i in rng.choice(50, 4, replace=False)]
    context = [str(rng.choice([*WORDS, *entities])) for _ in range(rng.integers(least, 20))] + [entities[0]]
    asked = ["@placeholder", *(str(rng.choice([*WORDS, *entities[1:]])) for _ in range(rng.integers(1, 6)))]
    rng.shuffle(asked)
    return Question(context, asked, entities[0])


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    return {split: [question(rng) for _ in range(size)] for split, size in (("train", 20), ("valid", 5), ("test", 9))}


def encoded(splits):
    return temporary(partial(cloze_ids.build, RECIPE.data, splits.__getitem__))


@pytest.fixture(scope="module")
def task(found):
    return reading.Reading(RECIPE, Source("random", True, ""), encoded(found))


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def test_the_network_is_the_readers(task):
    """Without a norm, on torch's own LSTMs and NumPy's arithmetic, one question at a time."""
    network, batch = randomised(task.model("none", "rmsnorm")), task.batch(0, 0)
    found = network(*batch[:-1]).detach().double().numpy()
    w = {name: value.detach().double().numpy() for name, value in network.named_parameters()}

    def read(ragged, ids):
        states = []
        for layer, start, sequence in zip(ragged.directions, ragged.start, (ids, ids.flip(0)), strict=True):
            peer = torch.nn.LSTM(5, 4)
            peer.load_state_dict(layer.state_dict())
            h = start[None, None].detach()
            outputs = peer(network.words(sequence)[:, None], (h, torch.zeros_like(h)))[0][:, 0]
            states.append(outputs.detach().double().numpy())
        forward, backward = states
        return np.concatenate((forward, backward[::-1]), 1), np.concatenate((forward[-1], backward[-1]))

    for b in range(6):
        d, _ = read(network.context, batch.context[b, : batch.context_lengths[b]])
        _, q = read(network.question, batch.question[b, : batch.question_lengths[b]])
        match = (d @ w["bilinear.weight"].T) @ (w["bilinear.weight"] @ q)
        inside = d @ w["of_context.weight"].T + w["of_context.bias"] + w["of_question.weight"] @ q + match[:, None]
        scores = np.tanh(inside) @ w["score.weight"][0]
        weights = np.exp(scores) / np.exp(scores).sum()
        r = weights @ d
        read_out = w["attended.weight"] @ r + w["attended.bias"] + w["asked.weight"] @ q
        y = np.tanh(read_out + w["average.weight"] @ d.mean(0))
        np.testing.assert_allclose(found[b], w["logits.weight"] @ y + w["logits.bias"], rtol=1e-3, atol=1e-4)

    answers = batch.answer.tolist()
    nats = sum(np.log(np.exp(row).sum()) - row[answer] for row, answer in zip(found, answers, strict=True))
    assert task.weight(batch) == 6
    assert task.loss(network, batch).item() == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize("norm", norms.of_task("reading"))
def test_padding_changes_nothing(task, norm):
    network, batch = randomised(task.model(norm, "rmsnorm")), task.batch(0, 0)
    if norm == "batch":
        network.train()  # where an example's result may depend on the others, but not on padding
        network.dropout = 0.0
    context = torch.nn.functional.pad(batch.context, (0, 3), value=1)
    for b, length in enumerate(batch.context_lengths):
        context[b, length:] = 3
    padded = (context, batch.context_lengths, batch.question, batch.question_lengths)
    torch.testing.assert_close(network(*padded), network(*batch[:-1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", norms.of_task("reading"))
def test_every_norm_starts_from_the_same_draws_and_learns(task, norm, kernels):
    torch.manual_seed(3)
    bare = dict(task.model("none", kernels).named_parameters())
    torch.manual_seed(3)
    network = task.model(norm, kernels)
    for side in ("context", "question"):
        for d, layer in enumerate(getattr(network, side).directions):
            for name in ("weight_ih", "weight_hh"):
                expected = bare[f"{side}.directions.{d}.{name}_l0"]
                torch.testing.assert_close(getattr(layer, f"{name}_l0"), expected)
    torch.testing.assert_close(network.logits.weight, bare["logits.weight"])
    optimizer, losses, batch = torch.optim.Adam(network.parameters(), 1e-2), [], task.batch(0, 0)
    for _ in range(12):
        total = task.loss(network, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("norm", norms.of_task("reading"))
def test_every_norm_trains_in_bfloat16(task, norm):
    """In operators, which is where dtypes could meet that do not go together."""
    network, batch = task.model(norm, "unfused"), task.batch(0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        halved = task.loss(network, batch)
    assert halved.item() == pytest.approx(task.loss(network, batch).item(), rel=0.05)
    halved.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_start_is_the_papers(task):
    network = task.model("rms", "rmsnorm")
    for layer in (*network.context.directions, *network.question.directions):
        for block in layer.weight_hh_l0.detach().split(4):
            torch.testing.assert_close(block @ block.T, 0.0025 * torch.eye(4), rtol=0, atol=1e-6)
        assert not layer.bias_ih_l0.any()
        assert not layer.bias_hh_l0.any()
        for block in layer.weight_ih_l0.detach().split(4):
            assert block.abs().max() <= np.sqrt(6 / (4 + 5 + 1))
    assert 0.5 < network.of_context.weight.abs().max() / np.sqrt(6 / 17) <= 1


def decoded(task, ids, words):
    return [words.get(int(i), f"marker {int(i)}") for i in ids]


def test_entities_get_markers_at_random_consistently_within_a_question(task, found):
    words = {i: word for word, i in task.ids.items()} | {cloze_ids.UNKNOWN: "unknown"}
    assert task.markers == max(part.entities.max() for part in task.splits.values())
    used = set()
    for step in range(12):
        batch = task.batch(step, 1)
        indices, _ = reading.chosen(step, 1, 20, 6)
        for row, index in enumerate(indices):
            original = found["train"][index]
            context = batch.context[row, : batch.context_lengths[row]]
            asked = batch.question[row, : batch.question_lengths[row]]
            assert len(context) == min(len(original.context), 12)
            mapping = {}
            pairs = [*zip(original.context, context, strict=False), *zip(original.question, asked, strict=True)]
            for word, marker in [*pairs, (original.answer, batch.answer[row])]:
                if word.startswith("@entity"):
                    assert mapping.setdefault(word, int(marker)) == int(marker)
                    assert task.first_marker <= marker < task.first_marker + task.markers
                else:
                    assert words[int(marker)] == (word if word in task.ids else "unknown")
            assert len(set(mapping.values())) == len(mapping)
            used.add((index, int(batch.answer[row])))
    assert len(used) > len(found["train"]) + 5  # one question's answer has had several markers


def test_batches_depend_on_step_and_seed_alone(task):
    for step in (0, 2, 11):
        for one, other in zip(task.batch(step, 5), task.batch(step, 5), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(task.batch(0, 5).answer, task.batch(0, 6).answer)
    indices = np.concatenate([reading.chosen(step, 5, 20, 6)[0] for step in range(3)])
    assert len(set(indices.tolist())) == 18


def test_figures_by_hand_and_the_same_each_time(task):
    network = randomised(task.model("rms", "rmsnorm"))
    with torch.no_grad():
        found = task.evaluate(network, "test")
        assert task.evaluate(network, "test") == found
        part = task.splits["test"]
        order = sorted(range(9), key=lambda i: len(part[i].context))
        batch = task._batch([part[i] for i in order], reading.numpy_generator(0))
        logits = network(*batch[:-1]).double().numpy()
    right = sum(int(row.argmax() == answer) for row, answer in zip(logits, batch.answer.tolist(), strict=True))
    assert found["accuracy"] == pytest.approx(100 * right / 9)


def test_the_majority_baseline():
    questions = [
        Question(["@entity1", "@entity2", "@entity2", "x"], ["@placeholder"], "@entity2"),
        Question(["@entity3", "@entity2", "x", "x", "x"], ["@placeholder"], "@entity3"),
        Question(["@entity3", "@entity3", "@entity2"], ["@placeholder"], "@entity2"),
    ]
    found = dict.fromkeys(("train", "valid", "test"), questions)
    assert encoded(found).info["majority"] == pytest.approx(200 / 3)


def test_a_context_is_cut_to_its_sentences_and_length():
    q = Question(["a", ".", "@entity1", "b", ".", "c", "d", ".", "e"], ["@placeholder", "b", "d"], "@entity1")
    assert cloze_ids._shortened(q, 2, 100).context == ["@entity1", "b", ".", "c", "d", "."]
    assert cloze_ids._shortened(q, None, 3).context == ["a", ".", "@entity1"]


def test_too_little_data_is_refused(found):
    few = {**found, "train": found["train"][:5]}
    with pytest.raises(UserError, match=r"a step takes 6 questions; the training part of 'few' has 5"):
        reading.Reading(RECIPE, Source("few", False, ""), encoded(few))


def test_a_users_folder_is_loaded_under_its_name(tmp_path, found):
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        lines = [f"{' '.join(q.question)}\n{q.answer}\n{' '.join(q.context)}\n\n" for q in found[split]]
        (tmp_path / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    loaded = reading.load(tmp_path, RECIPE)
    assert (loaded.source.name, loaded.source.stand_in) == (tmp_path.name, False)
    counts = {"train questions": 20, "valid questions": 5, "test questions": 9, "layout": "Danqi"}
    assert loaded.source.details == counts
    assert loaded.batch(0, 0).answer.shape == (6,)
    again = reading.load(tmp_path, RECIPE)  # as it was kept
    assert again.source == loaded.source
    assert all(map(torch.equal, again.batch(2, 1), loaded.batch(2, 1)))
    other = reading.load(tmp_path, replace(RECIPE, data=replace(RECIPE.data, longest=3)))
    assert other.batch(0, 0).context_lengths.max() == 3


@pytest.mark.parametrize("kernels", KERNELS)
def test_batch_norm_everywhere_is_of_each_term_of_the_attention_and_the_read_out(task, kernels):
    """Against the equations in float64, padding left out of every statistic; gains of 0.1 at the start."""
    config = replace(RECIPE, model=replace(RECIPE.model, read_width=3))
    torch.manual_seed(1)
    network = reading.network(config, task.sizes, "batch-everywhere", kernels)
    terms = [getattr(network, name) for name in ("of_context", "of_question", "attended", "asked", "average")]
    assert [tuple(linear.weight.shape) for linear, _ in terms] == [(3, 8)] * 5
    assert all((norm.weight == 0.1).all() for _, norm in terms)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    context, lengths, question, question_lengths, _ = task.batch(0, 0)
    read = {}
    for name in ("context", "question"):
        getattr(network, name).register_forward_hook(lambda *given, name=name: read.update({name: given[2]}))
    found = network.train()(context, lengths, question, question_lengths)

    def normed(term, x):
        linear, norm = term
        y = x @ linear.weight.double().T
        y = (y - y.mean(0)) / (y.var(0, correction=0) + EPS).sqrt()
        return y * norm.weight.double() + norm.bias.double()

    d, q = read["context"][0].detach().double(), read["question"][1].detach().double()
    valid = torch.arange(len(d))[:, None] < lengths
    bilinear, score = network.bilinear.weight.double(), network.score.weight.double()
    words, asked = normed(terms[0], d[valid]), normed(terms[1], q)
    of = torch.arange(len(lengths)).expand(len(d), -1)[valid]
    match = ((d[valid] @ bilinear.T) * (q @ bilinear.T)[of]).sum(-1, keepdim=True)
    scores = (torch.tanh(words + asked[of] + match) @ score.T)[:, 0]
    r = torch.stack([(scores[of == b].softmax(0)[:, None] * d[valid][of == b]).sum(0) for b in range(len(lengths))])
    mean = torch.stack([d[valid][of == b].mean(0) for b in range(len(lengths))])
    y = torch.tanh(normed(terms[2], r) + normed(terms[3], q) + normed(terms[4], mean))
    expected = y @ network.logits.weight.double().T + network.logits.bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_a_whole_context_is_read_where_the_recipe_says_so():
    rng = np.random.default_rng(3)
    asked = question(rng, least=18)
    assert len(cloze_ids._shortened(asked, None, None).context) == len(asked.context) > 12
    assert len(cloze_ids._shortened(asked, None, 12).context) == 12
