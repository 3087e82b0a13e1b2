"""The task `retrieval`: order errors, the loss, ranks by brute force, batches, two processes against one."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from processes import together  # noqa: E402
from ranked_parts import PARTS, ranked_part  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.data import digit_scenes  # noqa: E402
from rmsnorm_lab.experiments.data.captions import LAYOUTS, UNKNOWN  # noqa: E402
from rmsnorm_lab.experiments.models import order_embedding  # noqa: E402
from rmsnorm_lab.experiments.recipes import retrieval as recipes  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import KERNELS  # noqa: E402
from rmsnorm_lab.experiments.run import chosen_by  # noqa: E402
from rmsnorm_lab.experiments.tasks import retrieval  # noqa: E402

SMALL = recipes.small()
RECIPE = replace(
    SMALL,
    model=replace(SMALL.model, word_width=5, width=7),
    train=replace(SMALL.train, batch=6),
    data=replace(SMALL.data, fold=8),
)
WORDS = [f"word{i}" for i in range(20)]


def written(folder, **sizes):
    """Random images and captions; those of the test have a word that training lacks."""
    rng = np.random.default_rng(0)
    for split, size in sizes.items():
        text, images = LAYOUTS["VSE++"][split]
        np.save(folder / images, rng.normal(size=(size, 9)).astype(np.float32))
        extra = ["unheard"] if split == "test" else []
        lines = [" ".join([*rng.choice(WORDS, rng.integers(1, 7)), *extra]) for _ in range(5 * size)]
        (folder / text).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return retrieval.load(written(tmp_path_factory.mktemp("random"), train=20, valid=9, test=19), RECIPE)


def plain_loss(images, captions, margin):
    """Every mismatch in turn."""
    error = [[np.square(np.maximum(0, c - i)).sum() for c in captions] for i in images]
    total = 0.0
    for i in range(len(images)):
        for j in range(len(images)):
            if i != j:
                total += max(0, margin + error[i][i] - error[i][j]) + max(0, margin + error[j][j] - error[i][j])
    return total


def test_the_loss_is_the_sum_over_every_mismatch():
    rng = np.random.default_rng(1)
    images, captions = np.abs(rng.normal(size=(2, 6, 7)))
    errors = order_embedding.order_errors(torch.tensor(images), torch.tensor(captions))
    assert errors[2, 4].item() == pytest.approx(np.square(np.maximum(0, captions[4] - images[2])).sum())
    assert order_embedding.ranking_loss(errors, 0.3).item() == pytest.approx(plain_loss(images, captions, 0.3))
    parts = [order_embedding.ranking_loss(errors, 0.3, own).item() for own in (slice(0, 2), slice(2, 6))]
    assert sum(parts) == pytest.approx(plain_loss(images, captions, 0.3))


def test_the_tasks_loss_is_that_of_its_embeddings(task):
    network, batch = task.model("rms", "rmsnorm"), task.batch(0, 0)
    images, captions = (part.detach().double().numpy() for part in network(*batch))
    for part in (images, captions):
        assert part.shape == (6, 7)
        assert (part >= 0).all()
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-5)
    total = task.loss(network, batch)
    assert task.weight(batch) == 1
    assert total.item() == pytest.approx(plain_loss(images, captions, RECIPE.model.margin), rel=1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_by_brute_force(ties):
    rng = np.random.default_rng(2)
    errors = rng.integers(4, size=(6, 30)).astype(float) if ties else rng.random((6, 30))
    of_captions, of_images = retrieval.ranks(torch.tensor(errors))
    for i in range(6):
        mine = range(5 * i, 5 * i + 5)
        best = min(errors[i, c] for c in mine)
        before = [c for c in range(30) if c not in mine and errors[i, c] <= best]
        assert of_captions[i] == 1 + len(before)
    for c in range(30):
        before = [i for i in range(6) if i != c // 5 and errors[i, c] <= errors[c // 5, c]]
        assert of_images[c] == 1 + len(before)


def test_figures_are_means_over_folds(task):
    network = task.model("layer", "rmsnorm").eval()
    with torch.no_grad():
        found = task.evaluate(network, "test")
        errors = []
        for start in (0, 8):  # two whole folds of 8 in 19 images
            part = task.splits["test"]
            images = network.images(torch.tensor(part.images[start : start + 8]))
            each = [
                network.captions(*task._words([words]))
                for words in map(part.captions.__getitem__, range(5 * start, 5 * start + 40))
            ]
            errors.append(order_embedding.order_errors(images, torch.cat(each)))
    assert set(found) == {metric.key for metric in task.metrics} | {"loss"}
    of_captions, of_images = (torch.cat(parts).double() for parts in zip(*map(retrieval.ranks, errors), strict=True))
    assert found["caption_r5"] == pytest.approx(100 * (of_captions <= 5).double().mean().item())
    assert found["image_r1"] == pytest.approx(100 * (of_images <= 1).double().mean().item())
    assert found["caption_mean_rank"] == pytest.approx(of_captions.mean().item())
    assert found["image_mean_rank"] == pytest.approx(of_images.mean().item())
    losses = [order_embedding.ranking_loss(each[:, ::5], RECIPE.model.margin).item() for each in errors]
    assert found["loss"] == pytest.approx(np.mean(losses) * (6 * 5) / (8 * 7), rel=1e-4)


def test_the_papers_curve_is_of_one_search_in_the_whole_validation_set(task, monkeypatch):
    monkeypatch.setattr(retrieval, "_ERRORS", 150)  # an image or two at a time
    network, part = task.model("rms", "rmsnorm").eval(), task.splits["valid"]
    whole = replace(task.recipe, data=replace(task.recipe.data, whole_validation=True))
    other = retrieval.Retrieval.__new__(retrieval.Retrieval)
    other.__dict__ |= vars(task) | {"recipe": whole}
    assert len(part.images) > whole.data.fold
    with torch.no_grad():
        found, first = other.evaluate(network, "valid"), task.evaluate(network, "valid")
        images = network.images(torch.tensor(part.images))
        sentences = map(part.captions.__getitem__, range(len(part.captions)))
        captions = torch.cat([network.captions(*task._words([words])) for words in sentences])
    of_captions, of_images = retrieval.ranks(order_embedding.order_errors(images, captions))
    assert found["caption_mean_rank"] == pytest.approx(of_captions.double().mean().item())
    assert found["image_mean_rank"] == pytest.approx(of_images.double().mean().item())
    assert found["image_mean_rank"] > first["image_mean_rank"]
    with torch.no_grad():
        assert other.evaluate(network, "test") == task.evaluate(network, "test")


def test_the_papers_recipe_selects_as_its_code():
    recipe = recipes.paper()
    assert (recipe.train.best, recipe.data.whole_validation) == (True, True)
    keys, higher = chosen_by(recipe.train, retrieval.Retrieval.metrics)
    assert (keys, higher) == (["image_r1", "image_r5", "image_r10"], True)


def test_a_network_that_says_the_same_of_everything_finds_nothing():
    of_captions, of_images = retrieval.ranks(torch.zeros(10, 50))
    assert of_captions.tolist() == [46] * 10
    assert of_images.tolist() == [10] * 50


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", norms.of_task("retrieval"))
def test_every_norm_starts_from_the_same_draws_and_learns(task, norm, kernels):
    torch.manual_seed(3)
    bare = dict(task.model("none", kernels).named_parameters())
    torch.manual_seed(3)
    network = task.model(norm, kernels)
    layer = network.gru.directions[0]
    for name in ("weight_ih", "weight_hh"):
        torch.testing.assert_close(getattr(layer, f"{name}_l0"), bare[f"gru.directions.0.{name}_l0"])
    torch.testing.assert_close(network.image.weight, bare["image.weight"])
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-2), []
    for _step in range(10):
        total = task.loss(network, task.batch(0, 0))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_start_is_the_papers(task):
    network = task.model("rms", "rmsnorm")
    layer = network.gru.directions[0]
    for block in layer.weight_hh_l0.detach().split(7):
        torch.testing.assert_close(block @ block.T, torch.eye(7), rtol=0, atol=1e-5)
    for weight in (network.words.weight, layer.weight_ih_l0):
        assert 0.08 < weight.abs().max() <= 0.1
    for bias in (layer.bias_ih_l0, layer.bias_hh_l0, network.image.bias):
        assert not bias.any()


def test_batches_depend_on_step_and_seed_alone(task):
    for step in (0, 2, 11):
        for one, other in zip(task.batch(step, 5), task.batch(step, 5), strict=True):
            assert torch.equal(one, other)
    batches = [task.batch(step, 5) for step in range(3)]  # an epoch: 18 of 20 images
    rows = {image.numpy().tobytes() for batch in batches for image in batch.images}
    assert len(rows) == 18
    assert not torch.equal(task.batch(0, 5).images, task.batch(0, 6).images)


def test_a_batch_pairs_an_image_with_one_of_its_captions_and_ends_it(task):
    train, words = task.splits["train"], {i: word for word, i in task.ids.items()}
    captions = set()
    for step in range(12):
        batch = task.batch(step, 0)
        for image, ids, length in zip(*batch, strict=True):
            i = int((train.images == image.numpy()).all(1).argmax())
            assert not ids[length - 1 :].any()  # END, and the same as padding
            said = ids[: length - 1].tolist()
            assert set(said) <= words.keys()
            assert said in [train.captions[row].tolist() for row in range(5 * i, 5 * i + 5)]
            captions.add(tuple(said))
    assert len(captions) > 40  # of 100: all five of an image come up


def test_unknown_words_have_one_id_and_padding_changes_nothing(task):
    first, second = np.array([task.ids["word1"], UNKNOWN]), np.array([task.ids["word2"]] * 6)
    ids, lengths = task._words([first, second])
    assert ids[0].tolist() == [task.ids["word1"], UNKNOWN, 0, 0, 0, 0, 0]
    test = task.splits["test"].captions
    assert all(test[row][-1] == UNKNOWN for row in range(len(test)))
    network = task.model("rms", "rmsnorm").eval()
    alone = network.captions(*task._words([first]))
    torch.testing.assert_close(network.captions(ids, lengths)[:1], alone, rtol=1e-5, atol=1e-6)


def test_too_little_data_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a step takes 6 images; the training part of '.*' has 5"):
        retrieval.load(written(tmp_path, train=5, valid=9, test=9), RECIPE)
    with pytest.raises(UserError, match=r"the test part of '.*' must have 2 images or more"):
        retrieval.load(written(tmp_path, train=6, valid=9, test=1), RECIPE)
    with pytest.raises(UserError, match=r"data\.fold must be at least 2; got 1"):
        retrieval.load(None, replace(RECIPE, data=replace(RECIPE.data, fold=1)))


def test_a_users_folder_is_loaded_under_its_name(tmp_path):
    pytest.importorskip("sklearn")
    digit_scenes.write(tmp_path, {"train": 8, "valid": 3, "test": 4})
    found = retrieval.load(tmp_path, RECIPE)
    assert (found.source.name, found.source.stand_in) == (tmp_path.name, False)
    assert found.source.details == {"train images": 8, "valid images": 3, "test images": 4, "layout": "VSE++"}
    assert found.batch(0, 0).images.shape == (6, 256)
    again = retrieval.load(tmp_path, RECIPE)  # as it was kept
    assert again.source == found.source
    assert all(map(torch.equal, again.batch(2, 1), found.batch(2, 1)))


def test_processes_with_unequal_parts_take_the_loss_and_gradients_of_the_whole_batch(tmp_path):
    """The gradient of one process's embeddings counts what all took of them."""
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.rand(2, 5, 7, generator=generator)
    whole = [part.clone().requires_grad_() for part in (images, captions)]
    total = order_embedding.ranking_loss(order_embedding.order_errors(*whole), 0.3)
    total.backward()

    together(len(PARTS), ranked_part, tmp_path, images, captions)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    assert sum(loss for loss, _ in parts) == pytest.approx(total.item(), rel=1e-5)
    for k, part in enumerate(whole):
        joined = torch.cat([gradients[k] for _, gradients in parts])
        torch.testing.assert_close(joined, part.grad, rtol=1e-5, atol=1e-6)
