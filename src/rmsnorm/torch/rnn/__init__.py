"""Normalised recurrent networks: one autograd node a layer, one native kernel a step."""

from rmsnorm.torch.rnn.modules import GRU, LSTM, GRUCell, LSTMCell

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell"]
