"""The loops of GRU and LSTM against torch's own (no norm) and the tests' plain loop in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import plain_rnn  # noqa: E402
import rmsnorm.torch  # noqa: E402
from rmsnorm_lab.experiments.models import recurrent  # noqa: E402
from rmsnorm_lab.experiments.models.recurrent import still_running  # noqa: E402
from rmsnorm_lab.experiments.norms import made  # noqa: E402
from rmsnorm_lab.experiments.norms.batch import StepBatchNorm  # noqa: E402

T, B, WIDTH, H = 7, 5, 6, 9
GRU_NORMS = ("none", "l2", "weight", "layer", "rms", "prms")
LSTM_NORMS = (*GRU_NORMS, "batch")
KERNELS = ("rmsnorm", "unfused", "best")
EPS = 1e-5
UNITS = 300 * 2.0**-24
"""Sums of up to 36 float32 terms through T steps of contractions; what the orders of summation can differ by."""


def randomised(module, seed=0):
    """Random parameters everywhere: gains around 1 and biases that are not 0, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "gain" in name or "original0" in name else 0.5 * noise)
    return module


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((T, B, WIDTH), (1, B, H), (1, B, H))]


def l2(v):
    return v / (v.square().sum(-1, keepdim=True) + EPS).sqrt()


def over_batch(v):
    centred = v - v.mean(0)
    return centred / (centred.square().mean(0) + EPS).sqrt()


PLAIN = {"none": None, "weight": None, "prms": "rms", "l2": l2, "batch": over_batch}


