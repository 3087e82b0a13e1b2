"""Our modules in the places of torch's, in ``torch.testing``'s ModuleInfo: what torch's own modules are tested for.

torch's wheel has the samples (``module_db``) without the tests of them, which are written here after what torch checks.
The exceptions are those of docs/dropin.md.
"""

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map_only

import rmsnorm.torch as ours

common_modules = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
INFOS = {info.module_cls: info for info in common_modules.module_db}
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@dataclass(frozen=True)
class Place:
    """One of torch's modules, and what takes its place: a class of ours with options that torch has not."""

    name: str
    options: dict[str, Any]

    def __str__(self):
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def theirs(self):
        return getattr(torch.nn, self.name)

    @property
    def info(self):
        return INFOS[self.theirs]

    @property
    def same(self):
        """Whether it computes what torch's module does."""
        return self.options.get("norm") is None

    def build(self, *args, **kwargs):
        return getattr(ours, self.name)(*args, **kwargs, **self.options)


NORMS = [Place(name, {}) for name in ("RMSNorm", "LayerNorm")]
RECURRENT = [
    Place(name, options)
    for name in ("GRU", "LSTM", "GRUCell", "LSTMCell")
    for options in ({"norm": None}, {"norm": "rms"}, {"norm": "layer", "placement": "haste"})
]
every_place = pytest.mark.parametrize("place", NORMS + RECURRENT, ids=str)


