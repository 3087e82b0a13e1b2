"""The recurrent modules in the framework: dropout, transforms, autocast, copies, torch's attributes."""

import copy
import pickle

import pytest
import torch

import plain_rnn
from recurrent_cases import LAYERS, MODULES, assert_near, call, functional, make, results, states


def test_dropout_lies_between_layers_and_is_reproducible():
    module = make("GRU", num_layers=3, dropout=0.5)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(module(x)[0])
    assert torch.equal(*found)
    assert not torch.equal(found[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])
    with pytest.warns(UserWarning, match=r"num_layers greater than 1, but got dropout=0\.5 and num_layers=1"):
        single = make("GRU", dropout=0.5)
    assert torch.equal(single(x)[0], single(x)[0])


@pytest.mark.parametrize("cell", LAYERS)
def test_dropout_of_everything_leaves_zeros_to_the_next_layer(cell):
    module, second = make(cell, num_layers=2, dropout=1.0), make(cell, input_size=19)
    weights = {name.replace("_l1", "_l0"): p for name, p in module.state_dict().items() if name.endswith("_l1")}
    second.load_state_dict(weights)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    assert_near([module(x)[0]], [second(torch.zeros(4, 3, 19, dtype=torch.float64))[0]], 1e-13)


@pytest.mark.parametrize("cell", LAYERS)
def test_transforms_take_the_composite(cell):
    module = make(cell)
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    names, parameters = zip(*module.named_parameters(), strict=True)
    h0, c0 = (None if s is None else s.detach() for s in states(module, 2))

    def run(x):
        return functional(module, x, h0, c0, names, parameters)[0]

    with torch.no_grad():
        assert_near([torch.func.vmap(run)(x)], [torch.stack([run(example) for example in x])], 1e-12)
    tangent = torch.randn_like(x[0])
    value, forward = torch.func.jvp(run, (x[0],), (tangent,))
    step = 1e-6
    difference = (run(x[0] + step * tangent) - run(x[0] - step * tangent)) / (2 * step)
    assert_near([value, forward], [run(x[0]), difference], 1e-7)


@pytest.mark.parametrize("cell", LAYERS)
def test_meta_and_autocast(cell):
    meta = MODULES[cell](5, 8, device="meta")
    assert meta(torch.empty(4, 3, 5, device="meta"))[0].shape == (4, 3, 8)
    module = make(cell, dtype=torch.float32)
    x = torch.randn(4, 3, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)[0]
    assert out.dtype == torch.bfloat16
    wanted = [x, *module.parameters()]
    found = torch.autograd.grad(out.float().square().sum(), wanted)
    whole = module(x)[0]
    assert all(g.dtype == torch.float32 for g in found)
    # States and their gradients are rounded to bfloat16 at each of 4 steps.
    expected = [whole, *torch.autograd.grad(whole.square().sum(), wanted)]
    assert_near([out, *found], [t.double() for t in expected], 32 * 2**-8)


@pytest.mark.parametrize("cell", LAYERS)
def test_autocast_leaves_float64_and_refuses_integers_as_torch_does(cell):
    module, x = make(cell), torch.randn(4, 3, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)[0]
        with pytest.raises(
            ValueError, match=r"input dtype \(torch\.int64\) does not match weight dtype \(torch\.float64\)"
        ):
            module(x.long())
    assert torch.equal(out, module(x)[0])


@pytest.mark.parametrize("cell", LAYERS)
def test_copies(cell):
    module = make(cell, num_layers=2, bidirectional=True, p=0.25)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x)[0], module(x)[0])
        assert repr(twin) == repr(module)
    assert "p=0.25" in repr(module)
    with pytest.raises(AttributeError):
        module.p = 0.5  # would change nothing
    assert "norm='rms'" in repr(module)


@pytest.mark.every_level
@pytest.mark.parametrize("p", [1.0, 0.3])
@pytest.mark.parametrize("cell", MODULES)
def test_every_instruction_set(cell, p):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        module = make(cell, p=p, hidden=37, dtype=dtype, bidirectional=True)
        x = torch.randn(4, 9, 5, dtype=dtype, requires_grad=True)
        h0, c0 = states(module, 9, dtype)
        inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
        expected = results(plain_rnn.run(module, x, [4] * 9, h0, c0), inputs)
        assert_near(results(call(module, x, h0, c0), inputs), [t.double() for t in expected], tolerance)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_attributes_of_torchs_layers(cell, bias):
    how = {"num_layers": 2, "bias": bias, "bidirectional": True}
    theirs, ours = getattr(torch.nn, cell)(5, 8, **how), MODULES[cell](5, 8, **how)
    assert (ours.mode, ours.proj_size) == (theirs.mode, theirs.proj_size)
    shapes = [[p.shape for p in weights] for weights in theirs.all_weights]
    assert [[p.shape for p in weights[: len(shapes[0])]] for weights in ours.all_weights] == shapes
    assert {id(p) for p in ours._flat_weights} == {id(p) for p in ours.parameters()}
    plain = MODULES[cell](5, 8, **how, norm=None)
    assert [p.shape for p in plain._flat_weights] == [p.shape for p in theirs._flat_weights]
    positional = (5, 8, 2, bias, True, 0.25, False, 0, "cpu", torch.float64)
    assert repr(MODULES[cell](*positional)).startswith(repr(getattr(torch.nn, cell)(*positional))[:-1])
