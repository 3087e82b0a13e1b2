"""RNNSearch with the conditional GRU, normalised where the paper has it (§2 and appendix A of the paper).

Legend of the shape suffixes: B sentences, S source and T target positions, E embedding width, H hidden width (2H both
directions), V vocabulary.

    h_S   = [GRU(x_1…x_S), GRU(x_S…x_1)]
    s_0   = tanh(N(W_0 mean h) + b_0)
    s'_t  = GRU₁(y_{t−1}, s_{t−1})
    α_t   = softmax over S of v · tanh(N(U h_s) + b + N(W s'_t)),      c_t = Σ_s α_ts h_s
    s_t   = GRU₂(c_t, s'_t)
    o_t   = tanh(N(W_s s_t) + N(W_y y_{t−1}) + N(W_c c_t) + b),       logits = W_o o_t + b_o, not normalised

With ``biases="paper"`` (recipes/common.py) every bias b is within its norm, N(W x + b), the three of o_t have one each,
and LayerNorm adds one more after each norm.

N normalises the inputs and the recurrences of all GRUs too (models/recurrent.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rmsnorm_lab.experiments.data.subwords import BEGIN, PAD
from rmsnorm_lab.experiments.models.recurrent import LoopGRUCell, Ragged, gru_layer, initialise, zero_biases
from rmsnorm_lab.experiments.models.search import Tensors
from rmsnorm_lab.experiments.norms.base import Normaliser, biased, outside_norms
from rmsnorm_lab.experiments.recipes.translation import ModelConfig


class NormedLinear(nn.Module):
    """N(W x + b) ⊙ g + shift. b is there if ``bias``; the shift with the paper's biases, if the norm has one.

    Without them the caller adds one bias to the sum of several.
    """

    def __init__(self, inputs: int, outputs: int, norm: Normaliser, biases: str, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        shifted = biases == "paper" and "linear" in norm.biased
        self.shift = nn.Parameter(torch.zeros(outputs)) if shifted else None
        norm.parametrise(self)
        self.norm = norm.layer(outputs) if norm.own_parameters else None
        self.normalise = norm.vector() if norm.of_activations and not norm.own_parameters else None
        self.gain = None if self.normalise is None else nn.Parameter(torch.ones(outputs))

    def set_weight(self, weight: Tensor) -> None:
        if parametrize.is_parametrized(self):
            self.weight = weight  # type: ignore[assignment]  # WeightNorm takes it apart; its gain becomes its norm
        else:
            self.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.norm is not None:
            return self.norm(y)
        return y if self.normalise is None else biased(self.normalise, y, self.gain, self.shift)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


class Traced(NamedTuple):
    """What the decoder does on given targets, position by position."""

    logits_BTV: Tensor
    attention_BTS: Tensor
    recurrent_BTG: Tensor
    """The hidden-to-hidden part of GRU₁ before the gates, N(W_hh s_{t−1}): r, z and the proposal, G = 3H."""


class RNNSearch(nn.Module):
    """(source ids (B, S), target ids (B, T)) -> logits (B, T, V) of each target id after those before it."""

    def __init__(self, vocabulary: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        E, H = config.embedding, config.hidden

        papers = config.biases == "paper"

        def linear(inputs: int, outputs: int, bias: bool = True) -> NormedLinear:
            return NormedLinear(inputs, outputs, norm, config.biases, bias and papers)

        def added(width: int) -> nn.Parameter | None:
            return None if papers else nn.Parameter(torch.zeros(width))

        self.source_embedding, self.target_embedding = nn.Embedding(vocabulary, E), nn.Embedding(vocabulary, E)
        self.encoder = Ragged(lambda: gru_layer(E, H, norm, config.biases), bidirectional=True)
        self.first_state, self.first_bias = linear(2 * H, H), added(H)
        self.word_cell = LoopGRUCell(E, H, norm, config.biases)
        self.context_cell = LoopGRUCell(2 * H, H, norm, config.biases)
        self.attend_context, self.attend_state = linear(2 * H, 2 * H), linear(H, 2 * H, bias=False)
        self.attend_bias, self.attend_score = added(2 * H), nn.Parameter(torch.empty(2 * H))
        self.read_state, self.read_word, self.read_context = linear(H, E), linear(E, E), linear(2 * H, E)
        self.read_bias = added(E)
        self.logits = nn.Linear(E, vocabulary)
        self._draw_weights(config)

    @torch.no_grad()
    def _draw_weights(self, config: ModelConfig) -> None:
        """N(init_mean, init_std²); square matrices orthogonal, around init_mean too. Biases 0.

        The draws are from a generator of their own, so that they are the same whatever a normaliser has drawn before.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

        def draw(weight: Tensor) -> None:
            if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
                nn.init.orthogonal_(weight, generator=generator)
            else:
                nn.init.normal_(weight, std=config.init_std, generator=generator)
            weight += config.init_mean

        for module in (*self.encoder.directions, self.word_cell, self.context_cell):
            initialise(module, "weight_ih", draw)
            initialise(module, "weight_hh", draw)
            zero_biases(module)
        for _, module in outside_norms(self):
            if isinstance(module, NormedLinear):
                drawn = torch.empty_like(module.weight)
                draw(drawn)
                module.set_weight(drawn)
            elif isinstance(module, nn.Embedding | nn.Linear):
                draw(module.weight)
        nn.init.zeros_(self.logits.bias)
        draw(self.attend_score)

    def forward(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        return self._decode(self.encode(source_BS), target_BT)[0]

    def trace(self, source_BS: Tensor, target_BT: Tensor) -> Traced:
        """The same with what happens inside."""
        memory = self.encode(source_BS)
        logits_BTV, attention_BTS, states_BTH = self._decode(memory, target_BT)
        before_BTH = torch.cat((self.start(memory)[0][:, None], states_BTH[:, :-1]), dim=1)
        return Traced(logits_BTV, attention_BTS, torch.cat(self.word_cell.hidden_side(before_BTH), dim=-1))

    def _decode(self, memory: Tensors, target_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits_BTV, attention_BTS, states_BTH)."""
        (state_BH,) = self.start(memory)
        before_BT = torch.cat((torch.full_like(target_BT[:, :1], BEGIN), target_BT[:, :-1]), dim=1)
        words_BTE = self.target_embedding(before_BT)
        sides = [side.unbind(1) for side in self.word_cell.input_side(words_BTE)]
        states, contexts, attentions = [], [], []
        with parametrize.cached():  # WeightNorm's weights are the same at every step
            for side in zip(*sides, strict=True):
                state_BH, context_B2H, attention_BS = self._advance(memory, state_BH, side)
                states.append(state_BH)
                contexts.append(context_B2H)
                attentions.append(attention_BS)
        states_BTH = torch.stack(states, dim=1)
        logits_BTV = self._read(states_BTH, words_BTE, torch.stack(contexts, dim=1))
        return logits_BTV, torch.stack(attentions, dim=1), states_BTH

    def encode(self, source_BS: Tensor) -> Tensors:
        """(h (B, S, 2H), N(U h) + b (B, S, 2H), 0 where there is a word and −∞ beyond (B, S), mean of h (B, 2H))."""
        words_BS = source_BS != PAD
        read_SB, _ = self.encoder(self.source_embedding(source_BS.t()), words_BS.sum(dim=1))
        read_BS = read_SB.transpose(0, 1)
        mean_B = read_BS.sum(dim=1) / words_BS.sum(dim=1, keepdim=True)  # beyond the end h is 0
        beyond_BS = torch.zeros_like(read_BS[..., 0]).masked_fill(~words_BS, -torch.inf)
        return read_BS, _plus(self.attend_context(read_BS), self.attend_bias), beyond_BS, mean_B

    def start(self, memory: Tensors) -> Tensors:
        return (torch.tanh(_plus(self.first_state(memory[3]), self.first_bias)),)

    def step(self, memory: Tensors, state: Tensors, words_B: Tensor) -> tuple[Tensor, Tensors]:
        words_BE = self.target_embedding(words_B)
        state_BH, context_B2H, _ = self._advance(memory, state[0], self.word_cell.input_side(words_BE))
        return self._read(state_BH, words_BE, context_B2H), (state_BH,)

    def _advance(self, memory: Tensors, state_BH: Tensor, side: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One step: (s_t, c_t, α_t)."""
        read_BS, projected_BS, beyond_BS, _ = memory
        middle_BH = self.word_cell.step(side, state_BH)
        scores_BS = torch.tanh(projected_BS + self.attend_state(middle_BH)[:, None]) @ self.attend_score
        attention_BS = torch.softmax(scores_BS + beyond_BS, dim=-1)
        context_B2H = torch.bmm(attention_BS[:, None], read_BS)[:, 0]
        side = self.context_cell.input_side(context_B2H)
        return self.context_cell.step(side, middle_BH), context_B2H, attention_BS

    def _read(self, states: Tensor, words: Tensor, contexts: Tensor) -> Tensor:
        read = self.read_state(states) + self.read_word(words) + self.read_context(contexts)
        return self.logits(torch.tanh(_plus(read, self.read_bias)))
