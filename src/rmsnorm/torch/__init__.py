"""RMSNorm, pRMSNorm and LayerNorm for PyTorch: functions and modules.

``rms_norm`` and ``RMSNorm`` stand in for torch's own of these names; ``p`` < 1 makes them pRMSNorm.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("rmsnorm.torch needs PyTorch >= 2.4: pip install 'rmsnorm[torch]'") from _error

from rmsnorm.torch.accelerate import accelerate
from rmsnorm.torch.functional import (
    add_rms_norm,
    add_rms_norm_quantized,
    layer_norm,
    rms_norm,
    rms_norm_gated,
    rms_norm_quantized,
    rms_norm_rotary,
)
from rmsnorm.torch.gated import ops as _gated_ops  # noqa: F401  registers operators
from rmsnorm.torch.modules import LayerNorm, RMSNorm, RMSNormGated
from rmsnorm.torch.norm import ops as _norm_ops  # noqa: F401
from rmsnorm.torch.profile import profile_norms
from rmsnorm.torch.rnn import GRU, LSTM, GRUCell, LSTMCell
from rmsnorm.torch.rotary import ops as _rotary_ops  # noqa: F401
from rmsnorm.torch.swap import swap_norms

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "RMSNorm",
    "RMSNormGated",
    "accelerate",
    "add_rms_norm",
    "add_rms_norm_quantized",
    "layer_norm",
    "profile_norms",
    "rms_norm",
    "rms_norm_gated",
    "rms_norm_quantized",
    "rms_norm_rotary",
    "swap_norms",
]
