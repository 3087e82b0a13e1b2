"""Values and gradients of the recurrent modules, against a plain loop and against torch's own."""

import itertools

import pytest
import torch

import plain_rnn
from recurrent_cases import CELLS, MODULES, assert_near, call, make, results, states
from rmsnorm.torch.rnn.spec import PLACEMENTS

TORCH = {"GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}
NORMS = (("rms", 1.0), ("rms", 0.3), ("rms", 0.0625), ("layer", 1.0), (None, 1.0))

CONFIGURATIONS = [
    (cell, norm, p, placement)
    for cell, (norm, p) in itertools.product(MODULES, NORMS)
    for placement in (PLACEMENTS[cell] if norm else ("paper",))
]


@pytest.mark.parametrize(("cell", "norm", "p", "placement"), CONFIGURATIONS)
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_plain_loop(cell, norm, p, placement, ragged):
    module = make(cell, norm, p, placement, num_layers=2, bidirectional=True)
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, 4)
    inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
    lengths = [3, 6, 1, 4] if ragged else [6] * 4
    actual = call(module, x, h0, c0, lengths=lengths if ragged else None)
    expected = plain_rnn.run(module, x, lengths, h0, c0)
    assert_near(results(actual, inputs), results(expected, inputs), 1e-12)


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("hidden", [1, 2, 8, 16, 33, 130])
@pytest.mark.parametrize("steps", [3, 5])
def test_every_width(cell, hidden, steps):
    """Shorter than a vector, as long, and with a tail; each step a native call, and one call for all."""
    module = make(cell, p=0.3, hidden=hidden)
    x = torch.randn(steps, 11, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, 11)
    inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
    expected = results(plain_rnn.run(module, x, [steps] * 11, h0, c0), inputs)
    assert_near(results(call(module, x, h0, c0), inputs), expected, 1e-10)


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize(  # 16-bit: states are rounded at each of 5 steps, and gradients of states too: 32 half-ulps
    ("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.bfloat16, 32 * 2**-8), (torch.float16, 32 * 2**-11)]
)
@pytest.mark.parametrize("hidden", [16, 37])
def test_shorter_dtypes_stay_near_float64(cell, dtype, tolerance, hidden):
    module = make(cell, hidden=hidden, dtype=dtype)
    x = torch.randn(5, 9, 5, dtype=dtype, requires_grad=True)
    h0, c0 = states(module, 9, dtype)
    inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
    actual = results(call(module, x, h0, c0), inputs)
    wide = make(cell, hidden=hidden)
    wide.load_state_dict(module.state_dict())
    wide_inputs = [t.detach().double().requires_grad_() for t in (x, h0, c0) if t is not None]
    expected = results(
        call(wide, wide_inputs[0], wide_inputs[1], wide_inputs[2] if c0 is not None else None),
        [*wide_inputs, *wide.parameters()],
    )
    assert all(a.dtype == dtype for a in actual)
    assert_near(actual, expected, tolerance)


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_norms_it_is_torchs(cell, bias, batch_first):
    how = {"num_layers": 2, "bidirectional": True, "bias": bias, "batch_first": batch_first}
    theirs = TORCH[cell](5, 19, dtype=torch.float64, **how)
    ours = MODULES[cell](5, 19, dtype=torch.float64, norm=None, **how)
    assert not ours.load_state_dict(theirs.state_dict()).missing_keys
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(ours, 6 if batch_first else 4)
    given = [t for t in (x, h0, c0) if t is not None]
    actual = results(call(ours, x, h0, c0), [*given, *ours.parameters()])
    expected = results(call(theirs, x, h0, c0), [*given, *theirs.parameters()])
    assert_near(actual, expected, 1e-12)


@pytest.mark.parametrize("cell", MODULES)
def test_a_checkpoint_of_torch_loads(cell):
    theirs = TORCH[cell](5, 8, 2)
    ours = MODULES[cell](5, 8, 2)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert all(name.startswith("gain") for name in missing)
    assert not unexpected
    assert all(torch.equal(ours.state_dict()[n], t) for n, t in theirs.state_dict().items())


@pytest.mark.parametrize("cell", MODULES)
def test_packed_sequences(cell):
    module = make(cell, bidirectional=True)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    lengths = [2, 7, 4]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    h0, c0 = states(module, 3)
    out, *last = call(module, packed, h0, c0)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=7)
    expected = plain_rnn.run(module, x, lengths, h0, c0)
    assert found.tolist() == lengths
    assert_near([padded, *[t for t in last if t is not None]], [t for t in expected if t is not None], 1e-12)


@pytest.mark.parametrize("cell", MODULES)
def test_padding_changes_nothing(cell):
    module = make(cell, bidirectional=True)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    lengths = torch.tensor([2, 7, 4])
    other = x.clone()
    for b, length in enumerate(lengths):
        other[length:, b] = 1e30
    first, second = module(x, lengths=lengths), module(other, lengths=lengths)
    assert torch.equal(first[0], second[0])
    for one, two in zip(*((s if isinstance(s, tuple) else (s,)) for s in (first[1], second[1])), strict=True):
        assert torch.equal(one, two)
    for b, length in enumerate(lengths):
        assert not first[0][length:, b].any()
        assert first[0][:length, b].all()