def fill(module):
    """Parameters that could not be left out unnoticed."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if "gain" in name else 0.0, 0.5)
    return module


def samples(place, training=True, dtype=torch.float64, requires_grad=False):
    """(constructor's arguments, a filled module, arguments of its call, torch's reference or None) of every sample;
    of every third, which has all options too, where norms are inside."""
    found = place.info.module_inputs_func(
        place.info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
    )
    for sample in list(found) if place.same else list(found)[::3]:
        made = sample.constructor_input
        if made.kwargs.get("proj_size"):
            continue  # not supported: docs/dropin.md
        module = fill(place.build(*made.args, **made.kwargs)).to("cpu").to(dtype).train(training)
        assert not sample.forward_input.kwargs
        yield (made.args, made.kwargs), module, sample.forward_input.args, sample.reference_fn


def gradients(module, args, outputs, weights=None):
    """(weights, gradients of inputs and parameters) of outputs weighted at random, or by given weights."""
    outputs = [t for t in tree_leaves(outputs) if t.requires_grad]
    weights = [torch.randn_like(t) for t in outputs] if weights is None else weights
    inputs = [t for t in tree_leaves(args) if t.requires_grad] + list(module.parameters())
    return weights, torch.autograd.grad(outputs, inputs, weights)


# ---- forward, against torch ----


@every_place
@TRAINING
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward(place, training, dtype):
    for (args, kwargs), module, given, reference in samples(place, training, dtype):
        y = module(*given)
        assert all(t.dtype == dtype for t in tree_leaves(y))
        if reference is not None:
            assert_close(tree_leaves(y), tree_leaves(reference(module, *given)), rtol=1e-5, atol=1e-5)
        if place.same:
            twin = place.theirs(*args, **kwargs, dtype=dtype).train(training)
            twin.load_state_dict(module.state_dict())
            assert_close(y, twin(*given), rtol=20 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
        converted = {torch.float32: module.float, torch.float64: module.double}[dtype]()
        assert converted is module
        assert all(p.dtype == dtype for p in module.parameters())
        assert_close(module(*given), y, rtol=0, atol=0, equal_nan=True)


@every_place
def test_state_dicts_go_both_ways(place):
    for (args, kwargs), module, _, _ in samples(place):
        twin = place.theirs(*args, **kwargs, dtype=torch.float64)
        missing, unexpected = twin.load_state_dict(module.state_dict(), strict=place.same)
        assert not missing
        assert all("gain" in name for name in unexpected)
        assert bool(unexpected) != place.same
        again = place.build(*args, **kwargs).double()
        missing, unexpected = again.load_state_dict(twin.state_dict(), strict=place.same)
        assert not unexpected
        assert all("gain" in name for name in missing)
        for name, parameter in twin.state_dict().items():
            assert torch.equal(again.state_dict()[name], parameter)
            assert torch.equal(module.state_dict()[name], parameter)


@every_place
def test_repr(place):
    for (args, kwargs), module, _, _ in samples(place):
        said, expected = repr(module), repr(place.theirs(*args, **kwargs))
        assert said == str(module)
        assert said.startswith(expected[:-1] if place in RECURRENT else expected)


# ---- where parameters live ----


@every_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_factory_arguments(place, dtype, device):
    for (args, kwargs), *_ in samples(place):
        module = place.build(*args, **kwargs, device=device, dtype=dtype)
        assert all((p.device.type, p.dtype) == (device, dtype) for p in module.parameters())


@every_place
def test_made_on_a_device_by_context_and_brought_to_another(place):
    found = list(samples(place))
    for (args, kwargs), module, given, _ in found:
        torch.manual_seed(3)
        expected = place.build(*args, **kwargs, dtype=torch.float64)
        with torch.device("meta"):
            twin = place.build(*args, **kwargs, dtype=torch.float64)
        for of_meta, parameter in zip(twin.parameters(), expected.parameters(), strict=True):
            assert of_meta.is_meta
            assert (of_meta.shape, of_meta.stride()) == (parameter.shape, parameter.stride())
        if module is found[-1][1]:  # a loop of operators
            on_meta = twin(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), given))
            assert [t.shape for t in tree_leaves(on_meta)] == [t.shape for t in tree_leaves(module(*given))]
        torch.manual_seed(3)
        twin.to_empty(device="cpu").reset_parameters()
        assert_close(twin(*given), expected(*given), rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device to bring modules to")
@every_place
def test_brought_to_a_gpu_and_back(place):
    for _, module, given, _ in samples(place, dtype=torch.float32):
        expected = module(*given)
        for device in ("cuda", "cpu", *[f"cuda:{i}" for i in range(1, torch.cuda.device_count())]):
            y = module.to(device)(*tree_map_only(torch.Tensor, lambda t, device=device: t.to(device), given))
            assert_close(tree_map_only(torch.Tensor, lambda t: t.cpu(), y), expected, rtol=1e-4, atol=1e-4)


# ---- copies ----


@every_place
@TRAINING
def test_copies(place, training):
    for _, module, given, _ in samples(place, training):
        y = module(*given)  # a copy is made of a module that has run
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies = [copy.deepcopy(module), torch.load(buffer, weights_only=False)]
        copies += [pickle.loads(pickle.dumps(module, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
        for twin in copies:
            assert repr(twin) == repr(module)
            assert twin.training == training
            assert not {p.data_ptr() for p in twin.parameters() if p.numel()} & {
                p.data_ptr() for p in module.parameters()
            }
            assert_close(twin(*given), y, rtol=0, atol=0)


@every_place
def test_whether_training_matters(place):
    for _, module, given, _ in samples(place):
        del module.training
        if place.info.train_and_eval_differ:
            continue  # dropout between layers asks for it, or may
        module(*given)


# ---- strides ----


@every_place
def test_strided_inputs_and_gradients(place):
    def strided(t):
        return t.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_(t.requires_grad)

    for _, module, given, _ in samples(place, requires_grad=True):
        y = module(*given)
        weights, expected = gradients(module, given, y)
        for args in (given, tree_map_only(torch.Tensor, strided, given)):
            for dy in (weights, [strided(t) for t in weights]):
                again = module(*args)
                assert_close(again, y, rtol=1e-13, atol=1e-13)
                assert_close(gradients(module, args, again, dy)[1], expected, rtol=1e-12, atol=1e-12)


@every_place
def test_memory_format(place):
    """Results and gradients have the format of the inputs, whatever the module was converted to."""
    for _, module, given, _ in samples(place, requires_grad=True):
        expected = module(*given)
        weights, wanted = gradients(module, given, expected)
        dims = {t.dim() for t in tree_leaves(given)}
        formats = [
            torch.contiguous_format,
            *[torch.channels_last] * (4 in dims),
            *[torch.channels_last_3d] * (5 in dims),
        ]
        for of_input in formats:

            def to_format(t, of_input=of_input):
                fits = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(of_input, t.dim()) == t.dim()
                return t.detach().clone(memory_format=of_input if fits else None).requires_grad_(t.requires_grad)

            args = tree_map_only(torch.Tensor, to_format, given)
            for of_module in (torch.preserve_format, *formats):
                y = module.to(memory_format=of_module)(*args)
                found = gradients(module, args, y, [t.clone(memory_format=torch.preserve_format) for t in weights])[1]
                assert_close((y, found), (expected, wanted), rtol=1e-12, atol=1e-12)
                for t in (*tree_leaves(y), *found):
                    fits = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(of_input, t.dim()) == t.dim()
                    assert t.is_contiguous(memory_format=of_input if fits else torch.contiguous_format)


# ---- derivatives ----


DERIVATIVES = [(place, torch.autograd.gradcheck) for place in NORMS + RECURRENT] + [
    (place, torch.autograd.gradgradcheck)
    for place in NORMS + RECURRENT
    if place.same or place.name.endswith("Cell")  # of layers with norms inside: test_rnn_derivatives.py
]


@pytest.mark.parametrize(("place", "check"), DERIVATIVES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_derivatives(place, check):
    """Of everything at once, and of the inputs with every other parameter frozen; batched gradients of the last sample.

    Second derivatives of recurrences are those of torch's operations, with any parameters: they are taken of everything
    at once. Those of layers are taken of one sample with one direction, and not batched: that takes a minute.
    """
    found = list(samples(place, requires_grad=True))
    second = check is torch.autograd.gradgradcheck and place in RECURRENT
    slow = second and place.name in ("GRU", "LSTM")
    for _, module, given, _ in found[-2:-1] if slow else found:
        parameters = list(module.parameters())
        leaves = tree_leaves(given)

        def run(*tensors, module=module, given=given, leaves=leaves):
            inputs = iter(tensors[: len(leaves)])
            return tuple(tree_leaves(module(*tree_map_only(torch.Tensor, lambda _: next(inputs), given))))

        # The parameters are reached through the module; they are listed so that they are moved and differentiated.
        batched = module is found[-1][1] and not slow
        assert check(run, (*leaves, *parameters), fast_mode=True, check_batched_grad=batched)
        for first in () if second else (0, 1):
            for number, parameter in enumerate(parameters):
                parameter.requires_grad_(number % 2 == first)
            assert check(run, (*leaves, *parameters), fast_mode=True)


# ---- errors ----


@pytest.mark.parametrize("place", [p for p in RECURRENT if p.info.module_error_inputs_func], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_errors_are_torchs(place, dtype):
    wrong = place.info.module_error_inputs_func(
        place.info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    for case in wrong:
        sample = case.module_error_input
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        if place.name == "GRUCell" and isinstance(args[-1], str):
            continue  # meant for RNNCell's nonlinearity, here a bias that is no bool: docs/dropin.md
        if case.error_on == common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                place.build(*args, **kwargs)
        else:
            module = place.build(*args, **kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                module(*sample.forward_input.args, **sample.forward_input.kwargs)
