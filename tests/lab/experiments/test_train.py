"""The model, one seeded run, and the arithmetic of the timing."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from rmsnorm_lab.errors import UserError  # noqa: E402
from rmsnorm_lab.experiments import norms, step_times  # noqa: E402
from rmsnorm_lab.experiments.learner import Learner, Setup, schedule_at  # noqa: E402
from rmsnorm_lab.experiments.models.decoder_only import Transformer, rotary_tables, rotate  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import EPS, KERNELS, TimingConfig, TrainConfig  # noqa: E402
from rmsnorm_lab.experiments.recipes.language import DataConfig, ModelConfig, small  # noqa: E402
from rmsnorm_lab.experiments.run import Curve, Listener, Run, _Progress, evaluation_steps  # noqa: E402
from rmsnorm_lab.experiments.tasks.language import load  # noqa: E402
from rmsnorm_lab.plain import to_plain  # noqa: E402

NORMS = norms.of_task("language")
DEFAULT_NORMS = norms.by_default("language")
LOSSES = Path(__file__).parents[2] / "assets" / "language_losses.json"
TINY = ModelConfig(width=64, layers=1, heads=4, feed_forward=96, context=32)  # from 4 elements on, pRMSNorm is stable


def sums(lines=2000):
    """'17+25=42' and so on: text with something to learn, the same on every Python."""
    draw = random.Random(0)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(lines)]
    return "".join(f"{a}+{b}={a + b}\n" for a, b in pairs)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    path.write_text(sums())
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from more, and lose much where tests run beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(path, steps=60, **train):
    recipe = small()
    return load(
        path,
        replace(
            recipe,
            model=TINY,
            data=DataConfig(evaluation_windows=32),
            train=replace(recipe.train, steps=steps, evaluations=3, **train),
            timing=TimingConfig(warmup_rounds=1, rounds=5),
            learning_rates=(),
        ),
    )


def run(norm, path, seed=0, steps=60, setup=Setup(), **changes):  # noqa: B008  # frozen
    return Run(tiny(path, steps, **changes), setup, norm, seed).finish()


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "batch"])  # whose statistics see the future
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_model_is_causal(norm, qk_norm):
    torch.manual_seed(1)
    model = Transformer(11, replace(TINY, qk_norm=qk_norm), norms.made(norm, "rmsnorm"))
    torch.nn.init.normal_(model.logits.weight)
    ids = torch.randint(11, (2, 32))
    later = ids.clone()
    later[:, 20] = (later[:, 20] + 1) % 11
    before, after = model(ids), model(later)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-5)
    assert (before[:, 20:] - after[:, 20:]).abs().amin(dim=(0, 2)).max() > 1e-4


def test_rotary_scores_depend_on_the_distance_only():
    cos, sin = rotary_tables(32, 16)
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = (rotate(x.expand(1, 1, 32, 16), cos, sin)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (-5, 0, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores.diagonal(0)[0], scores.diagonal(9)[0])


def test_all_normalisers_start_from_the_same_weights():
    starts = []
    for norm in NORMS:
        torch.manual_seed(3)
        model = Transformer(11, TINY, norms.made(norm, "rmsnorm"))
        starts.append({name: p for name, p in model.named_parameters() if p.ndim > 1})
    for start in starts[1:]:
        assert start.keys() == starts[0].keys()
        assert all(torch.equal(start[name], starts[0][name]) for name in start)


def oracle(norm, x, k, weight, bias, alpha):
    """Every normaliser by its definition, in float64."""
    centred = x - x.mean(-1, keepdim=True)
    parts = x.unflatten(-1, ({128: 8, 32: 8, 30: 2, 16: 4}[x.shape[-1]], -1))
    groups = parts - parts.mean(-1, keepdim=True)
    columns = x - x.mean((0, 1))
    root = lambda squares: (squares + EPS).sqrt()  # noqa: E731
    return {
        "none": lambda: x,
        "weight": lambda: x,
        "layer": lambda: centred / root(centred.square().mean(-1, keepdim=True)) * weight + bias,
        "rms": lambda: x / root(x.square().mean(-1, keepdim=True)) * weight,
        "prms": lambda: x / root(x[..., :k].square().mean(-1, keepdim=True)) * weight,
        "l2": lambda: x / root(x.square().sum(-1, keepdim=True)) * weight,
        "group": lambda: (groups / root(groups.square().mean(-1, keepdim=True))).flatten(-2) * weight + bias,
        "batch": lambda: columns / root(columns.square().mean((0, 1))) * weight + bias,
        "dyt": lambda: torch.tanh(alpha * x) * weight + bias,
    }[norm]()


@pytest.mark.parametrize("norm", [*NORMS, "weight"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("width", "k"), [(128, 8), (32, 2), (30, 2), (16, 1)])
def test_normalisers_against_their_definitions(norm, kernels, width, k):
    x = torch.randn(5, 3, width) + 0.5
    x[0, 0] *= 1e-3  # where eps shows
    module = norms.made(norm, kernels).layer(width)
    drawn = {name: torch.randn(width) for name in ("weight", "bias")}
    for name, parameter in module.named_parameters():
        parameter.data = torch.tensor([0.7]) if name == "alpha" else drawn[name]
    assert ("bias" in dict(module.named_parameters())) == (norm in ("layer", "batch", "group", "dyt"))
    expected = oracle(norm, x.double(), k, drawn["weight"].double(), drawn["bias"].double(), 0.7)
    torch.testing.assert_close(module(x).double(), expected, rtol=2e-5, atol=2e-5)
    assert module(x.bfloat16()).dtype == torch.bfloat16


def test_batch_norm_keeps_running_statistics_alike_in_operators_and_kernels():
    made = [norms.made("batch", kernels).layer(8) for kernels in ("rmsnorm", "unfused")]
    for _ in range(3):
        x = 2 * torch.randn(5, 4, 8) + 1
        torch.testing.assert_close(made[0](x), made[1](x))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(made[0], name), getattr(made[1], name))
    x = torch.randn(1, 1, 8)
    torch.testing.assert_close(made[0].eval()(x), made[1].eval()(x))


@pytest.mark.parametrize("kernels", KERNELS)
def test_batch_norm_of_one_example_is_refused_in_training_alone(kernels):
    module = norms.made("batch", kernels).layer(8)
    with pytest.raises(UserError, match="BatchNorm must see 2 examples or more at once in training; got 1"):
        module(torch.randn(1, 8))
    assert module.eval()(torch.randn(1, 8)).shape == (1, 8)


def test_weight_norm_keeps_the_weights_and_frees_their_scale():
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Conv1d(4, 3, 1))
    drawn = [layer.weight.detach().clone() for layer in model]
    for layer, weight in zip(model, drawn, strict=True):
        norms.made("weight", "rmsnorm").parametrise(layer)
        assert torch.nn.utils.parametrize.is_parametrized(layer)
        torch.testing.assert_close(layer.weight, weight)
    before = model[0].weight.detach().clone()
    model[0].parametrizations.weight.original1.data *= 3  # the direction's length counts for nothing
    torch.testing.assert_close(model[0].weight, before)


def test_a_seed_decides_the_run_to_the_last_bit(path):
    one, two = run("rms", path, steps=12), run("rms", path, steps=12)
    assert one.curve.valid == two.curve.valid
    assert one.curve.train_loss == two.curve.train_loss
    assert one.quality == two.quality
    assert run("rms", path, seed=1, steps=12).curve.valid != one.curve.valid


@pytest.mark.parametrize("norm", DEFAULT_NORMS)
def test_short_runs_come_to_the_recorded_losses(path, norm):
    """The band, 0.02 bits, is some ten times what another processor or number of threads changes."""
    recorded = json.loads(LOSSES.read_text())[norm]
    outcome = run(norm, path)
    assert outcome.status == "finished"
    assert outcome.curve.step == recorded["step"]
    assert outcome.curve.valid["bits"] == pytest.approx(recorded["valid_bits"], abs=0.02)
    assert outcome.quality["bits"] == pytest.approx(recorded["test_bits"], abs=0.02)


@pytest.mark.parametrize("norm", sorted(set(NORMS) - set(DEFAULT_NORMS)))
def test_the_other_normalisers_learn_too(path, norm):
    outcome = run(norm, path, steps=30)
    assert outcome.status == "finished"
    assert outcome.curve.valid["bits"][-1] < outcome.curve.valid["bits"][0] - 0.1


def test_the_start_is_guessing_and_training_beats_the_frequencies(path):
    references = tiny(path).references
    outcome = run("layer", path)
    assert outcome.curve.valid["bits"][0] == pytest.approx(references["guessing"], abs=0.1)
    assert outcome.quality["bits"] < references["character frequencies alone"] - 0.3


def test_kernels_and_precision_change_a_run_little(path):
    setups = [Setup(), Setup(kernels="unfused"), Setup(kernels="best"), Setup(precision="bf16-mixed")]
    bits = [run("layer", path, steps=20, setup=setup).quality["bits"] for setup in setups]
    assert bits[1] == pytest.approx(bits[0], abs=0.01)
    assert bits[2] == pytest.approx(bits[0], abs=0.01)
    assert bits[3] == pytest.approx(bits[0], abs=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(path):
    told = []

    class Ears(Listener):
        def step(self, done, loss, learning_rate):
            told.append(loss)

    outcome = Run(tiny(path, 30, learning_rate=1e30), Setup(), "none", 0).finish(Ears())
    assert outcome.status == "diverged"
    assert outcome.quality is None
    assert 1 < outcome.diverged_at <= len(told) + 1 < 30
    assert all(loss > 1.25 * told[0] for loss in told[outcome.diverged_at - 1 :])
    assert told[outcome.diverged_at - 2] <= 1.25 * told[0]
    json.dumps(to_plain(outcome), allow_nan=False)


def test_a_finite_loss_far_above_the_first_is_diverged_too(path):
    outcome = run("rms", path, steps=10, learning_rate=3.0, final_share=1.0)
    assert outcome.curve.train_loss[-1] > 1.25 * outcome.curve.valid["loss"][0]  # the premise
    assert (outcome.status, outcome.quality) == ("diverged", None)
    assert outcome.diverged_at == 2  # where it left for good, not where the run ended


def test_a_run_that_comes_back_has_not_diverged_where_it_left():
    progress = _Progress(0, 0.0, math.nan, [], Curve([], [], [], {}))
    for loss in (4.0, 9.0, 3.0, 5.1, math.nan, 6.0):  # the bar is at 5
        progress.add(loss, 0.5)
    assert (progress.first, progress.done, progress.seconds, progress.astray) == (4.0, 6, 3.0, 4)


def config(**changes):
    return TrainConfig(steps=100, batch=1, learning_rate=9.0, **changes)


def test_the_cosine_warms_up_and_decays():
    schedule = config(schedule="cosine", warmup_steps=10, final_share=0.1)
    rates = [schedule_at(step, schedule, 1.0)[0] for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_inverse_square_root_peaks_where_the_warm_up_ends():
    schedule = config(schedule="inverse_sqrt", warmup_steps=16)
    rates = [schedule_at(step, schedule, 1.0)[0] for step in range(100)]
    assert (rates[0], rates[7], rates[15]) == (1 / 16, 0.5, 1.0)
    assert rates[63] == pytest.approx(0.5)  # √(16/64)


def test_the_second_half_is_linear_to_zero_with_its_own_beta():
    """Constant for 100 of 200 epochs, then linear to 0, and β₁ from 0.9 to 0.5: the paper's images."""
    schedule = config(schedule="linear_second_half", late_beta1=0.5)
    at = [schedule_at(step, schedule, 1.0) for step in (0, 49, 50, 74, 99)]
    assert at[:2] == [(1.0, 0.9), (1.0, 0.9)]
    assert at[2] == (pytest.approx(0.98), 0.5)
    assert at[3] == (pytest.approx(0.5), 0.5)
    assert at[4] == (pytest.approx(0.0), 0.5)


