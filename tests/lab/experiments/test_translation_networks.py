"""RNNSearch and the Transformer: masks, steps, gradients, what their norms and kernels change."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rmsnorm_lab.experiments import norms
from rmsnorm_lab.experiments.data.batches import Batch
from rmsnorm_lab.experiments.data.subwords import BEGIN, PAD
from rmsnorm_lab.experiments.models.search import search
from rmsnorm_lab.experiments.recipes.common import KERNELS
from translation_networks import V, a_batch, encoder_decoder, rnnsearch

MODELS = [
    *[pytest.param(lambda norm=norm: rnnsearch(norm), id=f"rnnsearch-{norm}") for norm in norms.of_task("translation")],
    *[
        pytest.param(lambda norm=norm, pre=pre: encoder_decoder(norm, pre), id=f"{'pre' if pre else 'post'}-{norm}")
        for norm in norms.of_task("transformer")
        for pre in (False, True)
    ],
]


@pytest.mark.parametrize("make", MODELS)
def test_padding_changes_nothing(make: Any) -> None:
    model, batch = make(), a_batch()
    with torch.no_grad():
        logits = model(*batch)
        assert logits.shape == (*batch.target.shape, V)
        wider = Batch(*(nn.functional.pad(side, (0, 3), value=PAD) for side in batch))
        torch.testing.assert_close(model(*wider)[:, :6], logits, rtol=1e-5, atol=1e-5)
        for row, (source, target) in enumerate(zip(*batch, strict=True)):
            source, target = source[source != PAD][None], target[target != PAD][None]
            alone = model(source, target)[0]
            torch.testing.assert_close(logits[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_no_word_sees_itself_or_what_follows(make: Any) -> None:
    model, (source, target) = make(), a_batch()
    with torch.no_grad():
        logits = model(source, target)
        changed = target.clone()
        changed[:, 3] = (target[:, 3] + 1) % (V - 3) + 3
        after = model(source, changed)
    assert torch.equal(after[:, :4], logits[:, :4])
    assert not torch.allclose(after[:, 4:], logits[:, 4:], atol=1e-3)


@pytest.mark.parametrize("make", MODELS)
def test_word_by_word_equals_all_at_once(make: Any) -> None:
    model, (source, target) = make(), a_batch()
    with torch.no_grad():
        expected, memory = model(source, target), model.encode(source)
        state, word = model.start(memory), torch.full_like(target[:, 0], BEGIN)
        for place in range(target.shape[1]):
            logits, state = model.step(memory, state, word)
            torch.testing.assert_close(logits, expected[:, place], rtol=1e-5, atol=1e-5)
            word = target[:, place]


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_has_a_gradient(make: Any) -> None:
    model, batch = make(), a_batch()
    model(*batch)[..., 3:].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("make", [MODELS[4], MODELS[-4]])
def test_search_scores_are_the_models(make: Any, beam: int) -> None:
    """What the search says of its best sentence is what teacher forcing gives for that sentence."""
    model, (source, _) = make(), a_batch()
    with torch.no_grad():
        words, scores = search(model, source, torch.full((len(source),), 9), beam, length_penalty=1.0)
        log_p = torch.log_softmax(model(source, words), dim=-1).gather(-1, words[..., None])[..., 0]
    spoken = words != PAD
    torch.testing.assert_close((log_p * spoken).sum(1) / spoken.sum(1), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "prms"])
def test_kernels_agree(norm: str) -> None:
    batch = a_batch()
    with torch.no_grad():
        for make in (rnnsearch, lambda norm, kernels: encoder_decoder(norm, kernels=kernels)):
            models = [make(norm, kernels=kernels) for kernels in KERNELS]
            assert norm == "none" or len({str(model) for model in models}) > 1  # not one implementation thrice
            for model in models[1:]:
                model.load_state_dict(models[0].state_dict())
                torch.testing.assert_close(model(*batch), models[0](*batch), rtol=1e-4, atol=1e-4)


def test_all_normalisers_start_from_the_same_weights() -> None:
    def matrices(model: nn.Module) -> dict[str, Tensor]:
        """Every matrix by name; under WeightNorm what its parts make."""
        kinds = ("weight", "weight_ih", "weight_hh", "weight_ih_l0", "weight_hh_l0")
        found = {(path, kind): getattr(part, kind, None) for path, part in model.named_modules() for kind in kinds}
        return {key: value.detach() for key, value in found.items() if isinstance(value, Tensor) and value.ndim == 2}

    for task, make in (("translation", rnnsearch), ("transformer", encoder_decoder)):
        first = matrices(make("none"))
        assert len(first) >= 14
        for norm in norms.of_task(task):
            for kernels in KERNELS:
                other = matrices(make(norm, kernels=kernels))
                assert other.keys() == first.keys()
                for name, value in first.items():
                    torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
def test_a_slice_without_sentences_adds_nothing(make: Any) -> None:
    """Of a batch of one sentence the second process gets none."""
    model, (source, target) = make(), a_batch()
    logits = model(source[:0], target[:0])
    nn.functional.cross_entropy(logits.flatten(0, 1), target[:0].flatten(), reduction="sum").backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name
