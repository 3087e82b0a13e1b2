"""The bidirectional attentive reader (Hermann et al. 2015), any normaliser inside its LSTMs and nowhere else.

Legend of the shape suffixes: B questions, T words of the context, Q words of the question, D = 2 · LSTM width.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmsnorm_lab.experiments.models.recurrent import Ragged, active, initialise, lstm_layer, zero_biases
from rmsnorm_lab.experiments.norms.base import Normaliser, outside_norms
from rmsnorm_lab.experiments.recipes.reading import ModelConfig


def uniform(weight: Tensor) -> None:
    """±√(6 / (n_in + n_out + 1))."""
    bound = math.sqrt(6 / (sum(weight.shape) + 1))
    nn.init.uniform_(weight, -bound, bound)


class AttentiveReader(nn.Module):
    """(context (B, T), its lengths, question (B, Q), its lengths) -> logits (B, vocabulary).

    With d_t the states of a bidirectional LSTM over the context and q the last states of another's two directions over
    the question,

        s_t = w · tanh(W_c d_t + W_q q + ⟨d_t B, q B⟩), the last term a number added to every element,
        r = Σ_t softmax(s)_t d_t, logits = V tanh(W_1 r + W_2 q + W_3 mean_t d_t).

    W_1 to W_3, W_c and W_q have ``read_width`` outputs. If the norm is ``everywhere``, each of these terms goes through
    a norm of its own, with gains of 0.1 at the start as in the LSTM; of the context's it sees the words alone.

    One table of word vectors for both; dropout on what is read from it and on the read-out. Start: uniform in
    ±√(6/(n_in + n_out + 1)), recurrent weights orthogonal × 0.05 gate by gate, biases and h₀ (learned) 0.
    """

    def __init__(self, vocabulary: int, config: ModelConfig, norm: Normaliser) -> None:
        super().__init__()
        self.dropout = config.dropout
        both = 2 * config.width
        hidden = config.read_width or both
        self.words = nn.Embedding(vocabulary, config.word_width)
        make = partial(lstm_layer, config.word_width, config.width, norm, config.biases)
        self.context = Ragged(make, bidirectional=True, learned_start=True)
        self.question = Ragged(make, bidirectional=True, learned_start=True)

        def term(bias: bool) -> nn.Module:
            linear = nn.Linear(both, hidden, bias=bias)
            if not norm.everywhere:
                return linear
            # made and dropped: torch's constructor draws for it
            linear.bias = None  # type: ignore[assignment]
            return nn.Sequential(linear, norm.layer(hidden))

        self.everywhere = norm.everywhere
        self.of_context = term(bias=True)
        self.of_question = term(bias=False)
        self.bilinear = nn.Linear(both, both, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.attended = term(bias=True)
        self.asked = term(bias=False)
        self.average = term(bias=False)
        self.logits = nn.Linear(hidden, vocabulary)

        for layer in (*self.context.directions, *self.question.directions):
            initialise(layer, "weight_ih", uniform)
            initialise(layer, "weight_hh", partial(nn.init.orthogonal_, gain=0.05))
            zero_biases(layer)
        for _, module in outside_norms(self):
            if isinstance(module, nn.Embedding | nn.Linear):
                uniform(module.weight)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.everywhere:
            for each in (self.of_context, self.of_question, self.attended, self.asked, self.average):
                nn.init.constant_(each.get_submodule("1").get_parameter("weight"), 0.1)
        if config.word_bound is not None:
            nn.init.uniform_(self.words.weight, -config.word_bound, config.word_bound)

    def forward(
        self, context_BT: Tensor, context_lengths_B: Tensor, question_BQ: Tensor, question_lengths_B: Tensor
    ) -> Tensor:
        d_TBD, _ = self.context(self._read(context_BT), context_lengths_B)
        _, q_BD = self.question(self._read(question_BQ), question_lengths_B)

        match_TB1 = (self.bilinear(d_TBD) * self.bilinear(q_BD)).sum(-1, keepdim=True)
        valid_TB = active(context_lengths_B, len(d_TBD))
        words_TBD = self._of_words(d_TBD, valid_TB) if self.everywhere else self.of_context(d_TBD)
        scores_TB = self.score(torch.tanh(words_TBD + self.of_question(q_BD) + match_TB1))[..., 0]
        weights_TB = scores_TB.masked_fill(~valid_TB, -torch.inf).softmax(0)
        r_BD = (weights_TB[..., None] * d_TBD).sum(0)
        mean_BD = d_TBD.sum(0) / context_lengths_B[:, None]  # beyond the end d is 0

        y_BD = torch.tanh(self.attended(r_BD) + self.asked(q_BD) + self.average(mean_BD))
        return self.logits(F.dropout(y_BD, self.dropout, self.training))

    def _of_words(self, d_TBD: Tensor, valid_TB: Tensor) -> Tensor:
        """``of_context`` of the words, 0 beyond them: padding is in no statistic."""
        words_WD = self.of_context(d_TBD[valid_TB])
        return words_WD.new_zeros(*valid_TB.shape, words_WD.shape[1]).index_put((valid_TB,), words_WD)

    def _read(self, ids_BT: Tensor) -> Tensor:
        return F.dropout(self.words(ids_BT.T), self.dropout, self.training)
