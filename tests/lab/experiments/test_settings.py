"""``--set``: every form of a value that is read, with what it becomes; what a recipe cannot be."""

from dataclasses import replace

import pytest

from rmsnorm_lab.errors import UserError, nearest
from rmsnorm_lab.experiments import tasks
from rmsnorm_lab.experiments.recipes.common import Recipe
from rmsnorm_lab.experiments.recipes.parallel_text import SMALLEST_VOCABULARY
from rmsnorm_lab.experiments.recipes.settings import _settings, changed, shown


def value(recipe: Recipe, name: str):
    found = recipe
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("task", "assignment", "expected"),
    [
        ("language", "train.betas=(0.8,0.99)", (0.8, 0.99)),
        ("language", "train.betas=(0.8, 0.99)", (0.8, 0.99)),
        ("language", "train.betas=[0.8, 0.99]", (0.8, 0.99)),
        ("language", "train.betas=0.8,0.99", (0.8, 0.99)),
        ("language", "train.betas=0,0.5", (0.0, 0.5)),
        ("translation", "data.stand_in_pairs=(30, 2, 3)", (30, 2, 3)),
        ("language", "model.qk_norm=True", True),
        ("language", "model.qk_norm=true", True),
        ("transformer", "model.pre_norm=FALSE", False),
        ("language", "train.learning_rate=1", 1.0),
        ("language", "train.learning_rate=1e-3", 1e-3),
        ("language", "train.late_beta1=0.5", 0.5),
        ("images", "train.late_beta1=null", None),
        ("images", "train.late_beta1=None", None),
        ("reading", "data.sentences=4", 4),
        ("reading", "data.sentences=null", None),
        ("reading", "model.word_bound=null", None),
        ("reading", "model.word_bound=2", 2.0),
        ("translation", "model.init_mean=-0.2", -0.2),
        ("translation", "data.target=fr", "fr"),
        ("language", "train.clip=per_tensor", "per_tensor"),
        ("images", "data.held_out=0", 0),
        ("retrieval", "data.fold=2", 2),
    ],
)
def test_a_value_is_read_as_its_fields_type(task, assignment, expected):
    found = value(changed(tasks.recipe(task), [assignment]), assignment.partition("=")[0])
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(expected, tuple):
        assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(("task", "size"), [(task, size) for task in tasks.TASKS for size in tasks.sizes(task)])
def test_every_setting_takes_its_own_value_as_it_is_listed(task, size):
    recipe = tasks.recipe(task, size)
    idle = {"train.clip_norm", "train.final_share", "train.best_by"}
    names = {name: present for name, (_, present) in _settings(recipe).items() if name not in idle}
    assert {"p", "train.steps", "timing.rounds"} <= names.keys()
    same = changed(recipe, [f"{name}={shown(present)}" for name, present in names.items()])
    assert same == replace(recipe, learning_rates=())


