"""``model.biases=paper``: where the paper's code has its biases, transcribed here step by step in float64."""

import pytest

torch = pytest.importorskip("torch")

from rmsnorm.torch import GRU, LSTM  # noqa: E402
from rmsnorm_lab.experiments import tasks  # noqa: E402
from rmsnorm_lab.experiments.models import recurrent, rnnsearch  # noqa: E402
from rmsnorm_lab.experiments.norms import made  # noqa: E402
from rmsnorm_lab.experiments.recipes.common import EPS, KERNELS  # noqa: E402
from rmsnorm_lab.experiments.recipes.settings import changed  # noqa: E402

T, B, WIDTH, H = 5, 4, 6, 16
SIZES = {
    "translation": {"vocabulary": 300},
    "retrieval": {"features": 7, "vocabulary": 9},
    "reading": {"vocabulary": 9},
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def n(x, norm, gain, bias):
    """The norm, its gain, and the bias that LayerNorm alone has."""
    if norm == "none":
        return x
    if norm == "layer":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=EPS) * gain + bias
    if norm == "batch":
        y = (x - x.mean(0)) / (x.var(0, correction=0) + EPS).sqrt() * gain
        return y if bias is None else y + bias
    k = x.shape[-1] // 16 if norm == "prms" else x.shape[-1]
    return x / (x[..., :k].square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def of(layer):
    return {name.removesuffix("_l0"): each.detach().double() for name, each in layer.named_parameters()}


def part(value, start, stop):
    return None if value is None else value[start:stop]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_a_gru(norm, kernels):
    layer = randomised(recurrent.LoopGRU(WIDTH, H, made(norm, kernels), "paper"))
    p, x, h = of(layer), torch.randn(T, B, WIDTH), torch.randn(1, B, H)
    assert not any("bias_hh" in name for name in p)
    assert ("shift_ih" in p, "shift_hh" in p) == (norm == "layer",) * 2
    a, state, expected = x.double() @ p["weight_ih"].T + p["bias_ih"], h[0].double(), []
    for t in range(T):
        c = state @ p["weight_hh"].T
        sides = []
        for side, v in (("ih", a[t]), ("hh", c)):
            g, b = p.get(f"gain_{side}"), p.get(f"shift_{side}")
            cuts = ((0, 2 * H), (2 * H, 3 * H))
            sides.append([n(v[:, i:j], norm, part(g, i, j), part(b, i, j)) for i, j in cuts])
        (x_gates, x_proposal), (h_gates, h_proposal) = sides
        r, z = torch.sigmoid(x_gates + h_gates).chunk(2, -1)
        state = z * state + (1 - z) * torch.tanh(x_proposal + r * h_proposal)
        expected.append(state)
    torch.testing.assert_close(layer(x, h)[0].double(), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms", "batch"])
def test_an_lstm_adds_its_one_bias_twice(norm, kernels):
    layer = randomised(recurrent.LoopLSTM(WIDTH, H, made(norm, kernels), "paper"))
    p, x, h, m = of(layer), torch.randn(T, B, WIDTH), torch.randn(1, B, H), torch.randn(1, B, H)
    shifts = {"layer": {"shift_ih", "shift_hh", "shift_cell"}, "batch": {"shift_cell"}}.get(norm, set())
    assert {name for name in p if name.startswith("shift")} == shifts
    assert not any("bias_hh" in name for name in p)
    state, memory, expected = h[0].double(), m[0].double(), []
    for t in range(T):
        below = n(x[t].double() @ p["weight_ih"].T + p["bias_ih"], norm, p.get("gain_ih"), p.get("shift_ih"))
        before = n(state @ p["weight_hh"].T, norm, p.get("gain_hh"), p.get("shift_hh"))
        i, f, g, o = (below + before + p["bias_ih"]).chunk(4, -1)
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        state = torch.sigmoid(o) * torch.tanh(n(memory, norm, p.get("gain_cell"), p.get("shift_cell")))
        expected.append(state)
    torch.testing.assert_close(layer(x, (h, m))[0].double(), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_rnnsearch_has_each_bias_within_its_norm(norm):
    config = changed(tasks.recipe("translation"), ["model.embedding=10", "model.hidden=16", "model.biases=paper"]).model
    network = randomised(rnnsearch.RNNSearch(30, config, made(norm, "unfused")))
    p = {name: each.detach().double() for name, each in network.named_parameters()}
    assert not {"first_bias", "attend_bias", "read_bias"} & p.keys()
    assert ("attend_context.bias" in p, "attend_state.bias" in p) == (True, False)

    def linear(name, x):
        y = x.double() @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)
        return n(y, norm, p.get(f"{name}.gain"), p.get(f"{name}.shift"))

    def same(found, expected):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)

    memory = network.encode(torch.randint(5, 30, (B, T)))
    same(memory[1], linear("attend_context", memory[0]))
    same(network.start(memory)[0], torch.tanh(linear("first_state", memory[3])))
    state, words, context = torch.randn(B, 16), torch.randn(B, 10), torch.randn(B, 32)
    read = linear("read_state", state) + linear("read_word", words) + linear("read_context", context)
    logits = torch.tanh(read) @ p["logits.weight"].T + p["logits.bias"]
    torch.testing.assert_close(network._read(state, words, context).double(), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
@pytest.mark.parametrize("task", SIZES)
def test_the_papers_networks_have_them_and_start_at_zero(task, norm):
    small = (
        ["model.embedding=8", "model.hidden=8"] if task == "translation" else ["model.word_width=8", "model.width=8"]
    )
    recipe = changed(tasks.recipe(task, "paper"), small)
    assert recipe.model.biases == "paper"
    network = tasks.module(task).network(recipe, SIZES[task], norm, "rmsnorm")
    assert not any(isinstance(module, GRU | LSTM) for module in network.modules())
    for name, parameter in network.named_parameters():
        if "bias" in name or "shift" in name:
            assert not parameter.any(), name
    assert any("shift" in name for name, _ in network.named_parameters()) == (norm == "layer")
