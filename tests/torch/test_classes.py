"""Our norms are subclasses of torch's, and are taken for nothing else than they are."""

import copy

import pytest
import torch
from torch import nn

from rmsnorm.torch import LayerNorm, RMSNorm, RMSNormGated, accelerate, swap_norms


def test_they_are_subclasses_of_torchs():
    assert isinstance(RMSNorm(8, p=0.5, bias=True), nn.RMSNorm)
    assert isinstance(LayerNorm(8, heads=2), nn.LayerNorm)
    assert not isinstance(RMSNormGated(8), nn.RMSNorm)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed = True


class Mixed(RMSNorm, Named):
    """A class of two bases; each is initialised."""


def test_classes_with_several_bases():
    mixed = Mixed(8, zero_centered=True)
    assert mixed.mixed
    assert torch.equal(mixed.weight, torch.zeros(8))


def encoder(make):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    for name in ("norm1", "norm2"):
        norm = make()
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        setattr(layer, name, norm)
    return layer.eval()


def test_torchs_fast_path():
    """What docs/dropin.md says of TransformerEncoderLayer: right for LayerNorm, and for RMSNorm without the path."""
    x = torch.randn(2, 5, 16)
    for make in (lambda: LayerNorm(16), lambda: RMSNorm(16, eps=1e-5, bias=True)):
        layer = encoder(make)
        layer.train()
        expected = layer(x)
        layer.eval()
        with torch.no_grad():
            fast = layer(x)
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                slow = layer(x)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        torch.testing.assert_close(slow, expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(fast, expected, rtol=1e-5, atol=1e-5) == isinstance(layer.norm1, LayerNorm)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_keeps_ours():
    ao = torch.ao.quantization
    model = nn.Sequential(nn.Linear(8, 8), RMSNorm(8), LayerNorm(8)).eval()
    model.qconfig = ao.default_qconfig
    prepared = ao.prepare(copy.deepcopy(model))
    prepared(torch.randn(4, 8))
    kept = ao.convert(prepared)
    assert [type(m) for m in kept][1:] == [RMSNorm, LayerNorm]
    dynamic = ao.quantize_dynamic(model, dtype=torch.qint8)
    assert [type(m) for m in dynamic][1:] == [RMSNorm, LayerNorm]


def test_accelerate_and_swap_norms_take_them_for_ours():
    x = torch.randn(5, 8)
    model = nn.Sequential(RMSNorm(8, p=0.4, zero_centered=True, bias=True), LayerNorm(8), nn.RMSNorm(8))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    expected = model(x)
    with accelerate(layer_norm=True):
        assert torch.equal(model[:2](x), nn.Sequential(*model[:2])(x))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    with swap_norms(model) as swapped:
        assert [row.name for row in swapped.rows] == ["0", "1", "2"]
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert [type(m) for m in model] == [RMSNorm, LayerNorm, nn.RMSNorm]


class ZeroCentered(RMSNorm):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__(hidden_size, eps, zero_centered=True)


def test_hugging_faces_init_weights_goes_by_names():
    """docs/dropin.md: a gain of 1 + weight starts at 2 there, unless the class has another name."""
    transformers = pytest.importorskip("transformers")

    class Model(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.caught, self.kept = RMSNorm(8, zero_centered=True), ZeroCentered(8)
            self.plain, self.layer = RMSNorm(8), LayerNorm(8)
            self.post_init()

    model = Model(transformers.PretrainedConfig())
    starts = {name: module.weight.mean().item() for name, module in model.named_children()}
    assert starts == {"caught": 1.0, "kept": 0.0, "plain": 1.0, "layer": 1.0}
