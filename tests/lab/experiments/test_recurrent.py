"""The loops of GRU and LSTM against torch's own (no norm) and against a plain NumPy loop over the float64 oracle."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rmsnorm.torch  # noqa: E402
from rmsnorm import reference  # noqa: E402
from rmsnorm_lab.experiments.models import recurrent  # noqa: E402
from rmsnorm_lab.experiments.models.step_batch_norm import StepBatchNorm, still_running  # noqa: E402

T, B, WIDTH, H = 7, 5, 6, 9
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


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, gain, norm):
    if norm in ("none", "weight"):
        return x
    if norm == "layer":
        return reference.layer_norm(x, gain, eps=EPS)
    if norm == "l2":
        return x / np.sqrt((x**2).sum(-1, keepdims=True) + EPS) * gain
    return reference.rms_norm(x, gain, k=-(-x.shape[-1] // 16) if norm == "prms" else None, eps=EPS)


def plain(layer):
    """The layer's parameters in float64, under torch's names without suffix; gains that are absent are ones."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh", "gain_cell")
    values = {name: getattr(layer, name + layer.suffix, None) for name in names}
    return {name: 1.0 if v is None else v.detach().double().numpy() for name, v in values.items()}


def numpy_gru(layer, x, h, norm):
    w, outputs = plain(layer), []
    gain_ih, gain_hh = (np.broadcast_to(w[name], (3 * H,)) for name in ("gain_ih", "gain_hh"))
    for x_t in x:
        a, c = x_t @ w["weight_ih"].T + w["bias_ih"], h @ w["weight_hh"].T
        a_rz, a_n = normed(a[:, : 2 * H], gain_ih[: 2 * H], norm), normed(a[:, 2 * H :], gain_ih[2 * H :], norm)
        c_rz, c_n = normed(c[:, : 2 * H], gain_hh[: 2 * H], norm), normed(c[:, 2 * H :], gain_hh[2 * H :], norm)
        b = w["bias_hh"]
        r, z = np.split(sigmoid(a_rz + c_rz + b[: 2 * H]), 2, axis=1)
        n = np.tanh(a_n + r * (c_n + b[2 * H :]))
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.stack(outputs)


def numpy_lstm(layer, x, h, m, norm):
    w, outputs = plain(layer), []
    for x_t in x:
        a = normed(x_t @ w["weight_ih"].T + w["bias_ih"], w["gain_ih"], norm)
        c = normed(h @ w["weight_hh"].T, w["gain_hh"], norm) + w["bias_hh"]
        i, f, g, o = np.split(a + c, 4, axis=1)
        m = sigmoid(f) * m + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normed(m, w["gain_cell"], norm))
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", recurrent.GRU_NORMS)
def test_gru_is_the_papers(norm, kernels):
    layer = randomised(recurrent.LoopGRU(WIDTH, H, norm, kernels))
    x, h, _ = inputs()
    outputs, last = layer(x, h)
    expected = numpy_gru(layer, x.double().numpy(), h[0].double().numpy(), norm)
    np.testing.assert_allclose(outputs.detach().numpy(), expected, rtol=0, atol=UNITS)
    assert torch.equal(last[0], outputs[-1])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", recurrent.GRU_NORMS)
def test_lstm_is_the_papers(norm, kernels):
    layer = randomised(recurrent.LoopLSTM(WIDTH, H, norm, kernels))
    x, h, m = inputs()
    outputs, (last, _) = layer(x, (h, m))
    expected = numpy_lstm(layer, x.double().numpy(), h[0].double().numpy(), m[0].double().numpy(), norm)
    np.testing.assert_allclose(outputs.detach().numpy(), expected, rtol=0, atol=UNITS)
    assert torch.equal(last[0], outputs[-1])


@pytest.mark.parametrize(("ours", "theirs"), [("LoopGRU", "GRU"), ("LoopLSTM", "LSTM")])
def test_without_a_norm_they_are_torchs_with_its_names_and_gradients(ours, theirs):
    layer, peer = randomised(getattr(recurrent, ours)(WIDTH, H, "none", "unfused")), getattr(torch.nn, theirs)(WIDTH, H)
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


