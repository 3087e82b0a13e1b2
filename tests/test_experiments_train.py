"""The model, one seeded run, and the arithmetic of the timing."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from rmsnorm.experiments import recipes, timing  # noqa: E402
from rmsnorm.experiments.models.transformer import Transformer, rotary_tables, rotate  # noqa: E402
from rmsnorm.experiments.normalizers import norm_maker  # noqa: E402
from rmsnorm.experiments.recipes import KERNELS, NORMS, ModelConfig, TimingConfig  # noqa: E402
from rmsnorm.experiments.tasks import language  # noqa: E402
from rmsnorm.experiments.train import evaluation_steps, learning_rate_at, train  # noqa: E402

LOSSES = Path(__file__).parent / "assets" / "language_losses.json"
TINY = ModelConfig(width=64, layers=1, heads=4, feed_forward=96, context=32)  # from 4 elements on, pRMSNorm is stable


def sums(lines=2000):
    """'17+25=42' and so on: text with something to learn, the same on every Python."""
    draw = random.Random(0)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(lines)]
    return "".join(f"{a}+{b}={a + b}\n" for a, b in pairs)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    path.write_text(sums())
    return language.load(path, context=32, batch=16)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from more, and lose much where tests run beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(steps=60, **changes):
    settings = recipes.language(steps=steps, **changes)
    return replace(
        settings,
        model=replace(TINY, qk_norm=settings.model.qk_norm),
        train=replace(settings.train, held_out_windows=32, evaluations=3),
        timing=TimingConfig(warmup_rounds=1, rounds=5),
    )


def run(norm, text, seed=0, steps=60, **changes):
    return train(tiny(steps, **changes), norm, seed, text, lambda done, bits: None)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_model_is_causal(norm, qk_norm):
    torch.manual_seed(1)
    model = Transformer(11, replace(TINY, qk_norm=qk_norm), norm_maker(norm, "rmsnorm"))
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
        model = Transformer(11, TINY, norm_maker(norm, "rmsnorm"))
        starts.append({name: p for name, p in model.named_parameters() if p.ndim > 1})
    for start in starts[1:]:
        assert start.keys() == starts[0].keys()
        assert all(torch.equal(start[name], starts[0][name]) for name in start)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("width", "k"), [(128, 8), (32, 2), (30, 2), (16, 1)])
def test_normalisers_against_their_definitions(kernels, width, k):
    x = torch.randn(5, width, dtype=torch.float64).float() + 0.5
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = {
        "none": wide,
        "layer": centred / (centred.square().mean(-1, keepdim=True) + recipes.EPS).sqrt(),
        "rms": wide / (wide.square().mean(-1, keepdim=True) + recipes.EPS).sqrt(),
        "prms": wide / (wide[:, :k].square().mean(-1, keepdim=True) + recipes.EPS).sqrt(),
    }
    for norm in NORMS:
        got = norm_maker(norm, kernels)(width)(x)
        torch.testing.assert_close(got.double(), expected[norm], rtol=1e-5, atol=1e-5)


def test_a_seed_decides_the_run_to_the_last_bit(text):
    one, two = run("rms", text, steps=12), run("rms", text, steps=12)
    assert one.curve.held_out_bits == two.curve.held_out_bits
    assert one.curve.train_bits == two.curve.train_bits
    assert run("rms", text, seed=1, steps=12).curve.held_out_bits != one.curve.held_out_bits


@pytest.mark.parametrize("norm", NORMS)
def test_short_runs_come_to_the_recorded_losses(text, norm):
    """The band, 0.02 bits, is some ten times what another processor or number of threads changes."""
    recorded = json.loads(LOSSES.read_text())[norm]
    outcome = run(norm, text)
    assert outcome.status == "finished"
    assert outcome.curve.step == recorded["step"]
    assert outcome.curve.held_out_bits == pytest.approx(recorded["held_out_bits"], abs=0.02)


def test_the_start_is_guessing_and_training_beats_the_frequencies(text):
    outcome = run("layer", text)
    assert outcome.curve.held_out_bits[0] == pytest.approx(math.log2(text.vocabulary), abs=0.1)
    assert outcome.held_out_bits < text.unigram_bits - 0.3


def test_kernels_and_precision_change_a_run_little(text):
    outcomes = [
        run("rms", text, steps=20, **changes) for changes in ({}, {"kernels": "torch"}, {"precision": "bf16-mixed"})
    ]
    bits = [outcome.held_out_bits for outcome in outcomes]
    assert bits[1] == pytest.approx(bits[0], abs=0.01)
    assert bits[2] == pytest.approx(bits[0], abs=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(text):
    settings = tiny(30)
    settings = replace(settings, train=replace(settings.train, learning_rate=1e30))
    told = []
    outcome = train(settings, "none", 0, text, lambda done, bits: told.append(bits))
    assert outcome.status == "diverged"
    assert outcome.held_out_bits is None
    assert 1 < outcome.diverged_at < 30
    assert len(told) == outcome.diverged_at - 1
    json.dumps(outcome.as_record(), allow_nan=False)


def test_a_finite_loss_far_above_guessing_is_diverged_too(text):
    settings = tiny(10)
    settings = replace(settings, train=replace(settings.train, learning_rate=3.0, final_learning_rate=3.0))
    outcome = train(settings, "rms", 0, text, lambda done, bits: None)
    assert outcome.curve.held_out_bits[-1] > 1.25 * math.log2(text.vocabulary)  # the premise
    assert (outcome.status, outcome.diverged_at, outcome.held_out_bits) == ("diverged", 10, None)


def test_the_learning_rate_warms_up_and_decays():
    config = recipes.TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("steps", "expected"), [(1, [0, 1]), (3, [0, 1, 2, 3]), (280, [0, 70, 140, 210, 280])])
def test_evaluations_are_spread_evenly(steps, expected):
    assert evaluation_steps(recipes.TrainConfig(steps=steps, evaluations=4)) == expected


def test_pairing_is_immune_to_a_machine_that_slows_down():
    """LayerNorm 10 ms, RMSNorm 9 ms, a machine up to five times slower: unpaired medians are off, paired ones exact."""
    slowness = [1 + 4 * (i % 7) / 6 for i in range(50)]
    layer = [10 * s for s in slowness]
    rms = [9 * s for s in slowness]
    ratio = timing.ratio_to(layer, rms)
    assert ratio.median == pytest.approx(0.9)
    assert ratio.interval == pytest.approx((0.9, 0.9))
    assert timing.share_beyond(rms, layer).median == pytest.approx(0.1)


def test_spread_of_known_numbers():
    spread = timing.spread([*range(100, 0, -1)])
    assert spread.median == 50.5
    assert spread.quartiles == (25.75, 75.25)
    assert spread.interval == (41, 61)  # the 41st and the 61st of 100: ±1.96·√100/2 about 50
    assert timing.spread([7.0]) == timing.Spread(7.0, (7.0, 7.0), (7.0, 7.0))


def test_the_interval_covers_the_median_in_95_of_100_cases():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = timing.spread([draw.expovariate(1) for _ in range(100)]).interval
        hits += low <= math.log(2) <= high
    assert 0.94 < hits / 2000 < 0.98


def test_timing_takes_each_step_on_the_first_weights(text, monkeypatch):
    seen = []

    class Spy(timing.Learner):
        def __init__(self, settings, norm, vocabulary, seed):
            super().__init__(settings, norm, vocabulary, seed)
            self.norm, self.first = norm, [p.detach().clone() for p in self.model.parameters()]

        def step(self, inputs, targets, learning_rate):
            loss = super().step(inputs, targets, learning_rate)
            assert all(torch.equal(a, b) for a, b in zip(self.first, self.model.parameters(), strict=True))
            seen.append((self.norm, inputs))
            return loss

    monkeypatch.setattr(timing, "Learner", Spy)
    told = []
    milliseconds = timing.measure(tiny(), text, lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 6) for i in range(6)]
    assert {norm: len(times) for norm, times in milliseconds.items()} == dict.fromkeys(NORMS, 5)  # no warm-up round
    rounds = [seen[i : i + 4] for i in range(0, 24, 4)]
    assert all({norm for norm, _ in each} == set(NORMS) for each in rounds)
    assert all(torch.equal(inputs, each[0][1]) for each in rounds for _, inputs in each)  # the same batch
    assert len({tuple(norm for norm, _ in each) for each in rounds}) > 2  # in changing order
