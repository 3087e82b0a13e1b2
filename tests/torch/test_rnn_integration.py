"""The recurrent modules in the framework: derivatives, transforms, compiled graphs, autocast, copies, errors."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from recurrent_cases import CELLS, MODULES, assert_near, call, make, states
from rmsnorm.spec import MismatchError
from rmsnorm.torch import GRU, LSTM, GRUCell, LSTMCell
from rmsnorm.torch.rnn import base, composite, eager
from rmsnorm.torch.rnn.functional import run_layer

LAYERS = list(MODULES)


def functional(module, x, h0, c0, names, parameters):
    """The module as a function of everything that it depends on."""
    hx = h0 if c0 is None else (h0, c0)
    out, last = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, hx))
    return (out, *(last if isinstance(last, tuple) else (last,)))


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize(("placement", "p"), [("paper", 0.3), ("haste", 1.0)])
def test_first_and_second_derivatives(cell, placement, p):
    module = make(cell, p=p, placement=placement, input_size=2, hidden=3)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    h0, c0 = states(module, 2)
    names, parameters = zip(*module.named_parameters(), strict=True)
    given = [x, h0, *([] if c0 is None else [c0])]

    def run(*tensors):
        c = tensors[2] if c0 is not None else None
        return functional(module, tensors[0], tensors[1], c, names, tensors[len(given) :])

    inputs = (*given, *(q.detach().requires_grad_() for q in parameters))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_a_gradient_penalty_reaches_the_weights():
    module = make("GRU", placement="dreamer")
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def penalty(run):
        base.run_layer, before = run, base.run_layer
        try:
            (dx,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), list(module.parameters()))
        finally:
            base.run_layer = before

    assert_near(penalty(run_layer), penalty(composite.forward), 1e-11)


@pytest.mark.parametrize("cell", LAYERS)
def test_some_parameters_frozen(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    full = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("gain"))
    module(x)[0].square().sum().backward()
    for (name, parameter), expected in zip(module.named_parameters(), full, strict=True):
        if name.startswith("gain"):
            assert_near([parameter.grad], [expected], 1e-12)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("cell", LAYERS)
def test_backward_twice_and_outputs_changed_in_place(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    out = module(x)[0]
    loss = out.square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)
    out = module(x)[0]
    changed = torch.autograd.grad(out.mul_(2.0).sum(), x)
    assert_near(changed, torch.autograd.grad((module(x)[0] * 2.0).sum(), x), 1e-12)


@pytest.mark.parametrize("cell", LAYERS)
def test_hooks_that_change_strides(cell):
    module = make(cell)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].square().sum(), x)
    turned = lambda t: t.t().contiguous().t() if t.dim() == 2 else t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(turned, lambda t: t):
        loss = module(x)[0].square().sum()
    assert_near(torch.autograd.grad(loss, x), expected, 1e-12)


@pytest.mark.parametrize("cell", LAYERS)
def test_truncated_backpropagation(cell):
    """Detached states cut the graph, and nothing else."""
    module = make(cell)
    x = torch.randn(8, 3, 5, dtype=torch.float64)
    h0, c0 = states(module, 3)
    whole = call(module, x, h0, c0)[0]
    first, h, c = call(module, x[:5], h0, c0)
    second, *_ = call(module, x[5:], h.detach(), None if c is None else c.detach())
    assert_near([torch.cat((first, second))], [whole], 1e-13)
    assert torch.autograd.grad(second.sum(), h0, allow_unused=True)[0] is None
    assert torch.autograd.grad(whole[5:].sum(), h0)[0].any()


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


DDP = """
import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from rmsnorm.torch import GRU, LSTM
def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for kind in (GRU, LSTM):
        torch.manual_seed(0)
        module = kind(5, 7, 2, dtype=torch.float64)
        x = torch.randn(6, 4, 5, dtype=torch.float64)
        alone = torch.autograd.grad(module(x)[0].square().sum() / 2, list(module.parameters()))
        parallel = torch.nn.parallel.DistributedDataParallel(module)
        parallel(x[:, 2 * rank : 2 * rank + 2])[0].square().sum().backward()
        for p, g in zip(module.parameters(), alone):
            assert (p.grad - g).abs().max() < 1e-12
    dist.destroy_process_group()
if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=2)
    print("same")
"""


def test_two_processes(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "same\n", done.stderr


@pytest.mark.parametrize("isa", ["x86-64", "x86-64-v3"])
def test_other_instruction_sets(isa, run_python):
    from rmsnorm import native

    if isa not in native.available_levels():
        pytest.skip(f"this processor does not run {isa}")
    source = """
import torch, plain_rnn
from recurrent_cases import *
torch.manual_seed(2)
for cell in MODULES:
    for p in (1.0, 0.3):
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.2)):
            module = make(cell, p=p, hidden=37, dtype=dtype, bidirectional=True)
            x = torch.randn(4, 9, 5, dtype=dtype, requires_grad=True)
            h0, c0 = states(module, 9, dtype)
            inputs = [t for t in (x, h0, c0, *module.parameters()) if t is not None]
            expected = results(plain_rnn.run(module, x, [4] * 9, h0, c0), inputs)
            assert_near(results(call(module, x, h0, c0), inputs), [t.double() for t in expected], tolerance)
"""
    run_python(source, RMSNORM_ISA=isa)


# ---- what is refused ----


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
    steps, _keep = eager._steps(spec, parameters, state, state, None, (h, h), (None, None))
    with pytest.raises(ValueError, match=r"must have the rows \[1, 4\), got 3 rows"):
        steps.forward(1, 3, 0)
    with pytest.raises(ValueError, match="backward needs the gates"):
        steps.prepare_backward(None, state, state, h, None, True)
    with pytest.raises(ValueError, match="contiguous CPU tensor of the layer's dtype with 57 elements"):
        eager._steps(spec, parameters, state, state[:, ::2], None, (h, h), (None, None))


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


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("norm", ["rms", "layer", None])
def test_cells_without_features_or_units(cell, norm):
    """As torch's, which take both; under torch.compile too."""
    torch._dynamo.reset()
    for input_size, hidden in ((5, 0), (0, 4), (0, 0)):
        module = CELLS[cell](input_size, hidden, norm=norm)
        x = torch.randn(3, input_size, requires_grad=True)
        for run in (module, torch.compile(module, backend="aot_eager")):
            out = run(x)
            h = out if cell == "GRU" else out[0]
            assert h.shape == (3, hidden)
            (dx,) = torch.autograd.grad(h.sum(), x)
            assert torch.equal(dx, torch.zeros_like(x))
    assert CELLS[cell](5, 8, bias=False).bias_ih is None


# ---- parameters that were replaced, operators called with anything ----


@pytest.mark.parametrize("norm", [None, "rms"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
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