def test_a_constant_rate_is_the_peak():
    assert schedule_at(99, config(), 0.25) == (0.25, 0.9)


def gradients_after_clipping(path, clip):
    learner = Learner(tiny(path, clip=clip, clip_norm=0.1), Setup(), "rms", 0)
    seen = {}
    step = learner.optimizer.step
    learner.optimizer.step = lambda: (
        seen.update((name, p.grad.clone()) for name, p in learner.model.module.named_parameters()),
        step(),
    )
    learner.step(learner.task.batch(0, 0), 1e-3, 0.9)
    return seen


def test_clipping_is_none_of_all_together_or_of_each_on_its_own(path):
    raw, together, each = (gradients_after_clipping(path, clip) for clip in ("none", "global", "per_tensor"))
    norm = torch.stack([gradient.norm() for gradient in raw.values()]).norm()
    assert norm > 0.2
    assert min(gradient.norm() for gradient in raw.values()) < 0.1
    for name, gradient in raw.items():
        torch.testing.assert_close(together[name], gradient * 0.1 / (norm + 1e-6))
        torch.testing.assert_close(each[name], gradient * min(0.1 / (gradient.norm() + 1e-6), 1))


@pytest.mark.parametrize(("steps", "expected"), [(1, [0, 1]), (3, [0, 1, 2, 3]), (280, [0, 70, 140, 210, 280])])
def test_evaluations_are_spread_evenly(steps, expected):
    assert evaluation_steps(replace(config(evaluations=4), steps=steps)) == expected


