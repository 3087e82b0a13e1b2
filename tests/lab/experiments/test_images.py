"""The task `images`: the network, its norms over positions, whitening, the data-dependent start, batches, figures."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from rmsnorm import reference  # noqa: E402
from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms  # noqa: E402
from rmsnorm_lab.experiments.data.digits import Images as Data  # noqa: E402
from rmsnorm_lab.experiments.recipes import images as recipes  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import KERNELS  # noqa: E402
from rmsnorm_lab.experiments.task import Source  # noqa: E402
from rmsnorm_lab.experiments.tasks import images  # noqa: E402

SMALL = recipes.small()
RECIPE = replace(
    SMALL,
    model=replace(SMALL.model, widths=(4, 6)),
    train=replace(SMALL.train, batch=8),
    data=replace(SMALL.data, held_out=10, zca=0.1),
)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(50, 1, 24, 24)).astype(np.float32)
    labels = rng.integers(10, size=50)
    data = Data(pixels[:40], labels[:40], pixels[40:], labels[40:], 10, "")
    return images.Images(RECIPE, Source("random", True, ""), data)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", ["layer", "rms", "prms"])
def test_statistics_are_taken_over_the_positions_of_each_channel(norm, kernels):
    rng = np.random.default_rng(1)
    x, weight, bias = rng.normal(1, 2, (3, 5, 6, 4)), rng.normal(1, 0.5, 5), rng.normal(size=5)
    module = norms.made(norm, kernels, 0.125).channels(5, spatial=True)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(bias))
    rows = x.reshape(15, 24)
    if norm == "layer":
        expected = reference.layer_norm(rows, eps=1e-5)
    else:
        expected = reference.rms_norm(rows, k=3 if norm == "prms" else None, eps=1e-5)  # 12.5 % of 24
    expected = expected.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(module(torch.tensor(x).float()).detach().numpy(), expected, rtol=1e-4, atol=1e-5)

    vectors = rng.normal(size=(7, 5))
    over = reference.layer_norm if norm == "layer" else reference.rms_norm
    options = {"k": 1} if norm == "prms" else {}
    expected = over(vectors, weight, bias, eps=1e-5, **options)
    np.testing.assert_allclose(module(torch.tensor(vectors).float()).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_papers_network():
    """Its parameters, counted by hand: nine convolutions and a dense layer."""
    config = recipes.paper().model
    network = images.ConvPool(3, 10, config, norms.made("none", "rmsnorm"))
    weights = 9 * (3 * 96 + 2 * 96 * 96 + 96 * 192 + 3 * 192 * 192) + 2 * 192 * 192 + 192 * 10
    assert sum(p.numel() for p in network.parameters()) == weights + 3 * 96 + 6 * 192 + 10
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    shapes = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    assert shapes == [(96, 32, 32)] * 3 + [(192, 16, 16)] * 3 + [(192, 6, 6)] * 3 + [(10,)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", norms.of_task("images"))
def test_every_norm_starts_from_the_same_draws_and_learns(task, norm, kernels):
    torch.manual_seed(3)
    bare = task.model("none", kernels)
    torch.manual_seed(3)
    network = task.model(norm, kernels)
    for one, other in zip(bare.layers, network.layers, strict=True):
        torch.testing.assert_close(one.weight, other.weight)
    after = torch.rand(1)
    torch.manual_seed(3)
    task.model("none", kernels)
    assert torch.equal(torch.rand(1), after)  # and leaves the generator where the others do
    batch = task.batch(0, 0)
    task.initialise(network, 0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        total = task.loss(network, batch)
        assert task.weight(batch) == 8
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item() / 8)
    assert min(losses) < losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["none", "weight"])
def test_the_data_dependent_start_standardises_every_channel(task, norm):
    network = task.model(norm, "rmsnorm")
    batch = task.batch(0, 0)
    before = torch.get_rng_state()
    task.initialise(network, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    outputs = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    network.eval()(batch[0])
    assert len(outputs) == 10
    for output in outputs:
        over = [0, *range(2, output.ndim)]
        torch.testing.assert_close(output.mean(over), torch.zeros(output.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.std(over, correction=0), torch.ones(output.shape[1]), rtol=0, atol=1e-3)


def test_noise_and_dropout_are_for_training_alone(task):
    network = task.model("rms", "rmsnorm")
    pixels = task.batch(0, 0)[0]
    assert not torch.equal(network(pixels), network(pixels))
    network.eval()
    assert torch.equal(network(pixels), network(pixels))


def test_whitening_gives_uncorrelated_pixels_of_variance_one_and_is_symmetric():
    rng = np.random.default_rng(2)
    pixels = (rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32).reshape(500, 3, 2, 2)
    whiten = images.zca(pixels, 1e-9)
    white = whiten(pixels).reshape(500, 12)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(12), atol=1e-3)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    matrix = (whiten(np.eye(12, dtype=np.float32).reshape(12, 3, 2, 2)) - whiten(np.zeros((1, 3, 2, 2)))).reshape(
        12, 12
    )
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-3)  # what makes it ZCA and not PCA


def test_batches_depend_on_step_and_seed_alone_and_an_epoch_sees_every_image_once(task):
    for step in (0, 3, 17):
        for one, other in zip(task.batch(step, 5), task.batch(step, 5), strict=True):
            assert torch.equal(one, other)
    epochs = [torch.cat([task.batch(step, 5)[0] for step in range(first, first + 3)]) for first in (0, 3)]
    seen = [{image.numpy().tobytes() for image in epoch} for epoch in epochs]
    assert [len(each) for each in seen] == [24, 24]  # 30 kept, the partial batch dropped
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(task.batch(0, 5)[0], task.batch(0, 6)[0])


def test_figures_by_hand(task):
    network = task.model("rms", "rmsnorm").eval()
    for split, size in (("valid", 10), ("test", 10)):
        pixels, labels = task.splits[split]
        assert len(labels) == size
        with torch.no_grad():
            found = task.evaluate(network, split)
            logits = network(pixels).double().numpy()
        wrong = sum(int(row.argmax()) != label for row, label in zip(logits, labels.tolist(), strict=True))
        nats = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels.tolist(), strict=True)]
        assert found["test_error"] == pytest.approx(100 * wrong / size)
        assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
        assert task.loss(network, (pixels, labels)).item() == pytest.approx(np.sum(nats), rel=1e-5)


def test_too_few_images_are_refused():
    data = Data(
        np.zeros((12, 1, 16, 16), np.float32), np.zeros(12, int), *[np.zeros((2, 1, 16, 16), np.float32)] * 2, 10, ""
    )
    with pytest.raises(UserError, match=r"a step takes 8 images; the training part of 'few' has 2"):
        images.Images(RECIPE, Source("few", False, ""), data)
    with pytest.raises(UserError, match=r"holds out 10 training images; 'few' has 9"):
        images.Images(RECIPE, Source("few", False, ""), replace(data, train=data.train[:9]))


@pytest.fixture(scope="module")
def papers(task):
    recipe = replace(
        RECIPE, model=replace(RECIPE.model, start_images=20), train=replace(RECIPE.train, eps_in_root=True)
    )
    other = images.Images.__new__(images.Images)
    other.__dict__ |= vars(task) | {"recipe": recipe}
    return other


@pytest.mark.parametrize("norm", ["none", "weight"])
def test_the_papers_start_is_on_its_number_of_images_with_noise_and_dropout(papers, norm, monkeypatch):
    network, seen = papers.model(norm, "rmsnorm"), []
    monkeypatch.setattr(type(network), "initialise", lambda self, x: seen.append(x))
    papers.initialise(network, 4)
    monkeypatch.undo()
    (x,) = seen
    assert torch.equal(x[:8], papers.batch(0, 4)[0])
    assert len(x) == 20

    weights = [layer.parametrizations.weight[0] for layer in network.layers] if norm == "none" else []
    drawn = [layer.parametrizations.weight.original.clone() for layer in network.layers] if norm == "none" else []
    torch.manual_seed(5)
    network.initialise(x)
    for before, layer in zip(drawn, network.layers, strict=False):  # the factors alone have moved
        assert torch.equal(layer.parametrizations.weight.original, before)
    assert all((each.factors != 1).any() for each in weights)
    assert not any("factors" in name for name, _ in network.named_parameters())

    outputs = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    torch.manual_seed(5)  # the same noise and the same dropout: the outputs that were standardised
    network(x)
    for output in outputs:
        over = [0, *range(2, output.ndim)]
        torch.testing.assert_close(output.mean(over), torch.zeros(output.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.std(over, correction=0), torch.ones(output.shape[1]), rtol=0, atol=1e-3)


def test_the_papers_images_start_so():
    recipe = recipes.paper()
    assert recipe.model.start_images == 500
    assert recipe.train.eps_in_root
