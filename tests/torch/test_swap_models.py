"""Swapped models of transformers' families compute what they did: logits, gradients, tokens, files."""

import copy
import warnings

import pytest
import torch

from rmsnorm import native
from rmsnorm.torch import swap_norms

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")
from tiny_models import FAMILIES, logits, tiny  # noqa: E402

pytestmark = pytest.mark.skipif(bool(native.missing), reason=native.missing or "")

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def gradient(model, family):
    model.zero_grad()
    logits(model, family).float().square().mean().backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    model = tiny(family)
    theirs, exact = logits(model, family).detach(), gradient(copy.deepcopy(model).double(), family)
    error = relative(gradient(model, family), exact)
    swapped = swap_norms(model)
    assert swapped.rows
    assert [(row.cls, row.why) for row in swapped.rows if row.why] == []
    ours = logits(model, family).detach()
    assert 0 < relative(ours, theirs) < 2e-6  # not the same kernels
    assert relative(gradient(model, family), exact) < 1.5 * error + 1e-7
    swapped.restore()
    assert torch.equal(logits(model, family), theirs)

    model.bfloat16()
    theirs = logits(model, family).detach()
    with swap_norms(model):
        ours = logits(model, family).detach()
    assert (ours == theirs).double().mean() > 0.98  # a tie may flip one result, and that spreads
    assert torch.equal(logits(model, family), theirs)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba2"])
def test_generate(family):
    model = tiny(family)
    ids = torch.tensor([[5, 9, 30, 31]])
    theirs = model.generate(ids, max_new_tokens=10, do_sample=False)
    swap_norms(model)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False), theirs)


def test_files_hold_the_stock_model(tmp_path):
    model = tiny("llama")
    theirs, keys = logits(model, "llama"), list(model.state_dict())
    swap_norms(model)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(logits(loaded, "llama"), theirs)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(loaded, "llama"), theirs)
    assert not torch.equal(logits(copy.deepcopy(model), "llama"), theirs)


def test_gradient_checkpointing_changes_nothing():
    model = tiny("llama")
    swap_norms(model)
    plain = gradient(model, "llama")
    model.gradient_checkpointing_enable()
    model.train()
    assert torch.equal(gradient(model, "llama"), plain)


def test_initialisation_knows_the_classes():
    model = tiny("gemma")
    swap_norms(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(3.0)
    model._init_weights(model.model.norm)
    assert (model.model.norm.weight == 0).all()
