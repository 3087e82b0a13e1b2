"""Layers whose steps are one native call, against those whose steps are calls between torch's products."""

import itertools

import pytest
import torch

from recurrent_cases import MODULES, assert_near, call, make, results, states
from rmsnorm import native
from rmsnorm.torch import bindings
from rmsnorm.torch.rnn import eager, products
from rmsnorm.torch.rnn.spec import PLACEMENTS

if native.missing:
    pytest.skip(f"the native kernels: {native.missing}", allow_module_level=True)

PLACED = [
    (cell, norm, placement)
    for cell in MODULES
    for norm in ("rms", "layer", None)
    for placement in (PLACEMENTS[cell] if norm else ("paper",))
]
SIZES = [(1, 1, 4), (25, 70, 4), (9, 37, 5)]  # batch, hidden, steps
LIMIT = products.AT_ONCE
EPSILON = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 32 * 2**-8, torch.float16: 32 * 2**-11}


def both_ways(monkeypatch, function):
    """Its results at once and step by step, and how often a native call took all steps."""
    found, calls = [], []
    for limit in (LIMIT, 0):
        monkeypatch.setattr(products, "AT_ONCE", limit)
        real = eager._at_once
        monkeypatch.setattr(eager, "_at_once", lambda *how, real=real: calls.append(real(*how)) or calls[-1])
        found.append(function())
        monkeypatch.setattr(eager, "_at_once", real)
    return *found, [steps for steps in calls if steps]


@pytest.mark.parametrize(("cell", "norm", "placement"), PLACED)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_the_same_as_step_by_step(cell, norm, placement, dtype, monkeypatch):
    """Both directions, with and without gradients."""
    for batch, hidden, steps in SIZES if dtype == torch.float64 else SIZES[-1:]:
        module = make(cell, norm, 1.0, placement, hidden=hidden, dtype=dtype, bidirectional=True)
        x = torch.randn(steps, batch, 5, dtype=dtype, requires_grad=True)
        h0, c0 = states(module, batch, dtype)
        inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]

        def with_gradients(module=module, x=x, h0=h0, c0=c0, inputs=inputs):
            return results(call(module, x, h0, c0), inputs)

        def without(module=module, x=x, h0=h0, c0=c0):
            with torch.no_grad():
                return [t for t in call(module, x, h0, c0) if t is not None]

        for function, count in ((with_gradients, 4), (without, 2)):
            at_once, expected, counted = both_ways(monkeypatch, function)
            assert counted == [steps] * count
            assert_near(at_once, expected, EPSILON[dtype])


@pytest.mark.parametrize("cell", MODULES)
def test_threads_change_nothing(cell):
    """A row's results, and the order in which gradients are summed, do not depend on the number of threads."""
    module = make(cell, p=0.3, hidden=70, dtype=torch.float32)
    x = torch.randn(6, 75, 5, requires_grad=True)
    h0, c0 = states(module, 75, torch.float32)
    inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(call(module, x, h0, c0), inputs))
    finally:
        torch.set_num_threads(threads)
    one, *others = found
    names = ["out", "h_n", "c_n"][: 3 if c0 is not None else 2] + ["x", "h0", "c0"][: 3 if c0 is not None else 2]
    names += [name for name, _ in module.named_parameters()]
    for other in others:
        for name, a, b in zip(names, one, other, strict=True):
            if name.startswith(("weight", "x")):  # torch's products
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(a, b), name


def test_which_layers_take_all_steps_at_once(monkeypatch):
    """Not those of few steps, of ragged batches or with a large matrix; nor in bfloat16 those of large products."""
    assert products.in_one_call(torch.empty(1024, 256), 500, 4)
    assert not products.in_one_call(torch.empty(1024, 256), 1, 3)
    assert not products.in_one_call(torch.empty(1028, 257), 1, 400)
    assert products.in_one_call(torch.empty(1024, 256, dtype=torch.bfloat16), 16, 4)
    assert not products.in_one_call(torch.empty(1024, 256, dtype=torch.bfloat16), 17, 4)
    module, x = make("GRU"), torch.randn(6, 3, 5, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 4, 1])
    for given, steps in ((x, [6]), (x[:3], []), (x[:0], []), (x[:, :0], []), (packed, [])):
        _, _, counted = both_ways(monkeypatch, lambda given=given: module(given))
        assert counted == steps


@pytest.mark.parametrize("exchanges", [True, False], ids=["as they are", "as addresses"])
def test_a_replaced_weight_need_not_be_contiguous(exchanges, monkeypatch):
    """An older torch hands addresses over: the copy must live as long as the call."""
    if not exchanges:
        monkeypatch.setattr(bindings, "exchanges", False)
    module = make("LSTM", hidden=200)
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())
    assert not module.weight_hh_l0.is_contiguous()
    x = torch.randn(5, 3, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, 3)
    inputs = [x, h0, c0, *module.parameters()]
    at_once, expected, counted = both_ways(monkeypatch, lambda: results(call(module, x, h0, c0), inputs))
    assert counted == [5, 5]
    assert_near(at_once, expected, 1e-12)


@pytest.mark.parametrize("gates", [3, 4])
def test_wrong_arguments_of_the_native_calls_are_refused(gates):
    """rmsnorm makes these tensors itself; a wrong one must not be read or written beyond its end."""
    hidden, batch, steps = 4, 3, 5
    rows, width = batch * steps, gates * hidden
    slabs = [torch.zeros(rows, width) for _ in range(5)]
    input, state, gate, dinput, dstate = slabs
    h, after, c, c_after = (torch.zeros(rows, hidden) for _ in range(4))
    dh, dc = torch.zeros(batch, hidden), torch.zeros(batch, hidden)
    ones = torch.ones(width)
    cells = (c, c_after) if gates == 4 else (None, None)
    made = native.kernels.recurrent_steps(
        gates, hidden, False, 1e-5, [], [], 0, 0.0, True,
        input, state, h, after, *cells, gate, ones, ones, ones, ones, ones[:hidden],
    )  # fmt: skip
    weight = torch.zeros(width, hidden)
    with pytest.raises(ValueError, match="prepare_backward must be called"):
        made.backward_layer(weight, steps, False)
    made.prepare_backward(None, dinput, dstate, dh, dc if gates == 4 else None, False)
    wrong_weights = [weight[:, :3], weight[:-1], weight.double(), weight.t()]
    for wrong in wrong_weights:
        with pytest.raises(ValueError, match="weight must"):
            made.forward_layer(wrong, None, steps, batch, False)
        with pytest.raises(ValueError, match="weight must"):
            made.backward_layer(wrong, steps, False)
    for count, size in itertools.product((-1, steps + 1, 2**62), (batch, -1, 2**62)):
        with pytest.raises(ValueError, match="must"):
            made.forward_layer(weight, None, count, size, False)
        with pytest.raises(ValueError, match="must"):
            made.backward_layer(weight, count, False)
    with pytest.raises(ValueError, match="added must"):
        made.forward_layer(weight, torch.zeros(rows - 1, width), steps, batch, False)
    made.forward_layer(weight, torch.zeros(rows, width), steps, batch, True)
    made.backward_layer(weight, steps, True)