@pytest.mark.parametrize("cell", MODULES)
def test_forms_of_input(cell):
    module = make(cell)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    h0, c0 = states(module, 4)
    out, h_n, _ = call(module, x, h0, c0)
    first = make(cell, batch_first=True)
    first.load_state_dict(module.state_dict())
    assert torch.equal(call(first, x.transpose(0, 1), h0, c0)[0].transpose(0, 1), out)
    one = call(module, x[:, 2], h0[:, 2], None if c0 is None else c0[:, 2])
    assert_near([one[0], one[1]], [out[:, 2], h_n[:, 2]], 1e-13)
    strided = torch.randn(6, 4, 10, dtype=torch.float64)[..., ::2]
    assert_near([module(strided)[0]], [module(strided.contiguous())[0]], 0)


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize("placement", ["paper", "haste"])
def test_cells_are_one_step_of_layers(cell, placement):
    layer = make(cell, placement=placement)
    one = CELLS[cell](5, 19, placement=placement, dtype=torch.float64)
    one.load_state_dict({n.removesuffix("_l0"): t for n, t in layer.state_dict().items()})
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(layer, 4)
    out, h_n, c_n = call(layer, x, h0, c0)
    h, c = h0[0], None if c0 is None else c0[0]
    steps = []
    for t in range(6):
        h, c = (one(x[t], h), None) if c is None else one(x[t], (h, c))
        steps.append(h)
    given = [t for t in (x, h0, c0) if t is not None]
    stepped = (torch.stack(steps), h[None], None if c is None else c[None])
    expected = results((out, h_n, c_n), [*given, *layer.parameters()])
    assert_near(results(stepped, [*given, *one.parameters()]), expected, 1e-12)
    alone = one(x[0, 0], h0[0, 0]) if c0 is None else one(x[0, 0], (h0[0, 0], c0[0, 0]))[0]
    assert_near([alone], [steps[0][0]], 1e-13)
    zeros = torch.zeros_like(h0[0])
    from_zero = (one(x[0]), one(x[0], zeros)) if c0 is None else (one(x[0])[1], one(x[0], (zeros, zeros))[1])
    assert torch.equal(*from_zero)


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_no_steps_and_no_rows(cell, steps, batch):
    module = make(cell, num_layers=2, bidirectional=True)
    x = torch.randn(steps, batch, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, batch)
    out, h_n, _ = call(module, x, h0, c0)
    assert out.shape == (steps, batch, 38)
    assert torch.equal(h_n, h0)  # without steps the state stays; without rows both are empty
    (out.sum() + h_n.sum()).backward()
    assert torch.equal(h0.grad, torch.ones_like(h0))
    for parameter in module.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    with torch.no_grad():
        assert module(x)[0].shape == out.shape


@pytest.mark.parametrize("cell", MODULES)
def test_extreme_rows(cell):
    """The statistic of any finite row is right; what is not finite stays in its row of the batch."""
    module = make(cell, dtype=torch.float32)
    x = torch.randn(3, 6, 5)
    x[:, 1] *= 1e30
    x[:, 2] *= 1e-30
    x[:, 3] = 0
    plain = module(x)[0]
    x[1, 4, 2] = float("nan")
    x[1, 5, 2] = float("inf")
    out = module(x)[0]
    assert torch.equal(out[:, :4], plain[:, :4])
    assert torch.equal(out[0], plain[0])
    assert out[1:, 4].isnan().all()
    assert plain.isfinite().all()
    wide = make(cell)
    wide.load_state_dict(module.state_dict())
    x[1, 4:] = 0
    assert_near([module(x)[0]], [wide(x.double())[0]], 3e-5)


@pytest.mark.parametrize("cell", MODULES)
def test_threads_and_neighbours_change_nothing(cell, set_threads):
    """Beyond the last bits of the framework's products, which may depend on both."""
    module = make(cell, dtype=torch.float32, hidden=256)
    x = torch.randn(4, 70, 5, requires_grad=True)
    found = []
    for threads in (1, 2):
        set_threads(threads)
        found.append(
            torch.autograd.grad(module(x)[0].square().sum(), [p for n, p in module.named_parameters() if "gain" in n])
        )
    assert_near(found[0], found[1], 1e-5)
    assert_near([module(x[:, 3:4])[0]], [module(x)[0][:, 3:4]], 1e-5)


@pytest.mark.parametrize("cell", MODULES)
def test_infinite_sums_of_a_gate_without_norms_have_torchs_gradients(cell):
    """They saturate the gates, whose gradients are 0; ∞·0 would be NaN."""
    module = make(cell, norm=None, input_size=4, hidden=18)
    twin = getattr(torch.nn, cell)(4, 18, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    x[1, 0, 2], x[3, 1, 0] = float("inf"), float("-inf")
    found = []
    for layer in (module, twin):
        given = x.clone().requires_grad_()
        layer(given)[0].sum().backward()
        found.append([given.grad, layer.bias_ih_l0.grad, layer.weight_hh_l0.grad])
    assert all(t.isfinite().all() for t in found[1])
    assert_near(*found, 1e-12)
