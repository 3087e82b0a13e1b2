"""The recurrent modules in compiled and exported graphs, and the operators that these hold."""

import pytest
import torch

from recurrent_cases import CELLS, LAYERS, assert_near, make, states
from rmsnorm.spec import MismatchError
from rmsnorm.torch import GRU, LSTM


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("placement", ["paper", "input"])
def test_compiled_without_a_graph_break(cell, placement):
    torch._dynamo.reset()
    module = torch.nn.Sequential(
        torch.nn.Linear(5, 5, dtype=torch.float64), make(cell, placement=placement, num_layers=2)
    )
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((4, 3), (6, 2)):
        x = torch.randn(steps, batch, 5, dtype=torch.float64, requires_grad=True)
        gradients = []
        for run in (compiled, module):
            out, last = run(x)
            last = last[1] if isinstance(last, tuple) else last
            gradients.append(torch.autograd.grad((out.square().sum() + last.sum()), [x, *module.parameters()]))
        assert_near(*gradients, 1e-12)
    with torch.no_grad():
        assert_near([compiled(x)[0]], [module(x)[0]], 1e-13)


@pytest.mark.parametrize(  # every pair
    ("cell", "batch_sizes", "reverse"),
    [("GRU", None, False), ("GRU", [3, 2, 1], True), ("LSTM", None, True), ("LSTM", [3, 2, 1], False)],
)
def test_operators(cell, batch_sizes, reverse):
    module = make(cell)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    h0, c0 = (None if s is None else s[0].detach().requires_grad_() for s in states(module, 3))
    parameters = [None if p is None else p.detach().requires_grad_() for p in module._parameters_of("_l0")]
    how = (cell, "rms", 0.3, 1e-5, "paper", batch_sizes, reverse)
    torch.library.opcheck(torch.ops.rmsnorm.recurrent.default, (x, h0, c0, *parameters, *how, True))
    kept = torch.ops.rmsnorm.recurrent(x, h0, c0, *parameters, *how, True)
    gradients = [torch.randn_like(t).requires_grad_() for t in kept[:3]]
    gradients[2] = gradients[2] if c0 is not None else None
    saved = [t.detach() for t in kept[3:]]
    inputs = [x, h0, c0, *parameters]
    torch.library.opcheck(
        torch.ops.rmsnorm.recurrent_backward.default,
        (*inputs, *saved, *gradients, *how),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )

    def backward(*tensors):
        filled = iter(tensors)
        given = [None if t is None else next(filled) for t in (*inputs, *gradients)]
        kept = torch.ops.rmsnorm.recurrent(*(t if t is None else t.detach() for t in given[:10]), *how, True)
        results = torch.ops.rmsnorm.recurrent_backward(*given[:10], *kept[3:], *given[10:], *how)
        return tuple(r for r, t in zip(results, inputs, strict=True) if t is not None)

    small = tuple(t for t in (*inputs, *gradients) if t is not None)
    assert torch.autograd.gradcheck(backward, small, fast_mode=True)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("at", range(4))
def test_a_meta_tensor_among_others_is_refused_by_the_operators(at, grad):
    """torch takes such a call to the fake, whose results on the CPU are memory that was never written."""
    module = make("GRU")
    h0, _ = states(module, 2)
    x, parameters = torch.randn(6, 5, dtype=torch.float64), list(module._parameters_of("_l0"))
    how = ("GRU", "rms", 0.3, 1e-5, "paper", None, False)
    inputs = [None if t is None else t.detach().requires_grad_(grad) for t in (x, h0[0], None, *parameters)]
    kept = [t.detach() for t in torch.ops.rmsnorm.recurrent(*inputs, *how, True)]
    mixed = [t.to("meta") if i == (0, 1, 3, 4)[at] else t for i, t in enumerate(inputs)]
    for run in (
        lambda: torch.ops.rmsnorm.recurrent(*mixed, *how, True),
        lambda: torch.ops.rmsnorm.recurrent_backward(*mixed, *kept[3:], *kept[:2], None, *how),
    ):
        with pytest.raises(ValueError, match="must have the device of"):
            run()


@pytest.mark.parametrize("cell", LAYERS)
def test_exported(cell):
    module = make(cell).eval()
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    exported = torch.export.export(module, (x,))
    assert_near([exported.module()(x)[0]], [module(x)[0]], 1e-13)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("norm", ["rms", "layer", None])
def test_cells_without_features_or_units(cell, norm):
    """As torch's, which take both; under torch.compile too, each size with another norm."""
    torch._dynamo.reset()
    sizes = {"rms": (5, 0), "layer": (0, 4), None: (0, 0)}
    for input_size, hidden in sizes.values():
        module = CELLS[cell](input_size, hidden, norm=norm)
        x = torch.randn(3, input_size, requires_grad=True)
        compiled = torch.compile(module, backend="aot_eager") if (input_size, hidden) == sizes[norm] else module
        for run in (module, compiled):
            out = run(x)
            h = out if cell == "GRU" else out[0]
            assert h.shape == (3, hidden)
            (dx,) = torch.autograd.grad(h.sum(), x)
            assert torch.equal(dx, torch.zeros_like(x))
    assert CELLS[cell](5, 8, bias=False).bias_ih is None


def operator(x, h0, c0=None, *parameters, sizes=None, cell="GRU"):
    how = (cell, None, 1.0, 1e-5, "paper", sizes, False, True)
    return torch.ops.rmsnorm.recurrent(x, h0, c0, *parameters, *how)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": [2, 2]}, "batch_sizes must"),
        ({"sizes": [1, 2, 1, 2]}, "batch_sizes must"),
        ({"sizes": [2, 0, 2, 2]}, "batch_sizes must"),
        ({"sizes": [3, 3]}, "batch_sizes must"),
        ({"h0": (4, 5)}, "rows for each step"),
        ({"h0": (0, 5)}, "rows for each step"),
        ({"h0": (5,)}, "h0 must be"),
        ({"x": (6, 4, 1)}, "x must be"),
        ({"x": (6, 3)}, "weight_ih must have shape"),
        ({"c0": (2, 5)}, "c0 must be given for an LSTM"),
        ({"bias_hh": torch.zeros(15, dtype=torch.int64)}, "bias_hh must have a floating dtype"),
        ({"weight_hh": (16, 5)}, "weight_hh must have shape"),
    ],
    ids=str,
)
def test_the_operator_checks_what_it_is_called_with(change, said):
    shapes = {"x": (6, 4), "h0": (2, 5), "c0": None, "weight_ih": (15, 4), "weight_hh": (15, 5)}
    shapes |= {"bias_ih": (15,), "bias_hh": (15,), "gain_ih": None, "gain_hh": None, "gain_cell": None} | change
    sizes = shapes.pop("sizes", None)
    given = [torch.randn(s) if isinstance(s, tuple) else s for s in shapes.values()]
    with pytest.raises((MismatchError, TypeError), match=said):
        operator(*given, sizes=sizes)


@pytest.mark.parametrize("make", [GRU, LSTM])
def test_a_program_exported_without_gradients_has_them(make):
    layer, x = make(4, 5), torch.randn(3, 2, 4)
    with torch.no_grad():
        program = torch.export.export(layer, (x,)).module()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    program(one)[0].sin().sum().backward()
    layer(other)[0].sin().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
