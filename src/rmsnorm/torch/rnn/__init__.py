"""Normalised recurrent networks: one autograd node a layer, one native kernel a step.

spec: what a layer computes. functional: which way it is computed, and its autograd node. eager: on the kernels.
composite: in torch's operations. ops: as operators of compiled graphs. base, layers, cells: the modules.
"""

from rmsnorm.torch.rnn.cells import GRUCell, LSTMCell
from rmsnorm.torch.rnn.layers import GRU, LSTM

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell"]
