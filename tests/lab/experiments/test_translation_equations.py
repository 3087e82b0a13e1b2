"""RNNSearch and the Transformer against their equations, by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import plain_rnn
from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data.subwords import BEGIN, PAD
from rmsnorm_lab.experiments.models.encoder_decoder import positions
from rmsnorm_lab.experiments.models.rnnsearch import RNNSearch
from rmsnorm_lab.experiments.recipes import translation as translation_recipe
from translation_networks import a_batch, encoder_decoder, rnnsearch


@pytest.mark.parametrize("norm", ["none", "rms"])
def test_attention_is_a_distribution_over_words(norm: str) -> None:
    model, (source, target) = rnnsearch(norm), a_batch()
    attention = model.trace(source, target).attention_BTS
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    assert (attention[(source == PAD)[:, None].expand_as(attention)] == 0).all()
    assert attention.std() > 0.01  # not uniform


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_rnnsearch_is_its_equations(norm: str) -> None:
    """The conditional GRU by hand, in float64, for one sentence."""
    model = rnnsearch(norm)
    source, target = a_batch(rows=1)
    get = {name: value.detach().double() for name, value in model.state_dict().items()}

    named = {"none": None, "prms": "rms"}.get(norm, norm)
    p = 0.3 if norm == "prms" else 1.0

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ get[f"{name}.weight"].T
        return y if named is None else plain_rnn.normalize(y, named, p, 1e-5) * get[f"{name}.gain"]

    def gru(name: str, suffix: str = "") -> plain_rnn.Plain:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain_ih", "gain_hh")
        own = {kind: get[key] for kind in kinds if (key := f"{name}.{kind}{suffix}") in get}
        return plain_rnn.Plain("GRU", own, named, p, 1e-5, "paper")

    words = get["source_embedding.weight"][source[0]]
    zero = torch.zeros(12, dtype=torch.float64)
    forward = gru("encoder.directions.0", "_l0").run(words, zero, None)[0]
    backward = gru("encoder.directions.1", "_l0").run(words, zero, None, reverse=True)[0]
    h = torch.stack([torch.cat(pair) for pair in zip(forward, backward, strict=True)])

    state = torch.tanh(linear("first_state", h.mean(0)) + get["first_bias"])
    word_cell, context_cell = gru("word_cell"), gru("context_cell")
    expected, hidden_sides = [], []
    for word in [BEGIN, *target[0, :-1].tolist()]:
        y = get["target_embedding.weight"][word]
        hidden_sides.append(word_cell.preactivations(y, state)[1] - word_cell.b_hh)
        middle, _ = word_cell.step(y, state, None)
        keys = linear("attend_context", h) + get["attend_bias"]
        alpha = torch.softmax(torch.tanh(keys + linear("attend_state", middle)) @ get["attend_score"], 0)
        context = alpha @ h
        state, _ = context_cell.step(context, middle, None)
        read = linear("read_state", state) + linear("read_word", y) + linear("read_context", context)
        expected.append(get["logits.weight"] @ torch.tanh(read + get["read_bias"]) + get["logits.bias"])

    with torch.no_grad():
        traced = model.trace(source, target)
        torch.testing.assert_close(model(source, target), traced.logits_BTV)
    torch.testing.assert_close(traced.logits_BTV[0].double(), torch.stack(expected), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(traced.recurrent_BTG[0].double(), torch.stack(hidden_sides), rtol=2e-5, atol=2e-5)


def test_post_norm_and_pre_norm_are_their_equations() -> None:
    """One encoder layer by hand, without its attention: values and output projection are made zero."""
    x, seen = torch.randn(2, 4, 16), torch.ones(2, 1, 1, 4, dtype=torch.bool)
    for pre_norm in (False, True):
        layer = encoder_decoder("rms", pre_norm).encoder[0]
        with torch.no_grad():
            layer.attention.out.weight.zero_()
            norms = layer.attend.norm, layer.feed.norm
            attended = x + layer.attention.out.bias
            if not pre_norm:
                attended = norms[0](attended)
            fed = norms[1](attended) if pre_norm else attended
            y = layer.feed_forward.up(fed).clamp(min=0) @ layer.feed_forward.out.weight.T + layer.feed_forward.out.bias
            expected = attended + y if pre_norm else norms[1](attended + y)
            torch.testing.assert_close(layer(x, seen), expected)


def test_transformers_count_their_norms() -> None:
    for pre_norm, count in ((False, 2 * 2 + 2 * 3), (True, 2 * 2 + 2 * 3 + 2)):
        norms = [name for name, _ in encoder_decoder("layer", pre_norm).named_modules() if name.endswith("norm")]
        assert len(norms) == count + (0 if pre_norm else 2)  # post-norm: the two identities after the stacks


def test_positions() -> None:
    found = positions(5, 8, 6, torch.device("cpu"))
    for row, t in zip(found.tolist(), (5.0, 6.0, 7.0), strict=True):
        angles = [t / 10_000 ** (2 * i / 6) for i in range(3)]
        expected = [*map(torch.sin, map(torch.tensor, angles)), *map(torch.cos, map(torch.tensor, angles))]
        assert row == pytest.approx([value.item() for value in expected], abs=1e-5)


def test_weights_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    config = translation_recipe.ModelConfig(embedding=64, hidden=96)
    model = RNNSearch(500, config, norms.made("rms", "unfused"))
    assert model.source_embedding.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert model.read_context.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert model.word_cell.weight_ih.std().item() == pytest.approx(0.01, rel=0.03)
    for square in (*model.word_cell.weight_hh.split(96), model.read_word.weight):
        torch.testing.assert_close(square @ square.T, torch.eye(len(square)), rtol=0, atol=1e-5)
    torch.manual_seed(0)
    shifted = RNNSearch(500, replace(config, init_mean=0.2), norms.made("rms", "unfused"))
    for (name, weight), plain in zip(shifted.named_parameters(), model.parameters(), strict=True):
        if weight.ndim == 2 or name == "attend_score":
            torch.testing.assert_close(weight, plain + 0.2)