@pytest.mark.parametrize(
    ("task", "assignment", "message"),
    [
        ("reading", "data.sentences=4.0", "data.sentences must be a whole number or null; got '4.0'"),
        ("reading", "data.sentences=0", "data.sentences must be at least 1"),
        ("reading", "data.vocabulary=null", "data.vocabulary must be a whole number; got 'null'"),
        ("translation", "data.stand_in_pairs=(1,2)", "data.stand_in_pairs must be 3 whole numbers"),
        ("translation", "data.target=en", "data.source and data.target must be two languages; got 'en' for both"),
        ("retrieval", "data.fold=1", "data.fold must be at least 2"),
        ("transformer", "model.heads=3", "model.width must be an even multiple of model.heads; got 64 and 3"),
        ("language", "p=0", "p must be above 0 and at most 1; got 0"),
        ("language", "train.learning_rate=0", "train.learning_rate must be above 0; got 0"),
        ("language", f"train.batch={'9' * 5000}", "train.batch must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused_without_any_data(task, assignment, message):
    with pytest.raises(UserError) as raised:
        changed(tasks.recipe(task), [assignment])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("LR", "train.learning_rate"),
        ("modle.width", "model.width"),
        ("batch_size", "train.batch"),
        ("train.warmup_rounds", "timing.warmup_rounds"),
        ("train.x", None),
        ("train.", None),
        ("", None),
    ],
)
def test_a_setting_is_suggested_by_the_part_after_the_dot(name, meant):
    with pytest.raises(UserError) as raised:
        changed(tasks.recipe("language"), [f"{name}=3"])
    told = str(raised.value)
    assert told.endswith(f"Did you mean {meant!r}?") if meant else "Did you mean" not in told
    assert meant or "These are all" in told


@pytest.mark.parametrize(
    ("task", "part", "name", "wrong", "said"),
    [
        ("language", "train", "steps", 0, "train.steps must be at least 1; got 0"),
        ("language", "train", "steps", 2**31, "train.steps must be at most 2147483647; got 2147483648"),
        ("language", "train", "learning_rate", 0.0, "train.learning_rate must be above 0; got 0.0"),
        ("language", "train", "learning_rate", float("nan"), "train.learning_rate must be finite; got nan"),
        ("language", "train", "betas", (0.9, 1.0), "train.betas must be at least 0 and below 1; got 1.0"),
        ("language", "train", "late_beta1", -0.1, "train.late_beta1 must be at least 0 and below 1; got -0.1"),
        ("language", "train", "optimizer", "adan", "train.optimizer must be one of adam, adamw; got 'adan'. Did you"),
        ("language", "train", "accumulate", 99, "train.accumulate must be at most the batch, 16; got 99"),
        ("language", "timing", "seed", -1, "timing.seed must be at least 0; got -1"),
        ("language", "model", "layers", 0, "model.layers must be at least 1; got 0"),
        ("language", "model", "heads", 3, "model.width must be an even multiple of model.heads; got 128 and 3"),
        ("images", "model", "widths", (4, 0), "model.widths must be at least 1; got 0"),
        ("images", "data", "zca", -1.0, "data.zca must be at least 0; got -1.0"),
        ("translation", "model", "init_mean", float("inf"), "model.init_mean must be finite; got inf"),
        ("translation", "data", "vocabulary", 258, "data.vocabulary must be at least 259; got 258"),
        ("reading", "data", "sentences", 0, "data.sentences must be at least 1; got 0"),
        ("retrieval", "", "p", 1.5, "p must be above 0 and at most 1; got 1.5"),
    ],
)
def test_a_setting_checks_itself_however_it_is_made(task, part, name, wrong, said):
    recipe = tasks.recipe(task)
    with pytest.raises(UserError) as raised:
        replace(getattr(recipe, part) if part else recipe, **{name: wrong})
    assert str(raised.value).startswith(said)


def test_the_smallest_vocabulary_is_that_of_the_subwords():
    subwords = pytest.importorskip("rmsnorm_lab.experiments.data.subwords", exc_type=ImportError)
    learnt = subwords.Subwords.learn(["a word, a word"], SMALLEST_VOCABULARY)
    assert learnt.size == SMALLEST_VOCABULARY == subwords.Subwords.learn(["a word, a word"], 3).size


def test_settings_that_belong_together_are_checked_together():
    swapped = changed(tasks.recipe("translation"), ["data.source=de", "data.target=en"])
    assert (swapped.data.source, swapped.data.target) == ("de", "en")
    wider = changed(tasks.recipe("language"), ["model.width=60", "model.heads=3"])
    assert (wider.model.width, wider.model.heads) == (60, 3)


def test_a_learning_rate_that_is_set_holds_for_every_normaliser():
    recipe = tasks.recipe("language")
    assert recipe.learning_rate("l2") != recipe.learning_rate("rms")
    assert changed(recipe, ["train.learning_rate=0.5"]).learning_rate("l2") == 0.5
    assert changed(recipe, ["train.batch=5"]).learning_rate("l2") == recipe.learning_rate("l2")


def test_a_run_may_be_cut_short_within_the_recipes_warm_up():
    assert changed(tasks.recipe("language"), ["train.steps=2"]).train.warmup_steps == 20
    assert changed(tasks.recipe("language"), ["train.steps=9", "train.warmup_steps=9"]).train.warmup_steps == 9


@pytest.mark.parametrize(
    ("got", "meant"), [("RMSNorm", "rms"), ("layr", "layer"), ("lstm", None), ("", None), ("BATCH", "batch")]
)
def test_nearest(got, meant):
    assert nearest(got, ("none", "layer", "rms", "batch")) == (f" Did you mean {meant!r}?" if meant else "")
