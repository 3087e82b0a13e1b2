"""Gradient accumulation: the whole batch's gradient from its parts, and recorded runs that keep their identity."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "babel", "sacrebleu", "tokenizers", "sklearn"):
    pytest.importorskip(_package)

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import store, tasks  # noqa: E402
from rmsnorm_lab.experiments.jobs import timings, training  # noqa: E402
from rmsnorm_lab.experiments.learner import Learner, Setup, split  # noqa: E402
from rmsnorm_lab.experiments.recipes import settings  # noqa: E402
from rmsnorm_lab.experiments.record import runs_of  # noqa: E402
from rmsnorm_lab.plain import to_plain  # noqa: E402

RECORDS = Path(__file__).parents[3] / "benchmarks" / "experiments"
# Seven examples: parts of 3, 2, 2. What is drawn in a step would be drawn otherwise for parts, so nothing is.
SMALL = {
    "language": ["train.batch=7", "model.width=32", "model.layers=1"],
    "transformer": ["train.batch=1500", "model.layers=1", "data.stand_in_pairs=[300,20,20]"],
    "translation": ["train.batch=7", "model.hidden=16", "data.stand_in_pairs=[300,20,20]"],
    "images": ["train.batch=7", "model.noise=0", "model.dropout=0", "model.widths=[4,6]"],
}


@pytest.fixture(scope="module", params=SMALL)
def task(request):
    return tasks.load(request.param, None, settings.changed(tasks.recipe(request.param), SMALL[request.param]))


def with_train(task, **changes):
    changed = type(task).__new__(type(task))
    changed.__dict__ |= {**task.__dict__, "recipe": replace(task.recipe, train=replace(task.recipe.train, **changes))}
    return changed


def step(task, parts):
    """(loss, gradients) of one step."""
    batch = max(task.recipe.train.batch, parts)  # as several processes have it, whose slices are smaller than the parts
    learner = Learner(with_train(task, batch=batch, accumulate=parts, clip="none"), Setup(), "rms", 0)
    loss = learner.step(task.batch(3, 1), 0.0, 0.9)
    return loss, {name: parameter.grad for name, parameter in learner.network().named_parameters()}


def test_the_parts_come_to_the_whole_batchs_loss_and_gradient(task, set_threads):
    set_threads(1)
    weights = {task.weight(part) for part in split(task.batch(3, 1), 3)}
    assert len(weights) > 1  # the premise: a mean of the parts' means would be another gradient
    loss, whole = step(task, 1)
    size = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    for parts in (3, 100):  # and more parts than examples
        found, gradients = step(task, parts)
        assert found == pytest.approx(loss, rel=1e-5)
        for name, gradient in whole.items():
            assert (gradients[name] - gradient).norm() < 1e-5 * size, name  # 100 roundings of float32


def test_a_loss_that_pairs_all_examples_cannot_be_taken_in_parts():
    with pytest.raises(UserError, match=r"train.accumulate must be 1 for retrieval.*got 2"):
        settings.changed(tasks.recipe("retrieval"), ["train.accumulate=2"])


def test_more_parts_than_the_batch_has_are_refused():
    with pytest.raises(UserError, match=r"train.accumulate must be at most the batch, 3; got 4"):
        settings.changed(tasks.recipe("language"), ["train.batch=3", "train.accumulate=4"])
    assert settings.changed(tasks.recipe("language"), ["train.batch=4", "train.accumulate=4"]).train.accumulate == 4


def test_a_setting_that_older_records_lack_is_part_of_the_identity_only_where_it_is_set(task):
    jobs = [training(task, Setup(), "rms", 0), timings(task, Setup(), ["rms"])[0]]
    assert "accumulate" not in to_plain(jobs[0].identity)["train"]
    assert "accumulate" not in to_plain(jobs[1].identity)
    other = with_train(task, accumulate=2)
    assert training(other, Setup(), "rms", 0).identity.train.accumulate == 2
    assert timings(other, Setup(), ["rms"])[0].identity.accumulate == 2


@pytest.mark.skipif(not RECORDS.is_dir(), reason="the records are not in a source distribution")
def test_the_recorded_runs_are_those_of_the_recipes():
    records = store.load(RECORDS / "2026-11-26-epyc-2-cores")  # the folder of docs/results.md; others change settings
    found = [record for record in runs_of(records) if record.identity.size == "small"]
    assert len(found) > 100
    for record in found:
        identity, recipe = record.identity, tasks.recipe(record.task)
        assert replace(recipe.train, learning_rate=identity.train.learning_rate) == identity.train
        assert to_plain(recipe.model) == identity.model
        assert to_plain(recipe.data) == identity.data
