"""How many elements tell the RMS: the measurement, its prediction, and quality against k."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "rich", "matplotlib"):
    pytest.importorskip(_package)

from rmsnorm.cli import main  # noqa: E402
from rmsnorm_lab import experiments  # noqa: E402
from rmsnorm_lab.analysis import partial  # noqa: E402
from tiny_runs import TINY, corpus  # noqa: E402

RNG = np.random.default_rng(0)


def rows_of(x):
    sums = partial._Sums(x.shape[-1])
    for part in np.array_split(x, 3):
        sums.add(torch.from_numpy(part))
    return sums.norm("here")


def test_the_error_is_that_of_the_definition():
    x = RNG.normal(size=(50, 20)) * np.linspace(0.5, 2, 20)
    x[7] = 0  # no ratio
    found, x = rows_of(x), np.delete(x, 7, 0)
    assert (found.n, found.rows, [each.k for each in found.estimates]) == (20, 49, [1, 2, 4, 8, 16])
    kurtosis = (x**4).mean(1) / (x**2).mean(1) ** 2
    assert found.kurtosis == pytest.approx(kurtosis.mean(), rel=1e-12)
    for each in found.estimates:
        ratio = np.sqrt((x[:, : each.k] ** 2).mean(1) / (x**2).mean(1))
        assert each.mean == pytest.approx(ratio.mean(), rel=1e-12)
        assert each.error == pytest.approx(ratio.std() / ratio.mean(), rel=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_elements_in_random_order_have_the_predicted_error(power):
    x = RNG.normal(size=(4000, 256)) ** power * RNG.exponential(size=(4000, 1))
    for each in rows_of(x).estimates[5:]:  # the prediction is of first order
        assert each.error == pytest.approx(each.random, rel=0.06), each.k


def test_a_constant_factor_is_no_error_and_alike_neighbours_are():
    x = RNG.normal(size=(4000, 128))
    larger = x * np.where(np.arange(128) < 16, 3.0, 1.0)
    alike = np.repeat(x[:, ::8], 8, 1)  # eight equal elements count as one
    plain, larger, alike = (rows_of(each).estimates[4] for each in (x, larger, alike))
    assert (plain.k, larger.mean > 1.5) == (16, True)
    assert larger.error < 1.1 * plain.error
    assert alike.error > 2 * plain.error


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(task, norm) -> the folder of its only run, and its data; trained once."""
    made = {}

    def run(task, norm, *settings):
        if (task, norm) not in made:
            folder = tmp_path_factory.mktemp(task)
            words = ["train", task, "--norm", norm, "--out", str(folder / "runs"), "--threads", "1", "--steps", "4"]
            data = corpus(folder) if task == "language" else None
            words += ["--data", str(data)] if data else []
            threads = torch.get_num_threads()
            assert main([*words, "--set", *(TINY if data else settings), "train.evaluations=1"]) == 0
            torch.set_num_threads(threads)
            made[task, norm] = folder / "runs", data
        return made[task, norm]

    return run


def test_every_norm_of_a_network_is_measured_and_its_loss_stays(runs, monkeypatch):
    folder, data = runs("language", "prms")
    trained, losses = experiments.load(folder), []
    task = trained.on(data)
    monkeypatch.setattr(type(task), "loss", _kept(type(task).loss, losses))
    found = partial.measure(trained, data, batches=2)
    layers, width = trained.recipe.model.layers, trained.recipe.model.width
    assert [norm.n for norm in found] == [width] * (2 * layers + 1)
    assert len({norm.place for norm in found}) == len(found)
    batch = trained.recipe.train.batch * trained.recipe.model.context
    assert {norm.rows for norm in found} == {2 * batch}
    with torch.no_grad():
        for step, loss in enumerate(losses[:2]):
            torch.testing.assert_close(task.loss(trained.model, task.batch(step, 0)), loss, rtol=1e-4, atol=0)


def _kept(loss, losses):
    def call(self, model, batch):
        losses.append(loss(self, model, batch))
        return losses[-1]

    return call


def test_a_recurrence_and_an_image_network_have_a_row_for_each_statistic(runs):
    pytest.importorskip("sklearn")
    folder, _ = runs("retrieval", "rms", "model.width=8", "model.word_width=6", "train.batch=6", "data.fold=20")
    found = partial.measure(experiments.load(folder), batches=1)
    of_gru = [(side, n) for side in ("ih", "hh") for n in (16, 8)]  # the gates r and z, and the proposal
    assert [(norm.place, norm.n) for norm in found] == [(f"gru.directions.0 gain_{side}_l0", n) for side, n in of_gru]
    folder, _ = runs("images", "layer", "model.widths=4,8", "train.batch=10")
    found = partial.measure(experiments.load(folder), batches=1)
    first = found[0]
    assert (first.n, first.rows) == (24 * 24, 10 * 4)  # positions; one row for each image and channel


def test_the_command_shows_both_and_draws(runs, tmp_path, capsys):
    folder, data = runs("language", "prms")
    sweep, plot = str(tmp_path / "sweep"), tmp_path / "k.svg"
    for width in (8, 16):
        words = ["compare", "language", "--data", str(data), "--sweep-p", "0.25", "1", "--seeds", "2", "--out", sweep]
        settings = [each for each in TINY if "width" not in each]
        assert main([*words, "--threads", "1", "--steps", "4", "--set", *settings, f"model.width={width}"]) == 0
    capsys.readouterr()
    words = ["partial", str(folder), "--data", str(data), "--quality", sweep]
    assert main([*words, "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    places = [norm.place for norm in partial.measure(experiments.load(folder), data, batches=1)]
    assert all(text in shown for text in (*places, "width 8", "width 16"))
    assert plot.read_text().startswith("<?xml")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {width: sorted(map(int, of)) for width, of in found["quality"][0]["widths"].items()} == {
        "8": [2, 8],
        "16": [4, 16],
    }
    assert all(row["runs"] == 2 for of in found["quality"][0]["widths"].values() for row in of.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN or --quality must be given; got neither"),
        (["{run}", "--batches", "0"], "--batches must be 1 to 1000; got 0"),
        (["{run}", "{run}", "--data", "{data}"], "--data is of one RUN; got 2"),
        (["{run}"], "Pass these data"),
        (["{other}", "--data", "{data}"], "RUN must be trained with layer, rms, prms"),
        (["--quality", "{run}/missing"], "RUNS must be a folder of records"),
        (["--quality", "{other}"], "--quality needs runs with pRMSNorm; there are none"),
        (["{run}", "--data", "{data}", "--plot", "k.txt"], "--plot must name a file that ends in"),
    ],
)
def test_errors_say_what_to_do(runs, words, message, capsys):
    (run, data), (other, _) = runs("language", "prms"), runs("language", "batch")
    capsys.readouterr()
    assert main(["partial", *(word.format(run=run, other=other, data=data) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_differ_otherwise_are_not_mixed(runs, tmp_path, capsys):
    _, data = runs("language", "prms")
    out = str(tmp_path / "sweep")
    for steps in ("4", "5"):
        words = ["compare", "language", "--data", str(data), "--sweep-p", "0.5", "--seeds", "1", "--out", out]
        assert main([*words, "--threads", "1", "--steps", steps, "--set", *TINY]) == 0
    capsys.readouterr()
    assert main(["partial", "--quality", out]) == 2
    assert "differ in p, seed and width alone" in capsys.readouterr().err
