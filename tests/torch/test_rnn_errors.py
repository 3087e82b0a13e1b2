"""What the recurrent modules refuse, and what they say."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from recurrent_cases import make
from rmsnorm.spec import MismatchError
from rmsnorm.torch import GRU, LSTM, GRUCell, LSTMCell
from rmsnorm.torch.rnn import eager


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: GRU(5, 8, norm="batch"), r"norm must be 'rms', 'layer' or None, got 'batch'"),
        (lambda: GRU(5, 8, p=0.0), r"0 < p <= 1, got 0.0"),
        (lambda: GRU(5, 8, norm="layer", p=0.5), r"p < 1 is for norm='rms'"),
        (lambda: GRU(5, 8, placement="here"), r"must be one of 'paper', 'input', 'haste', 'dreamer', got 'here'"),
        (lambda: LSTM(5, 8, placement="dreamer"), r"must be one of 'paper', 'input', 'haste', got 'dreamer'"),
        (lambda: GRU(5, 0), r"hidden_size must be greater than zero, got 0"),
        (lambda: GRU(0, 5), r"input_size must be greater than zero, got 0"),
        (lambda: GRU(5, 8, num_layers=0), r"num_layers must be greater than zero, got 0"),
        (lambda: GRU(5, 8, dropout=1.5), r"dropout should be a number in range \[0, 1\] .*, got 1.5"),
        (lambda: GRU(5, 8, eps=-1.0), r"finite and not negative, got -1.0"),
        (lambda: GRU(5, 8, eps=0), r"eps must be above 0, got 0"),
        (lambda: LSTM(5, 8, placement="haste", eps=0.0), r"eps must be above 0, got 0"),
        (lambda: GRU(5, 8, norm=["rms"]), r"norm must be 'rms', 'layer' or None, got \['rms'\]"),
        (lambda: GRU(5, 8, eps=None), r"eps must be a number, got None"),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 6)), r"Expected 5, got 6 in an input of shape \(4, 3, 6\)"),
        (
            lambda: GRU(5, 8)(torch.randn(4, 3, 2, 5)),
            r"to be 2D or 3D, got 4D instead; it must be \(steps, batch, features\)",
        ),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 5).double()), r"\(torch.float64\) does not match .*\(torch.float32\)"),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 5), torch.randn(1, 4, 8)), r"hidden size \(1, 3, 8\), got \[1, 4, 8\]"),
        (lambda: GRU(5, 8)(torch.randn(4, 5), torch.randn(1, 3, 8)), r"hidden size \(1, 8\), got \[1, 3, 8\]"),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 5), lengths=[4, 5, 1]), r"from 1 to 4, .* got 1 to 5"),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 5), lengths=[4, 0, 1]), r"from 1 to 4, .* got 0 to 4"),
        (lambda: GRU(5, 8)(torch.randn(4, 3, 5), lengths=[4, 1]), r"lengths must be 3 integers, .* got \(2,\)"),
        (lambda: GRU(5, 8)(torch.randn(4, 5), lengths=[4]), r"lengths need a batch"),
        (
            lambda: GRU(5, 8)(pack_padded_sequence(torch.randn(4, 3, 6), [4, 2, 1])),
            r"Expected 5, got 6 in an input of shape \(7, 6\)",
        ),
        (
            lambda: GRUCell(5, 8)(torch.randn(2, 3, 5)),
            r"GRUCell: Expected input to be 1D or 2D, got 3D instead; it must be \(batch, features\)",
        ),
        (lambda: GRUCell(5, 8)(torch.randn(3, 5), torch.randn(2, 8)), r"size 3 doesn't match hidden0 batch size 2"),
        (lambda: GRUCell(5, 8)(torch.randn(5), torch.randn(2, 8)), r"hidden to be 1D as the input is, got 2D"),
        (
            lambda: LSTM(5, 8)(torch.randn(4, 3, 5), (torch.randn(1, 3, 8), torch.randn(1, 3, 7))),
            r"hidden\[1\] size \(1, 3, 8\), got \[1, 3, 7\]",
        ),
        (lambda: GRU(5, 8, proj_size=3), r"only supported for LSTM, not GRU, got 3"),
    ],
)
def test_wrong_values(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_wrong_types_and_what_is_not_supported():
    for wrong, says in (
        ({"input_size": 5.0}, "input_size should be of type int, got: float"),
        ({"hidden_size": True}, "hidden_size should be of type int, got: bool"),
        ({"num_layers": "2"}, "num_layers should be of type int, got: str"),
        ({"bias": 1}, "bias should be of type bool, got: int"),
        ({"batch_first": None}, "batch_first should be of type bool, got: NoneType"),
        ({"bidirectional": 2}, "bidirectional should be of type bool, got: int"),
        ({"proj_size": "cpu"}, "proj_size should be of type int, got: str"),
    ):
        with pytest.raises(TypeError, match=says):
            LSTM(**{"input_size": 5, "hidden_size": 8, **wrong})
    with pytest.raises(NotImplementedError, match="proj_size is not supported, got 3"):
        LSTM(5, 8, proj_size=3)
    with pytest.raises(TypeError, match=r"must be a pair \(h_0, c_0\), got Tensor"):
        LSTM(5, 8)(torch.randn(4, 3, 5), torch.randn(1, 3, 8))
    with pytest.raises(TypeError, match="input must be a Tensor or a PackedSequence, got list"):
        GRU(5, 8)([1.0])
    with pytest.raises(TypeError, match="input of a cell must be a Tensor, got list"):
        GRUCell(5, 8)([1.0])
    with pytest.raises(TypeError, match="lengths must be integers, one for each of 3 sequences, got 'abc'"):
        GRU(5, 8)(torch.randn(4, 3, 5), lengths="abc")
    assert GRU(5, 8, placement="input", eps=0)(torch.randn(4, 3, 5))[0].isfinite().all()
    with pytest.raises(TypeError, match="an initial state must be a Tensor, got int"):
        LSTMCell(5, 8)(torch.randn(3, 5), (1, 2))


def test_the_kernels_refuse_what_would_be_out_of_bounds():
    module = make("GRU")
    spec, parameters = module.spec, module._parameters_of("_l0")
    h = torch.zeros(3, 19, dtype=torch.float64)
    state = torch.zeros(3, 57, dtype=torch.float64)
    steps = eager._steps(spec, parameters, state, state, None, (h, h), (None, None))
    with pytest.raises(ValueError, match=r"must have the rows \[1, 4\), got 3 rows"):
        steps.forward(1, 3, 0)
    with pytest.raises(ValueError, match="backward needs the gates"):
        steps.prepare_backward(None, state, state, h, None, True)
    with pytest.raises(ValueError, match="contiguous CPU tensor of the layer's dtype with 57 elements"):
        eager._steps(spec, parameters, state, state[:, ::2], None, (h, h), (None, None))


@pytest.mark.parametrize(("norm", "compiled"), [(None, False), ("rms", False), ("rms", True)])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_hh_l0", (1000, 64)),  # larger: the product's out= grew, and the kernels kept its old address
        ("weight_hh_l0", (191, 64)),
        ("weight_hh_l0", (1, 64)),
        ("weight_hh_l0", (192, 63)),
        ("weight_ih_l0", (192, 5)),
        ("weight_ih_l0", (576, 4)),
        ("bias_ih_l0", (1,)),
        ("bias_hh_l0", (191,)),
    ],
)
def test_a_parameter_of_another_shape_is_refused(name, shape, compiled, norm):
    torch._dynamo.reset()
    layer = GRU(4, 64, norm=norm)
    setattr(layer, name, torch.nn.Parameter(torch.randn(shape)))
    run = torch.compile(layer, backend="eager") if compiled else layer
    for x in (torch.randn(3, 2, 4), torch.randn(5, 8, 4)):
        with pytest.raises(MismatchError, match=rf"{name[:-3]} must have shape"):
            run(x)


def test_a_cells_parameter_of_another_shape_is_refused():
    cell = LSTMCell(4, 64)
    cell.weight_hh = torch.nn.Parameter(torch.randn(1000, 64))
    with pytest.raises(MismatchError, match="weight_hh must have shape"):
        cell(torch.randn(2048, 4))
