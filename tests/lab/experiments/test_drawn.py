"""Inputs drawn at random: shapes, dtypes and values are those of the recipe and of the official data."""

import pytest

torch = pytest.importorskip("torch")
for package in ("lightning_fabric", "tokenizers", "sacrebleu", "sklearn"):
    pytest.importorskip(package)

from rmsnorm_lab.experiments import tasks  # noqa: E402
from rmsnorm_lab.experiments.data import drawn  # noqa: E402
from rmsnorm_lab.experiments.data.official import is_drawn, is_official  # noqa: E402
from rmsnorm_lab.experiments.data.subwords import END, PAD, Subwords  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402


@pytest.fixture(scope="module")
def drawn_task():
    made = {}

    def task(name):
        if name not in made:
            made[name] = tasks.drawn(name, tasks.recipe(name, "paper"))
        return made[name]

    return task


def check_sentences(ids, vocabulary, longest):
    assert ids.dtype == torch.int64
    assert ids.shape[1] <= longest + 1  # with its end
    words = (ids != PAD).sum(1)
    assert words.min() >= 2
    ends = ids.gather(1, words[:, None] - 1)
    assert (ends == END).all()
    before = torch.arange(ids.shape[1]) < words[:, None] - 1
    assert ids[before].min() > END
    assert vocabulary * 0.9 < ids[before].max() < vocabulary
    assert (ids[torch.arange(ids.shape[1]) >= words[:, None]] == PAD).all()


def test_translation(drawn_task):
    task = drawn_task("translation")
    assert task.sizes == {"vocabulary": 32_000}
    widths = []
    for step in range(20):
        source, target = task.batch(step, 0)
        assert len(source) == len(target) == 80
        check_sentences(source, 32_000, 80)
        check_sentences(target, 32_000, 80)
        widths.append(target.shape[1])
    assert 22 < sum(widths) / 20 < 40  # padded to the longest of 80 similar ones
    assert max(widths) > 2 * min(widths)


def test_transformer(drawn_task):
    task = drawn_task("transformer")
    assert task.sizes == {"vocabulary": 32_000}
    for step in range(5):
        source, target = task.batch(step, 0)
        check_sentences(source, 32_000, 256)
        check_sentences(target, 32_000, 256)
        assert 20_000 < len(source) * max(source.shape[1], target.shape[1]) <= 25_000


def test_images(drawn_task):
    task = drawn_task("images")
    pixels, labels = task.batch(0, 0)
    assert (pixels.shape, pixels.dtype) == ((100, 3, 32, 32), torch.float32)
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02  # as whitening leaves them
    assert (labels.shape, labels.dtype) == ((100,), torch.int64)
    assert set(labels.tolist()) == set(range(10))
    assert task.sizes == {"channels": 3, "classes": 10}
    assert len(task.train[0]) >= task.recipe.model.start_images


def test_retrieval(drawn_task):
    task = drawn_task("retrieval")
    images, words, lengths = task.batch(0, 0)
    assert (images.shape, images.dtype) == ((128, 4096), torch.float32)
    assert images.min() == 0
    torch.testing.assert_close(images.norm(dim=1), torch.ones(128))
    assert words.dtype == torch.int64
    assert len(words) == 128
    assert words.shape[1] == lengths.max()
    assert 9 < lengths.double().mean() - 1 < 12  # without the end
    assert words.min() >= 0
    assert words.max() < task.sizes["vocabulary"] == 27_002


def test_reading(drawn_task):
    task = drawn_task("reading")
    context, context_lengths, question, question_lengths, answer = task.batch(0, 0)
    first, vocabulary = task.first_marker, task.sizes["vocabulary"]
    assert first == 50_002
    for ids, lengths, mean in ((context, context_lengths, 4 * 23.6), (question, question_lengths, 12.5)):
        assert ids.dtype == lengths.dtype == torch.int64
        assert ids.shape == (64, lengths.max())
        assert 0.85 * mean < lengths.double().mean() < 1.15 * mean
        within = ids[torch.arange(ids.shape[1]) < lengths[:, None]]
        assert within.min() >= 2
        assert within.max() < vocabulary
        assert 0.05 < (within >= first).double().mean() < 0.15
    assert (answer.shape, answer.dtype) == ((64,), torch.int64)
    assert first <= answer.min()
    assert answer.max() < vocabulary


def test_language(drawn_task):
    task = drawn_task("language")
    inputs, targets = task.batch(0, 0)
    assert inputs.shape == targets.shape == (64, 512)
    assert inputs.dtype == torch.int64
    assert inputs.min() >= 0
    assert inputs.max() < task.sizes["vocabulary"] == 256
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("name", tasks.TASKS)
def test_their_description_says_what_they_are(drawn_task, name):
    source = drawn_task(name).source
    assert source.name == f"inputs drawn at random in the shape of {source.details['in the shape of']} (seed 0)"
    assert is_drawn(source.content)
    assert source.stand_in
    assert not is_official(name, source.content)


@pytest.mark.parametrize("name", ["translation", "reading"])
def test_the_same_at_every_start(drawn_task, name):
    again = tasks.drawn(name, tasks.recipe(name, "paper"))
    assert again.source == drawn_task(name).source
    for one, other in zip(again.batch(3, 0), drawn_task(name).batch(3, 0), strict=True):
        assert torch.equal(one, other)


def test_settings_of_the_data_decide_them():
    recipe = changed(tasks.recipe("reading", "paper"), ["data.longest=30", "data.vocabulary=50", "train.batch=3000"])
    context, lengths, *_ = tasks.drawn("reading", recipe).batch(0, 0)
    assert context.shape == (3000, 30)
    assert lengths.max() == 30
    recipe = changed(tasks.recipe("translation", "paper"), ["data.max_length=9", "data.vocabulary=300"])
    source, _ = tasks.drawn("translation", recipe).batch(0, 0)
    check_sentences(source, 300, 9)


@pytest.mark.parametrize("size", [259, 300, 259 + 256**2 + 1000])
def test_subwords_that_no_text_has_decided(size, tmp_path):
    made = Subwords.unlearnt(size)
    assert made.size == size
    assert Subwords.loads(made.dumps().decode(), tmp_path).size == size
    text = "grün, 東 of all"
    assert made.decode(made.encode([text])[0]) == text


def test_words_are_of_the_published_number():
    lengths = drawn.pairs(tasks.recipe("transformer", "paper").data, 1).arrays["train.source.lengths"] - 1
    assert lengths.mean() == pytest.approx(28, rel=0.03)