def plain_outputs(layer, norm, x, h_1BH, m_1BH=None):
    """Outputs (T, B, H) of the plain loop in float64, with the layer's parameters and (T, B, I) inputs."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *layer.gain_sizes())
    own = {name: layer.parameter(name).detach().double() for name in names}
    cell, p = "GRU" if m_1BH is None else "LSTM", 1 / 16 if norm == "prms" else 1.0
    loop = plain_rnn.Plain(cell, own, PLAIN.get(norm, norm), p, EPS, "paper")
    return torch.stack(loop.run(x.double(), *(None if s is None else s[0].double() for s in (h_1BH, m_1BH)))[0])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", GRU_NORMS)
def test_gru_is_the_papers(norm, kernels):
    layer = randomised(recurrent.LoopGRU(WIDTH, H, made(norm, kernels)))
    x, h, _ = inputs()
    outputs, last = layer(x, h)
    torch.testing.assert_close(outputs.double(), plain_outputs(layer, norm, x, h), rtol=0, atol=UNITS)
    assert torch.equal(last[0], outputs[-1])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", GRU_NORMS)
def test_lstm_is_the_papers(norm, kernels):
    layer = randomised(recurrent.LoopLSTM(WIDTH, H, made(norm, kernels)))
    x, h, m = inputs()
    outputs, (last, _) = layer(x, (h, m))
    torch.testing.assert_close(outputs.double(), plain_outputs(layer, norm, x, h, m), rtol=0, atol=UNITS)
    assert torch.equal(last[0], outputs[-1])


@pytest.mark.parametrize(("ours", "theirs"), [("LoopGRU", "GRU"), ("LoopLSTM", "LSTM")])
def test_without_a_norm_they_are_torchs_with_its_names_and_gradients(ours, theirs):
    layer, peer = (
        randomised(getattr(recurrent, ours)(WIDTH, H, made("none", "unfused"))),
        getattr(torch.nn, theirs)(WIDTH, H),
    )
    peer.load_state_dict(layer.state_dict())
    x, h, m = inputs()
    state = h if ours == "LoopGRU" else (h, m)
    found, expected = layer(x, state)[0], peer(x, state)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=UNITS)
    weight = torch.randn(found.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm", GRU_NORMS)
def test_a_cell_is_one_step_of_its_layer(norm):
    x, h, _ = inputs()
    cell, layer = (
        randomised(recurrent.LoopGRUCell(WIDTH, H, made(norm, "rmsnorm"))),
        recurrent.LoopGRU(WIDTH, H, made(norm, "rmsnorm")),
    )
    state = {name.replace("_ih.", "_ih_l0.").replace("_hh.", "_hh_l0."): v for name, v in cell.state_dict().items()}
    layer.load_state_dict({name if "_l0" in name else f"{name}_l0": v for name, v in state.items()})
    torch.testing.assert_close(cell(x[0], h[0]), layer(x[:1], h)[0][0])


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        *((recurrent.LoopGRU, norm) for norm in GRU_NORMS),
        *((recurrent.LoopLSTM, norm) for norm in LSTM_NORMS),
    ],
)
def test_padding_changes_nothing(make, norm):
    lengths = torch.tensor([3, 7, 1, 5, 6])
    ragged = randomised(recurrent.Ragged(lambda: make(WIDTH, H, made(norm, "rmsnorm")), True, learned_start=True))
    x, *_ = inputs()
    outputs, last = ragged(x, lengths)
    noisy = torch.cat((x, torch.zeros(2, B, WIDTH)))
    for b, length in enumerate(lengths):
        noisy[length:, b] = 1e3
        assert not outputs[length:, b].any()
        assert outputs[:length, b].any(dim=-1).all()
    again, last_again = ragged(noisy, lengths)
    torch.testing.assert_close(again[:T], outputs, rtol=0, atol=0)
    torch.testing.assert_close(last_again, last, rtol=0, atol=0)


@pytest.mark.parametrize("make", [recurrent.LoopGRU, recurrent.LoopLSTM])
def test_each_sequence_is_read_alone_and_backwards_from_its_own_end(make):
    lengths = torch.tensor([3, 7, 1, 5, 6])
    ragged = randomised(recurrent.Ragged(lambda: make(WIDTH, H, made("rms", "rmsnorm")), True, learned_start=True))
    x, *_ = inputs()
    outputs, last = ragged(x, lengths)
    for b, length in enumerate(lengths):
        alone = x[:length, b : b + 1]
        starts = [start[None, None] for start in ragged.start]
        states = starts if make is recurrent.LoopGRU else [(start, torch.zeros_like(start)) for start in starts]
        forward = ragged.directions[0](alone, states[0])[0]
        backward = ragged.directions[1](alone.flip(0), states[1])[0]
        expected = torch.cat((forward, backward.flip(0)), dim=-1)[:, 0]
        torch.testing.assert_close(outputs[:length, b], expected, rtol=0, atol=UNITS)
        torch.testing.assert_close(last[b], torch.cat((forward[-1], backward[-1]), -1)[0], rtol=0, atol=UNITS)


@pytest.mark.parametrize("unfused", [False, True])
def test_batch_norm_takes_the_statistics_of_each_step_over_what_still_runs(unfused):
    rng = np.random.default_rng(3)
    x, gain, lengths = rng.normal(2, 3, (T, B, WIDTH)), rng.normal(1, 0.3, WIDTH), np.array([3, 7, 1, 5, 6])
    mask = np.arange(T)[:, None] < lengths
    rows = still_running(torch.tensor(lengths), T + 1)
    assert rows[0] is None
    assert rows[T].numel() == 0
    norm = StepBatchNorm(WIDTH, unfused, max_steps=T, momentum=1.0)

    def normed_at(t):
        return norm(torch.tensor(x[t]).float(), torch.tensor(gain).float(), rows[t], t).numpy()

    for t in range(T - 1):  # at the last step one example runs alone
        found, own = normed_at(t), x[t, mask[t]]
        expected = (own - own.mean(0)) / np.sqrt(own.var(0) + EPS) * gain
        np.testing.assert_allclose(found[mask[t]], expected, rtol=0, atol=1e-5)
        assert not found[~mask[t]].any()
        np.testing.assert_allclose(norm.running_mean[t].numpy(), own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(norm.running_var[t].numpy(), own.var(0, ddof=1), rtol=1e-5)
    alone = x[T - 1, mask[T - 1]] / np.sqrt(1 + EPS) * gain  # by the running statistics: 0 and 1 as yet
    np.testing.assert_allclose(normed_at(T - 1)[mask[T - 1]], alone, rtol=1e-5)

    norm.eval()
    own = x[2, mask[2]]
    expected = (own - own.mean(0)) / np.sqrt(own.var(0, ddof=1) + EPS) * gain
    np.testing.assert_allclose(normed_at(2)[mask[2]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unfused", [False, True])
def test_batch_norm_of_bfloat16_keeps_its_statistics_in_float32(unfused):
    """What autocast hands it: the result is of the input's dtype or wider, and as good as that dtype allows."""
    x, gain = torch.randn(9, WIDTH) + 2, torch.rand(WIDTH)
    for training in (True, False):
        norms = [StepBatchNorm(WIDTH, unfused, momentum=0.5).train(training) for _ in range(2)]
        wide = norms[0](x.bfloat16().float(), gain, None, 0)
        found = norms[1](x.bfloat16(), gain, None, 0)
        torch.testing.assert_close(found.float(), wide, rtol=2**-7, atol=2**-7)
        assert norms[1].running_mean.dtype == torch.float32
        torch.testing.assert_close(norms[1].running_mean, norms[0].running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norms[1].running_var, norms[0].running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_batch_normalised_lstm_is_the_papers(kernels):
    """One step, in which all examples run: both sides and the cell are normalised over the batch."""
    layer = randomised(recurrent.LoopLSTM(WIDTH, H, made("batch", kernels)))
    x, h, m = inputs()
    found = layer(x[:1], (h, m), torch.ones(B, dtype=torch.long))[0]
    torch.testing.assert_close(found.double(), plain_outputs(layer, "batch", x[:1], h, m), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "weight"])