def test_timing_takes_each_step_on_the_first_weights(path, monkeypatch):
    seen = []

    class Spy(step_times.Learner):
        def __init__(self, task, setup, norm, seed):
            super().__init__(task, setup, norm, seed)
            self.norm, self.first = norm, [p.detach().clone() for p in self.model.parameters()]

        def step(self, batch, learning_rate, beta1):
            loss = super().step(batch, learning_rate, beta1)
            assert all(torch.equal(a, b) for a, b in zip(self.first, self.model.parameters(), strict=True))
            seen.append((self.norm, batch[0]))
            return loss

    monkeypatch.setattr(step_times, "Learner", Spy)
    told = []
    milliseconds = step_times.measure(tiny(path), Setup(), DEFAULT_NORMS, lambda *counts: told.append(counts))
    assert told == [(i + 1, 6) for i in range(6)]
    assert {norm: len(times) for norm, times in milliseconds.items()} == dict.fromkeys(
        DEFAULT_NORMS, 5
    )  # no warm-up round
    rounds = [seen[i : i + 4] for i in range(0, 24, 4)]
    assert all({norm for norm, _ in each} == set(DEFAULT_NORMS) for each in rounds)
    assert all(torch.equal(inputs, each[0][1]) for each in rounds for _, inputs in each)  # the same batch
    assert len({tuple(norm for norm, _ in each) for each in rounds}) > 2  # in changing order