@pytest.mark.parametrize("norm", recurrent.GRU_NORMS)
def test_a_cell_is_one_step_of_its_layer(norm):
    x, h, m = inputs()
    for cell_type, layer_type in (
        (recurrent.LoopGRUCell, recurrent.LoopGRU),
        (recurrent.LoopLSTMCell, recurrent.LoopLSTM),
    ):
        cell, layer = randomised(cell_type(WIDTH, H, norm, "rmsnorm")), layer_type(WIDTH, H, norm, "rmsnorm")
        state = {name.replace("_ih.", "_ih_l0.").replace("_hh.", "_hh_l0."): v for name, v in cell.state_dict().items()}
        layer.load_state_dict({name if "_l0" in name else f"{name}_l0": v for name, v in state.items()})
        lstm = cell_type is recurrent.LoopLSTMCell
        expected = layer(x[:1], (h, m) if lstm else h)[0][0]
        found = cell(x[0], (h[0], m[0]))[0] if lstm else cell(x[0], h[0])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        *((recurrent.LoopGRU, norm) for norm in recurrent.GRU_NORMS),
        *((recurrent.LoopLSTM, norm) for norm in recurrent.LSTM_NORMS),
    ],
)
def test_padding_changes_nothing(make, norm):
    lengths = torch.tensor([3, 7, 1, 5, 6])
    ragged = randomised(recurrent.Ragged(lambda: make(WIDTH, H, norm, "rmsnorm"), True, learned_start=True))
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
    ragged = randomised(recurrent.Ragged(lambda: make(WIDTH, H, "rms", "rmsnorm"), True, learned_start=True))
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
def test_a_batch_normalised_lstm_is_torchs_on_normalised_sides(kernels):
    """One step by hand: N(a) and N(c) over the batch, gains, b_hh after them, the cell normalised before its tanh."""
    layer = randomised(recurrent.LoopLSTM(WIDTH, H, "batch", kernels))
    x, h, m = inputs()
    found = layer(x[:1], (h, m), torch.ones(B, dtype=torch.long))[0][0].detach().numpy()
    w, x, h, m = plain(layer), *(v[0].double().numpy() for v in (x, h, m))

    def over_batch(v):
        return (v - v.mean(0)) / np.sqrt(v.var(0) + EPS)

    a = over_batch(x @ w["weight_ih"].T + w["bias_ih"]) * w["gain_ih"]
    i, f, g, o = np.split(a + over_batch(h @ w["weight_hh"].T) * w["gain_hh"] + w["bias_hh"], 4, axis=1)
    m = sigmoid(f) * m + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(found, sigmoid(o) * np.tanh(over_batch(m) * w["gain_cell"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "weight"])
def test_weights_are_drawn_gate_by_gate(norm):
    for make in (recurrent.LoopGRU, recurrent.LoopGRUCell, recurrent.LoopLSTM):
        layer = make(WIDTH, H, norm, "rmsnorm")
        recurrent.initialise(layer, "weight_hh", torch.nn.init.orthogonal_)
        for block in layer.parameter("weight_hh").detach().split(H):
            torch.testing.assert_close(block @ block.T, torch.eye(H), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "loop"), [(recurrent.gru_layer, recurrent.LoopGRU), (recurrent.lstm_layer, recurrent.LoopLSTM)]
)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", recurrent.GRU_NORMS)
def test_a_layer_is_the_loop_whoever_computes_it(make, loop, norm, kernels):
    """The same draws, names, outputs and gradients, on ragged sequences in both directions with a learned start."""
    networks = []
    for each in (make, loop):
        torch.manual_seed(5)
        networks.append(recurrent.Ragged(lambda each=each: each(WIDTH, H, norm, kernels, 0.25), True, True))
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
        k: [n for n in recurrent.GRU_NORMS if isinstance(recurrent.gru_layer(2, 3, n, k), rmsnorm.torch.GRU)]
        for k in KERNELS
    }
    assert native == {
        "rmsnorm": ["none", "layer", "rms", "prms"],
        "unfused": [],
        "best": ["none", "rms", "prms"],
    }


def test_a_norm_that_a_recurrence_lacks_is_refused():
    with pytest.raises(ValueError, match=r"norm of a LoopGRU must be one of .*'prms'.*, got 'batch'"):
        recurrent.LoopGRU(WIDTH, H, "batch", "rmsnorm")