def test_weights_are_drawn_gate_by_gate(norm):
    for make in (recurrent.LoopGRU, recurrent.LoopGRUCell, recurrent.LoopLSTM):
        layer = make(WIDTH, H, made(norm, "rmsnorm"))
        recurrent.initialise(layer, "weight_hh", torch.nn.init.orthogonal_)
        for block in layer.parameter("weight_hh").detach().split(H):
            torch.testing.assert_close(block @ block.T, torch.eye(H), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "loop"), [(recurrent.gru_layer, recurrent.LoopGRU), (recurrent.lstm_layer, recurrent.LoopLSTM)]
)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", GRU_NORMS)
def test_a_layer_is_the_loop_with_any_kernels(make, loop, norm, kernels):
    """The same draws, names, outputs and gradients, on ragged sequences in both directions with a learned start."""
    networks = []
    for each in (make, loop):
        torch.manual_seed(5)
        networks.append(recurrent.Ragged(lambda each=each: each(WIDTH, H, made(norm, kernels, 0.25)), True, True))
    first, second = networks
    for (name, one), (other_name, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    x, lengths = inputs()[0], torch.tensor([3, 7, 1, 5, 6])
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn((T, B, 2 * H), generator=generator)
    for network in networks:
        (randomised(network)(x, lengths)[0] * weight).sum().backward()
    torch.testing.assert_close(first(x, lengths), second(x, lengths), rtol=0, atol=UNITS)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


def test_which_layers_are_native():
    native = {
        k: [n for n in GRU_NORMS if isinstance(recurrent.gru_layer(2, 3, made(n, k)), rmsnorm.torch.GRU)]
        for k in KERNELS
    }
    assert native == {
        "rmsnorm": ["none", "layer", "rms", "prms"],
        "unfused": [],
        "best": ["none", "rms", "prms"],
    }


def test_a_norm_that_a_recurrence_lacks_is_refused():
    with pytest.raises(ValueError, match="norm of a LoopGRU must be of one vector; got Batch"):
        recurrent.LoopGRU(WIDTH, H, made("batch", "rmsnorm"))
